"""The PyAV reader: seek to the key frame, decode no further than the last wanted frame, skip what nobody needs.

Decoding is 95 % of the cost of a clip, and most of it goes into frames between the wanted ones. Before each packet the
decoder is told to skip it if it is not wanted and no other frame refers to it (`skip_frame`), which saves a third with
pixel-identical results. That works packet by packet only with one decoder thread.
"""

from collections.abc import Iterator

import av
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import VideoReformatter

from revvideo.data.readers.packet_index import scan_packets
from revvideo.data.video_reader import VideoError, VideoReader

# A frame (8192x4096 passes). Checked before decoding: one frame of twice that takes seconds and more than a GB.
MAX_PIXELS = 2**25
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,flv,asf,ogg"
OPEN_SECONDS, READ_SECONDS = 30.0, 30.0

# What PyAV lets through from FFmpeg and from its own depths; all of it becomes VideoError.
_DEEP_ERRORS = (av.FFmpegError, OSError, ValueError, LookupError, ArithmeticError, EOFError, MemoryError)


class PyAVReader(VideoReader):
    """`VideoReader` over PyAV. Built by `open_video`, which has checked that the path is a regular non-empty file."""

    backend = "pyav"

    def __init__(self, path: str, local_path: str, strict: bool):
        super().__init__(path, local_path, strict)
        self._container = None
        self._turns: int | None = None  # quarter turns counter-clockwise; known from the first decoded frame on
        self._reformatter = VideoReformatter()
        try:
            self._container, self._stream = self._open()
            context = self._stream.codec_context
            self._size = (context.height, context.width)  # stored size, before rotation
            self._index = scan_packets(self._container, self._stream)
        except _DEEP_ERRORS as error:
            self.close()
            raise self._error(_words(error)) from error
        except VideoError:
            self.close()
            raise
        self.pts = self._index.seconds
        self.num_frames = len(self.pts)
        self.fps = self._index.fps
        self.warnings += self._index.problems
        if strict and self.warnings:
            self.close()
            raise self._error("; ".join(self.warnings))

    @property
    def height(self) -> int:
        return self._display_size()[0]

    @property
    def width(self) -> int:
        return self._display_size()[1]

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    # Opening

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        """A fresh container and its largest video stream, ready to decode with one thread."""
        container = av.open(
            f"file:{self.local_path}",  # so that a colon in the name is not taken for a protocol
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
            timeout=(OPEN_SECONDS, READ_SECONDS),
        )
        try:
            streams = [
                stream
                for stream in container.streams.video
                if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
            ]
            if not streams:
                raise self._error("no video stream that can be decoded")
            chosen = max(streams, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
            context = chosen.codec_context
            self._check_pixels(context.width, context.height)
            for stream in container.streams:
                if stream is not chosen:
                    stream.discard = Discard.all
            context.thread_count = 1
            context.thread_type = "NONE"
            context.options = {"max_pixels": str(MAX_PIXELS)} | ({"err_detect": "explode"} if self.strict else {})
        except BaseException:
            container.close()
            raise
        return container, chosen

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise self._error(f"the picture is too large: {width}x{height}, at most {MAX_PIXELS} pixels are accepted")

    def _error(self, reason: str) -> VideoError:
        return VideoError(self.path, self.backend, reason)

    # Geometry

    def _display_size(self) -> tuple[int, int]:
        """(height, width) after rotation; decodes the first frame if none has been decoded yet."""
        if self._turns is None:
            try:
                self._learn_geometry(self._first_frame())
            except _DEEP_ERRORS as error:
                raise self._error(_words(error)) from error
        return self._size[::-1] if self._turns % 2 else self._size

    def _learn_geometry(self, frame: av.VideoFrame) -> None:
        """Size and rotation: those of the file's first frame, where the header's size is not this frame's."""
        if (frame.height, frame.width) != self._size:
            frame = self._first_frame()
        self._size = (frame.height, frame.width)
        self._turns = quarter_turns(frame.rotation)

    def _first_frame(self) -> av.VideoFrame:
        for frame in self._decode_all(errors=[]):
            return frame
        raise self._error("no frame could be decoded")

    def _to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3), rotated; a frame of another size (a stream that changes it) is scaled to the first one's."""
        self._check_pixels(frame.width, frame.height)
        if self._turns is None:
            self._learn_geometry(frame)
        height, width = self._size
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BICUBIC", threads=1
        )
        return np.rot90(rgb.to_ndarray(), self._turns)

    # Decoding

    def _read(self, indices: np.ndarray) -> np.ndarray:
        if self._container is None:
            raise ValueError(f"the reader of {self.path} is closed")
        request = _Request(indices)
        try:
            if self._index.seekable:
                for key_tick, wanted in self._key_frame_groups(request):
                    self._decode_group(key_tick, wanted, request)
            if request.missing:
                self._decode_sequentially(request)
        except _DEEP_ERRORS as error:
            raise self._error(_words(error)) from error
        return request.out

    def _key_frame_groups(self, request: "_Request") -> Iterator[tuple[int, dict[int, int]]]:
        """(time of a key packet, {time: presentation index} of the wanted frames that are decoded from it)."""
        groups: dict[int, dict[int, int]] = {}
        for index in sorted(request.missing):
            tick = int(self._index.ticks[index])
            key_tick = self._index.key_tick_before(tick)
            if key_tick is not None:  # else: left for the sequential decoder
                groups.setdefault(key_tick, {})[tick] = index
        yield from groups.items()

    def _decode_group(self, key_tick: int, wanted: dict[int, int], request: "_Request") -> None:
        """Decode the wanted frames of one key-frame group; what does not come stays in `request.missing`."""
        context, packet_of_tick = self._stream.codec_context, self._index.packet_of_tick
        first = packet_of_tick[key_tick]
        last = max(packet_of_tick[tick] for tick in wanted)
        errors: list[str] = []
        for packet in self._packets_from(key_tick, first):
            position = packet_of_tick.get(packet.pts, -1)
            if position < first:
                continue
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            # Frames shown before the key frame may refer to the group before it: neither they nor their errors matter.
            self._decode(packet, wanted, request, errors if packet.pts >= key_tick else [])
            if position >= last:
                break
        self._decode(None, wanted, request, errors)  # drain: frames still held back for reordering
        context.flush_buffers()
        if errors and not self.strict:
            self.warnings += errors
        elif errors:  # let the sequential decoder confirm or refute
            request.missing.update(wanted.values())

    def _packets_from(self, key_tick: int, first: int) -> Iterator[av.Packet]:
        """Packets from position `first` in decoding order (the key packet) or before; none if the seek went past."""
        for target in (key_tick, key_tick - 1024):
            self._container.seek(target, stream=self._stream, backward=True)
            packets = (packet for packet in self._container.demux(self._stream) if packet.size)
            head = next(packets, None)
            if head is not None and self._index.packet_of_tick.get(head.pts, first + 1) <= first:
                yield head
                yield from packets
                return

    def _decode(self, packet: av.Packet | None, wanted: dict[int, int], request: "_Request", errors: list[str]) -> None:
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            errors.append(f"decoding error: {error.strerror}")
            return
        for frame in frames:
            if frame.pts in wanted and not frame.is_corrupt:
                request.put(wanted[frame.pts], self._to_rgb(frame))

    def _decode_all(self, errors: list[str]) -> Iterator[av.VideoFrame]:
        """All frames of the file from its start, in presentation order, through a container of its own."""
        container, stream = self._open()
        try:
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                except av.FFmpegError as error:
                    errors.append(f"read error: {error.strerror}")
                    packet = None
                try:
                    # An empty packet would end the decoder; the flush packet of the demuxer is None for us.
                    yield from stream.codec_context.decode(packet if packet is not None and packet.size else None)
                except EOFError:
                    return
                except av.FFmpegError as error:
                    errors.append(f"decoding error: {error.strerror}")
                if packet is None or not packet.size:
                    return
        finally:
            container.close()

    def _decode_sequentially(self, request: "_Request") -> None:
        """Fill what is missing without any seek; then what still does not come, as `strict` says.

        Raises:
            VideoError: no frame at all, or `strict` and something is wrong.
        """
        errors: list[str] = []
        waiting = sorted(request.missing, reverse=True)  # the next one is at the end
        good: av.VideoFrame | None = None
        damaged = 0
        position = -1
        for frame in self._decode_all(errors):
            position = self._index.frame_of_tick.get(frame.pts, -1) if self._index.seekable else position + 1
            if position < 0:
                continue
            while waiting and waiting[-1] < position:  # did not come: the good frame before it (or after it) stands in
                damaged += 1
                request.put(waiting.pop(), self._to_rgb(good or frame))
            if waiting and waiting[-1] == position:
                damaged += frame.is_corrupt
                request.put(waiting.pop(), self._to_rgb(frame))
            good = frame
            if not waiting:
                break
        if good is None:
            raise self._error("no frame could be decoded" + (f" ({errors[0]})" if errors else ""))
        damaged += len(waiting)
        if damaged:
            errors.append(f"{damaged} wanted frames are missing or damaged")
        if errors and self.strict:
            raise self._error("; ".join(dict.fromkeys(errors)))
        for index in waiting:
            request.put(index, self._to_rgb(good))
        self.num_bad_frames += damaged
        self.warnings += errors


class _Request:
    """The frames that one call wants: filled as they come, repeats included."""

    def __init__(self, indices: np.ndarray):
        self.out: np.ndarray | None = None  # (len(indices), H, W, 3)
        self.missing = set(indices.tolist())
        self._count = len(indices)
        self._slots: dict[int, list[int]] = {}
        for slot, index in enumerate(indices.tolist()):
            self._slots.setdefault(index, []).append(slot)

    def put(self, index: int, image: np.ndarray) -> None:
        if self.out is None:
            self.out = np.empty((self._count, *image.shape), np.uint8)
        for slot in self._slots[index]:
            self.out[slot] = image
        self.missing.discard(index)


def quarter_turns(degrees: float) -> int:
    """Quarter turns counter-clockwise (0..3) for a display rotation in degrees counter-clockwise, as PyAV gives it."""
    return round(degrees / 90) % 4


def _words(error: BaseException) -> str:
    """An error of the depths as one line without FFmpeg's numbers."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())
