"""How clips are read with each library by its own interface, as its users would, at its best on one thread.

The peers are called directly, not through `revvideo.open_video`: our adapters read the packets of a file once more.
"""

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from revvideo.data.sampling import short_side_size
from revvideo.data.video_reader import open_video
from revvideo.errors import InputError


@dataclass(frozen=True)
class Video:
    """What the jobs need to know of a file.

    Attributes:
        path: of the file.
        num_frames: counted.
        fps: average frames per second.
        seconds: float64 (num_frames,), times of the frames, the first at 0.
        height, width: pixels, after rotation.
    """

    path: str
    num_frames: int
    fps: float
    seconds: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, path: str | Path) -> "Video":
        """The facts of a file, by the default backend.

        Raises:
            VideoError: it cannot be read.
        """
        with open_video(str(path)) as video:
            seconds = video.pts - video.pts[0]
            return cls(str(path), video.num_frames, video.fps, seconds, video.height, video.width)


@dataclass(frozen=True)
class Job:
    """Clips of one video that are read in one open.

    Attributes:
        video: the file.
        starts: first frame of each clip.
        num_frames: of a clip.
        stride: between them; past the end of the video the last frame is repeated.
        short_side: of the frames that are wanted, in pixels; None: as stored.
    """

    video: Video
    starts: Sequence[int]
    num_frames: int
    stride: int
    short_side: int | None = None

    @cached_property
    def clips(self) -> np.ndarray:
        """int64 (clips, num_frames): presentation indices."""
        indices = np.add.outer(np.asarray(self.starts, np.int64), self.stride * np.arange(self.num_frames))
        return np.minimum(indices, self.video.num_frames - 1)

    @cached_property
    def frames(self) -> np.ndarray:
        """int64 (N,): every frame that a clip needs, once, ascending. Each decoder that takes indices gets these."""
        return np.unique(self.clips)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the frames that are wanted; None: as stored."""
        if self.short_side is None:
            return None
        return short_side_size(self.video.height, self.video.width, self.short_side)


class Decoder(ABC):
    """One way to read clips. Building it imports the library.

    Attributes:
        name: as `--backends` takes it.
        package: whose version is reported.
        calls: what is called, in words.
    """

    name: str
    package: str
    calls: str

    @abstractmethod
    def read(self, job: Job):
        """Open the file and decode: this is what is timed."""

    def frames(self, job: Job, result) -> np.ndarray:
        """What `read` returned, as uint8 (N, H, W, 3) for `job.frames`."""
        return np.asarray(result)

    @property
    def version(self) -> str:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return "unknown"


class OpenVideo(Decoder):
    name, package = "pyav", "av"
    calls = "revvideo.open_video(path).frames(indices): ours, uint8"

    def read(self, job: Job) -> np.ndarray:
        with open_video(job.video.path) as video:
            return video.frames(job.frames, job.size) if job.size else video.frames(job.frames)


class TorchCodec(Decoder):
    name, package = "torchcodec", "torchcodec"
    calls = "VideoDecoder(path, exact, NHWC, num_ffmpeg_threads=1).get_frames_at(indices): uint8"

    def __init__(self):
        self._decoder = importlib.import_module("torchcodec.decoders").VideoDecoder
        self._resize = importlib.import_module("torchcodec.transforms").Resize

    def read(self, job: Job) -> torch.Tensor:
        transforms = [self._resize(size=job.size)] if job.size else None
        decoder = self._decoder(
            job.video.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact", transforms=transforms
        )
        return decoder.get_frames_at(job.frames.tolist()).data


class Decord(Decoder):
    name, package = "decord", "decord"
    calls = "VideoReader(path, num_threads=1).get_batch(indices).asnumpy(): uint8"

    def __init__(self):
        self._library = importlib.import_module("decord")

    def read(self, job: Job) -> np.ndarray:
        self._library.bridge.set_bridge("native")  # importing pytorchvideo has set torch's
        height, width = job.size or (-1, -1)
        reader = self._library.VideoReader(job.video.path, width=width, height=height, num_threads=1)
        return reader.get_batch(job.frames).asnumpy()


class _PytorchVideo(Decoder):
    """All frames of the time span of each clip, as float, then every `stride`-th of them."""

    package = "pytorchvideo"

    @abstractmethod
    def _open(self, path: str):
        """An EncodedVideo; pytorchvideo reads the whole file first."""

    @abstractmethod
    def _span(self, video: Video, first: int, last: int) -> tuple[float, float]:
        """Seconds that begin after the frame before `first` and end before the one after `last`."""

    def read(self, job: Job) -> list[torch.Tensor]:
        """Of each clip float32 (C, T, H, W); a clip at the end of the video is shorter."""
        video = self._open(job.video.path)
        clips = []
        for clip in job.clips:
            span = video.get_clip(*self._span(job.video, int(clip[0]), int(clip[-1])))["video"]
            if span is None:
                raise RuntimeError("get_clip found no video")
            frames = span[:, :: job.stride]  # a view
            if (clip[-1] - clip[0]) % job.stride:  # beyond the end of the video: its last frame
                frames = span[:, np.unique(clip) - clip[0]]
            if job.size:
                frames = F.interpolate(frames, size=job.size, mode="bilinear", align_corners=False)
            clips.append(frames)
        video.close()
        return clips

    def frames(self, job: Job, result: list[torch.Tensor]) -> np.ndarray:
        found = {}
        for clip, frames in zip(job.clips, result):
            wanted = dict.fromkeys(clip.tolist())
            if len(wanted) != frames.shape[1]:
                raise ValueError(f"{frames.shape[1]} frames instead of {len(wanted)}")
            found.update(zip(wanted, frames.permute(1, 2, 3, 0).round().to(torch.uint8).numpy()))
        return np.stack([found[index] for index in job.frames.tolist()])


class PytorchVideoPyAV(_PytorchVideo):
    name = "pytorchvideo-pyav"
    calls = (
        "EncodedVideo.from_path(path, decode_audio=False).get_clip(span) of each clip, every stride-th frame: float32"
    )

    def __init__(self):
        self._library = importlib.import_module("pytorchvideo.data.encoded_video")
        importlib.import_module("pytorchvideo.data.encoded_video_pyav")

    def _open(self, path: str):
        return self._library.EncodedVideo.from_path(path, decode_audio=False, decoder="pyav")

    def _span(self, video: Video, first: int, last: int) -> tuple[float, float]:
        margin = 0.25 / video.fps
        return max(float(video.seconds[first]) - margin, 0.0), float(video.seconds[last]) + margin


class PytorchVideoDecord(_PytorchVideo):
    name = "pytorchvideo-decord"
    calls = "EncodedVideo.from_path(path, decode_audio=False, decoder='decord').get_clip(span), the same: float32"

    def __init__(self):
        self._bridge = importlib.import_module("decord").bridge
        self._library = importlib.import_module("pytorchvideo.data.encoded_video")
        importlib.import_module("pytorchvideo.data.encoded_video_decord")

    def _open(self, path: str):
        self._bridge.set_bridge("torch")
        return self._library.EncodedVideo.from_path(path, decode_audio=False, decoder="decord")

    def _span(self, video: Video, first: int, last: int) -> tuple[float, float]:
        # It turns seconds into indices with the average frame rate.
        return max(first - 0.25, 0.0) / video.fps, (last + 0.25) / video.fps


class PytorchVideoDecordOneThread(PytorchVideoDecord):
    name = "pytorchvideo-decord-1"
    calls = "the same with num_threads=1, which takes EncodedVideoDecord itself: from_path has no such argument"

    def __init__(self):
        super().__init__()
        self._library = importlib.import_module("pytorchvideo.data.encoded_video_decord")

    def _open(self, path: str):
        self._bridge.set_bridge("torch")
        return self._library.EncodedVideoDecord(io.BytesIO(Path(path).read_bytes()), decode_audio=False, num_threads=1)


OURS = OpenVideo.name
DECODERS: dict[str, type[Decoder]] = {
    decoder.name: decoder
    for decoder in (
        OpenVideo,
        TorchCodec,
        Decord,
        PytorchVideoPyAV,
        PytorchVideoDecord,
        PytorchVideoDecordOneThread,
    )
}


def load_decoders(names: Sequence[str]) -> tuple[list[Decoder], dict[str, str]]:
    """The decoders of `names` that this machine can run, ours always and first.

    Args:
        names: of `DECODERS`, or "all".

    Returns:
        The decoders, and {name: why not} of the others.

    Raises:
        InputError: an unknown name.
    """
    wanted = list(DECODERS) if "all" in names else list(dict.fromkeys([OURS, *names]))
    unknown = [name for name in wanted if name not in DECODERS]
    if unknown:
        raise InputError(f"unknown backend {unknown[0]!r}; --backends takes all, {', '.join(DECODERS)}")
    found, missing = [], {}
    for name in wanted:
        try:
            found.append(DECODERS[name]())
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # RuntimeError: FFmpeg's libraries
            missing[name] = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return found, missing
