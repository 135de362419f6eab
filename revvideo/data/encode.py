"""Re-encodes one video so that short clips of it decode fast: small pictures, short groups, B-frames to skip.

Everything about time stays: the number of frames, each frame's time stamp (also of a variable frame rate), the pixels'
aspect. The display rotation is applied to the pixels; sound and hidden frames are dropped. Frames pass one by one, so a
long video takes no more memory than a short one.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter

from revvideo.data.readers.pyav import open_stream, quarter_turns
from revvideo.data.video_reader import VideoError, open_video
from revvideo.errors import InputError
from revvideo.paths import replace_file

MAX_B_FRAMES = 3
SMALLEST_SIDE = 16  # pixels; less is no picture for x264's macroblocks
# No frame refers to a B-frame, B-frames stand at fixed places and key frames at fixed distances.
_X264_PARAMETERS = "b-pyramid=none:b-adapt=0:scenecut=0"
_READ_ERRORS = (av.FFmpegError, OSError, ValueError, LookupError, ArithmeticError, EOFError, MemoryError)
_JPEG_RANGE, _MPEG_RANGE = 2, 1  # AVColorRange


@dataclass(frozen=True)
class EncodeSpec:
    """How to encode.

    Attributes:
        short_side: of the result in pixels, even; a smaller video keeps its size (made even).
        gop: frames from one key frame to the next, at most.
        crf: x264's quality, 0 (lossless) to 51; 23 is x264's own default.
        preset: x264's effort, such as "medium".

    Raises:
        InputError: a value out of its range.
    """

    short_side: int = 256
    gop: int = 32
    crf: int = 23
    preset: str = "medium"

    def __post_init__(self) -> None:
        if self.short_side < SMALLEST_SIDE or self.short_side % 2:
            raise InputError(
                f"--short-side is {self.short_side}; expected an even number of pixels from {SMALLEST_SIDE}"
            )
        if self.gop < 1:
            raise InputError(f"--gop is {self.gop}; expected at least 1 frame")
        if not 0 <= self.crf <= 51:
            raise InputError(f"--crf is {self.crf}; expected 0 (lossless) to 51 (worst), such as 23")

    def __str__(self) -> str:
        return f"short side {self.short_side}, gop {self.gop}, crf {self.crf}, preset {self.preset}"


@dataclass(frozen=True)
class Encoded:
    """A finished file: frames that went in and that its packets hold, size in pixels, average rate, size, checksum."""

    frames_in: int
    frames_out: int
    height: int
    width: int
    fps: float
    bytes: int
    sha256: str


class OutputError(RuntimeError):
    """The result could not be written; the source is not to blame."""


@dataclass(frozen=True)
class _Source:
    """What the reader tells of a source."""

    path: str
    local_path: str
    num_frames: int
    height: int  # displayed, in pixels
    width: int
    fps: float
    pts: np.ndarray  # float64 (num_frames,), seconds


def encode_video(source: str, target: str, spec: EncodeSpec) -> Encoded:
    """Encode `source` into the mp4 file `target`, which appears when it is complete and verified, or not at all.

    Raises:
        VideoError: the source is damaged in whatever way the decoder can see, or the result is not what it should be.
        OutputError: the folder of the target cannot be written, or the disk is full.
    """
    with open_video(source, strict=True) as video:
        facts = _Source(
            source, video.local_path, video.num_frames, video.height, video.width, video.fps, np.array(video.pts)
        )
    written: list[Encoded] = []

    def write(temporary: Path) -> None:
        times, time_base = _times(facts)
        _encode(facts, str(temporary), spec, times, time_base)
        written.append(_verified(facts, temporary, spec, times, time_base))

    try:
        os.makedirs(os.path.dirname(target) or os.curdir, exist_ok=True)
        replace_file(Path(target), write, durable=True)
    except OSError as error:  # FFmpeg's are among them
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return written[0]


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) of the result for a displayed size: the aspect is kept, nothing is enlarged, both are even."""
    scale = min(1.0, short_side / min(height, width))
    even_height, even_width = (max(2, min(2 * round(scale * side / 2), side - side % 2)) for side in (height, width))
    return even_height, even_width


def _times(source: _Source) -> tuple[np.ndarray, Fraction]:
    """int64 (num_frames,) strictly rising, and the unit in seconds: that of the source, so that times stay exact."""
    container, stream, _ = open_stream(source.local_path)
    with container:
        denominator = stream.time_base.denominator if stream.time_base else 90_000
    ticks = np.rint(source.pts * denominator).astype(np.int64)
    ticks -= min(0, int(ticks[0]))  # mp4 knows no frame before the time 0
    steps = np.arange(len(ticks))
    # Equal times (broken files) become a tick apart: an encoder refuses two frames of one time.
    return np.maximum.accumulate(ticks - steps) + steps, Fraction(1, denominator)


# Decoding


def _frames(source: _Source) -> Iterator[av.VideoFrame]:
    """All frames in presentation order.

    Raises:
        VideoError: anything that the decoder reports, or another number of frames than the packets promise.
    """
    count = 0
    try:
        container, stream, _ = open_stream(source.local_path, strict=True)
        with container:
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoError(source.path, "pyav", f"frame {count} is corrupt")
                count += 1
                if count > source.num_frames:
                    break
                yield frame
    except VideoError:
        raise
    except _READ_ERRORS as error:
        words = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise VideoError(source.path, "pyav", f"decoding stopped after {count} frames: {words}") from error
    if count != source.num_frames:
        more = "more" if count > source.num_frames else str(count)
        raise VideoError(source.path, "pyav", f"{source.num_frames} frames expected, {more} decoded")


def _prepared(frame: av.VideoFrame, size: tuple[int, int], turns: int, reformatter: VideoReformatter) -> av.VideoFrame:
    """The frame as limited-range yuv420p of `size` (height, width), turned `turns` quarters counter-clockwise."""
    height, width = size[::-1] if turns % 2 else size  # before turning
    full_range = frame.color_range == _JPEG_RANGE or frame.format.name.startswith(("yuvj", "gray"))
    prepared = reformatter.reformat(
        frame,
        width=width,
        height=height,
        format="yuv420p",
        interpolation="BICUBIC",
        src_color_range=_JPEG_RANGE if full_range else _MPEG_RANGE,
        dst_color_range=_MPEG_RANGE,
        threads=1,
    )
    if not turns:
        return prepared
    values, luma, chroma = prepared.to_ndarray().reshape(-1), height * width, height * width // 4
    planes = [
        values[:luma].reshape(height, width),
        values[luma : luma + chroma].reshape(height // 2, width // 2),
        values[luma + chroma :].reshape(height // 2, width // 2),
    ]
    turned = np.concatenate([np.rot90(plane, turns).reshape(-1) for plane in planes])
    return av.VideoFrame.from_ndarray(turned.reshape(size[0] * 3 // 2, size[1]), format="yuv420p")


# Encoding


def _encode(source: _Source, path: str, spec: EncodeSpec, times: np.ndarray, time_base: Fraction) -> None:
    size = target_size(source.height, source.width, spec.short_side)
    reformatter = VideoReformatter()
    turns: int | None = None
    # A start later than 0 is stored in units of the movie; its default of milliseconds would round it.
    options = {"movflags": "+faststart", "movie_timescale": str(time_base.denominator)}
    with av.open(path, "w", format="mp4", options=options) as container:
        stream, packets = None, _Packets(container)
        for number, frame in enumerate(_frames(source)):
            if turns is None or stream is None:
                turns = quarter_turns(frame.rotation)
                stream = _add_stream(container, frame, source, size, turns, spec, time_base)
            picture = _prepared(frame, size, turns, reformatter)
            picture.pts, picture.time_base = int(times[number]), time_base
            picture.pict_type = PictureType.NONE  # the source's would be forced on the encoder
            packets.mux(stream.encode(picture))
        assert stream is not None, "a source without frames is refused when it is opened"
        packets.mux(stream.encode(None))
        packets.finish(round(len(times) / source.fps / time_base))


class _Packets:
    """The way into the container: one packet is held back, because the last one's duration decides the average rate."""

    def __init__(self, container: av.container.OutputContainer):
        self._container = container
        self._held: av.Packet | None = None
        self._first_dts: int | None = None

    def mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if self._held is not None:
                self._container.mux(self._held)
            self._held = packet
            self._first_dts = packet.dts if self._first_dts is None else self._first_dts

    def finish(self, total: int) -> None:
        """`total`: what all frames together last, in ticks of the packets."""
        last = self._held
        assert last is not None, "a source has at least one frame"
        assert self._first_dts is not None
        last.duration = max(1, total - (last.dts - self._first_dts))
        self._container.mux(last)


def _add_stream(
    container: av.container.OutputContainer,
    first: av.VideoFrame,
    source: _Source,
    size: tuple[int, int],
    turns: int,
    spec: EncodeSpec,
    time_base: Fraction,
) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=Fraction(source.fps).limit_denominator(100_000))
    context = stream.codec_context
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    context.time_base = time_base
    context.thread_count = 1  # the processes fill the cores
    context.gop_size, context.max_b_frames = spec.gop, MAX_B_FRAMES
    context.color_range = _MPEG_RANGE
    context.colorspace, context.color_primaries, context.color_trc = (
        int(first.colorspace),
        int(first.color_primaries),
        int(first.color_trc),
    )
    aspect = _pixel_aspect(source)
    context.sample_aspect_ratio = 1 / aspect if turns % 2 else aspect
    stream.options = {
        "preset": spec.preset,
        "crf": str(spec.crf),
        "tune": "fastdecode",
        "x264-params": _X264_PARAMETERS,
    }
    return stream


def _pixel_aspect(source: _Source) -> Fraction:
    container, stream, _ = open_stream(source.local_path)
    with container:
        return Fraction(stream.codec_context.sample_aspect_ratio or 1)


# What has been written


def _verified(source: _Source, path: Path, spec: EncodeSpec, times: np.ndarray, time_base: Fraction) -> Encoded:
    """Facts of the finished file.

    Raises:
        VideoError: it has not the frames, the times or the key frames that it should have.
    """
    with open_video(str(path), strict=True) as video:
        frames_out, pts, fps = video.num_frames, np.array(video.pts), video.fps
        height, width = video.height, video.width
    if frames_out != source.num_frames:
        raise VideoError(source.path, "pyav", f"{source.num_frames} frames went in, {frames_out} came out")
    if np.abs(pts - times * float(time_base)).max() > 0.0005:
        raise VideoError(source.path, "pyav", "the result has other time stamps")
    if _longest_group(str(path)) > spec.gop:
        raise VideoError(source.path, "pyav", f"the result has key frames more than {spec.gop} frames apart")
    with path.open("rb") as file:
        checksum = hashlib.sha256()
        while block := file.read(2**20):
            checksum.update(block)
    return Encoded(source.num_frames, frames_out, height, width, fps, path.stat().st_size, checksum.hexdigest())


def _longest_group(path: str) -> int:
    """Packets from one key packet to the next, at most."""
    longest = length = 0
    container, stream, _ = open_stream(path)
    with container:
        for packet in container.demux(stream):
            if packet.size:
                length = 1 if packet.is_keyframe else length + 1
                longest = max(longest, length)
    return longest
