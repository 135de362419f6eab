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

from revvideo.data.readers.index_cache import IndexCache, file_key
from revvideo.data.readers.packet_index import PacketIndex, scan_packets
from revvideo.data.video_reader import MAX_PIXELS, VideoError, VideoReader

# What people keep videos in. FFmpeg knows hundreds more, with the bugs of hundreds of parsers, and play lists among
# them, which name other files.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,obu,flv,asf,ogg"
CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "msmpeg4v1", "msmpeg4v2")
    + ("msmpeg4", "h263", "h263p", "h261", "flv", "mpeg1video", "mpeg2video", "mjpeg", "theora", "wmv1", "wmv2", "wmv3")
    + ("vc1", "vp6", "vp6f", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "rawvideo")
)
OPEN_SECONDS, READ_SECONDS = 30.0, 30.0

# What PyAV lets through from FFmpeg and from its own depths; all of it becomes VideoError.
_DEEP_ERRORS = (av.FFmpegError, OSError, ValueError, LookupError, ArithmeticError, EOFError, MemoryError)


def open_stream(
    local_path: str, *, strict: bool = False
) -> tuple[av.container.InputContainer, av.VideoStream, list[av.VideoStream]]:
    """Container, largest video stream, ready to decode with one thread, and all video streams but cover pictures.

    The path is that of a regular non-empty file, as `open_video` sees to. With `strict` the decoder raises for whatever
    it can see to be damaged.

    Raises:
        av.FFmpegError, OSError, ValueError: it cannot be opened, or has no video stream.
    """
    limits = {"max_pixels": str(MAX_PIXELS)}
    container = av.open(
        f"file:{local_path}",  # so that a colon in the name is not taken for a protocol
        options={"format_whitelist": FORMATS, "protocol_whitelist": "file"} | limits,
        timeout=(OPEN_SECONDS, READ_SECONDS),
    )
    try:
        streams = [
            stream
            for stream in container.streams.video
            if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
        ]
        if not streams:
            raise ValueError("no video stream that can be decoded")
        chosen = max(streams, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
        context = chosen.codec_context
        context.thread_count, context.thread_type = 1, "NONE"
        context.options = limits | ({"err_detect": "explode"} if strict else {})
    except BaseException:
        container.close()
        raise
    return container, chosen, streams


class PyAVReader(VideoReader):
    """`VideoReader` over PyAV. Built by `open_video`, which has checked that the path is a regular non-empty file."""

    backend = "pyav"

    def __init__(self, path: str, local_path: str, strict: bool, index_cache: IndexCache | None = None):
        super().__init__(path, local_path, strict, index_cache)
        self._container = None
        self._reformatter = VideoReformatter()
        self._opened = file_key(local_path) if index_cache is not None else None
        try:
            self._container, self._stream = self._open()
            self._index = self._packet_index()
        except _DEEP_ERRORS as error:
            self.close()
            raise self._error(_words(error)) from error
        except VideoError:
            self.close()
            raise
        self.pts = self._index.seconds.copy()  # the caller's own: the index may be a cache's
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
        container, chosen, _ = open_stream(self.local_path, strict=self.strict)
        try:
            context = chosen.codec_context
            if context.name not in CODECS:
                raise self._error(f"the codec {context.name} is not among those that are read")
            self._check_pixels(context.width, context.height)
            if not context.width * context.height:  # FFmpeg's own check forgets what it refuses
                raise self._error(f"the picture has no size, or more than {MAX_PIXELS} pixels")
            for stream in container.streams:
                if stream is not chosen:
                    stream.discard = Discard.all
        except BaseException:
            container.close()
            raise
        return container, chosen

    def _packet_index(self) -> PacketIndex:
        known = self.index_cache.get(self.local_path) if self.index_cache is not None else None
        if known is not None and self._opened == file_key(self.local_path):  # of the file that is open
            return known
        index = scan_packets(self._container, self._stream)
        self._remember(index)
        return index

    def _remember(self, index: PacketIndex) -> None:
        if self.index_cache is not None:
            self.index_cache.put(self.local_path, index, self._opened)

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise self._error(f"the picture is too large: {width}x{height}, at most {MAX_PIXELS} pixels are accepted")

    def _error(self, reason: str) -> VideoError:
        return VideoError(self.path, self.backend, reason)

    # Geometry

    def _display_size(self) -> tuple[int, int]:
        """(height, width) after rotation; decodes a key frame if nothing has been decoded yet."""
        if self._index.geometry is None:
            self._check_open()
            try:
                self._learn_geometry(self._some_frame())
            except _DEEP_ERRORS as error:
                raise self._error(_words(error)) from error
        height, width, turns = self._index.geometry
        return (width, height) if turns % 2 else (height, width)

    def _learn_geometry(self, frame: av.VideoFrame) -> None:
        """Size and rotation: those of the file's first frame, where the header's size is not this frame's."""
        context = self._stream.codec_context
        if (frame.height, frame.width) != (context.height, context.width):
            frame = self._first_frame()
        self._index.geometry = (frame.height, frame.width, quarter_turns(frame.rotation))
        self._remember(self._index)

    def _some_frame(self) -> av.VideoFrame:
        """The first key frame that decodes, for its size and rotation."""
        context = self._stream.codec_context
        if self._index.seekable and len(self._index.key_ticks):
            key_tick = int(self._index.key_ticks[0])
            packet = next(self._packets_from(key_tick, self._index.packet_of_tick[key_tick]), None)
            context.skip_frame = "DEFAULT"
            try:
                frames = context.decode(packet) + context.decode(None) if packet is not None else []
            except av.FFmpegError:
                frames = []
            context.flush_buffers()
            if frames:
                return frames[0]
        return self._first_frame()

    def _first_frame(self) -> av.VideoFrame:
        for frame in self._decode_all(errors=[]):
            return frame
        raise self._error("no frame could be decoded")

    def _put(self, request: "_Request", index: int, frame: av.VideoFrame) -> None:
        """Convert a frame; one of another size (a stream that changes it) is scaled to the first one's."""
        self._check_pixels(frame.width, frame.height)
        if self._index.geometry is None:
            self._learn_geometry(frame)
        height, width, turns = self._index.geometry
        scaling = "BICUBIC"  # without a change of size: as ffmpeg brings chroma to full size
        if request.size is not None:
            wanted = request.size[::-1] if turns % 2 else request.size
            scaling = scaling if wanted == (height, width) else "BILINEAR"
            height, width = wanted
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=scaling, threads=1
        ).to_ndarray()  # a view
        request.put(index, np.rot90(rgb, turns) if turns else rgb)

    # Decoding

    def _check_open(self) -> None:
        if self._container is None:
            raise ValueError(f"the reader of {self.path} is closed")

    def _read(self, indices: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        self._check_open()
        request = _Request(indices, size)
        try:
            if self._index.seekable:
                for group in self._key_frame_groups(request):
                    self._decode_group(group, request)
            if request.missing:
                self._decode_sequentially(request)
        except _DEEP_ERRORS as error:
            raise self._error(_words(error)) from error
        self.warnings = list(dict.fromkeys(self.warnings))
        return request.out

    def _key_frame_groups(self, request: "_Request") -> list["_Group"]:
        """The wanted frames by the key packet that they are decoded from."""
        groups: dict[int, _Group] = {}
        for index in sorted(request.missing):
            tick = int(self._index.ticks[index])
            key_tick = self._index.key_tick_before(tick)
            if key_tick is not None:  # else: left for the sequential decoder
                groups.setdefault(key_tick, _Group(key_tick)).wanted[tick] = index
        return list(groups.values())

    def _decode_group(self, group: "_Group", request: "_Request") -> None:
        """Decode the wanted frames of one key-frame group; what does not come stays in `request.missing`."""
        context, packet_of_tick, wanted = self._stream.codec_context, self._index.packet_of_tick, group.wanted
        first = packet_of_tick[group.key_tick]
        last = max(packet_of_tick[tick] for tick in wanted)
        for packet in self._packets_from(group.key_tick, first):
            tick = packet.pts
            position = packet_of_tick.get(tick, -1)
            if position < first:
                continue
            context.skip_frame = "DEFAULT" if tick in wanted else "NONREF"
            self._decode(packet, group, request)
            if position >= last:
                break
        self._decode(None, group, request)  # drain: frames still held back for reordering
        context.flush_buffers()
        if group.errors and not self.strict:
            self.warnings += group.errors
            self.num_bad_frames += group.num_suspects
        elif group.errors:  # let the sequential decoder confirm or refute
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

    def _decode(self, packet: av.Packet | None, group: "_Group", request: "_Request") -> None:
        """Feed the decoder. Frames shown before the key frame may refer to the group before it, which the decoder has
        not seen: neither they nor their errors matter."""
        try:
            frames = self._stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            if packet is None or packet.pts >= group.key_tick:
                group.errors.append(f"decoding error: {error.strerror}")
            return
        for frame in frames:
            tick = frame.pts
            if frame.is_corrupt:
                if tick is None or tick >= group.key_tick:
                    group.errors.append("the decoder reports a corrupt frame")
            elif tick in group.wanted:
                self._put(request, group.wanted[tick], frame)
                group.num_suspects += bool(group.errors)  # it may refer to what is damaged

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
        seekable = self._index.seekable
        errors: list[str] = []
        waiting = sorted(request.missing, reverse=True)  # the next one is at the end
        good: av.VideoFrame | None = None
        damaged, errors_before = 0, 0  # errors before the last sound key frame do no harm any more
        position = -1
        for frame in self._decode_all(errors):
            position = self._index.frame_of_tick.get(frame.pts, -1) if seekable else position + 1
            if frame.is_corrupt:
                errors.append("the decoder reports a corrupt frame")
            elif frame.key_frame:
                errors_before = len(errors)
            if position < 0:
                continue
            while waiting and waiting[-1] < position:  # did not come: the good frame before it (or after it) stands in
                damaged += 1
                self._put(request, waiting.pop(), good or frame)
            if waiting and waiting[-1] == position:
                damaged += len(errors) > errors_before
                self._put(request, waiting.pop(), frame)
            good = frame
            # Frames that are recognised by counting are the right ones only if none was lost on the way.
            if not waiting and (seekable or not self.strict):
                break
        if good is None:
            raise self._error("no frame could be decoded" + (f" ({errors[0]})" if errors else ""))
        damaged += len(waiting)
        if damaged:
            errors.append(f"{damaged} wanted frames are missing or damaged")
        if self.strict and not seekable and position + 1 != self.num_frames:
            errors.append(f"{position + 1} frames came of {self.num_frames} packets")
        if errors and self.strict:
            raise self._error("; ".join(dict.fromkeys(errors)))
        for index in waiting:
            self._put(request, index, good)
        self.num_bad_frames += damaged
        self.warnings += errors


class _Group:
    """Wanted frames that are decoded from one key frame, and what went wrong on the way."""

    def __init__(self, key_tick: int):
        self.key_tick = key_tick
        self.wanted: dict[int, int] = {}  # time -> presentation index
        self.errors: list[str] = []
        self.num_suspects = 0  # wanted frames that came after an error


class _Request:
    """The frames that one call wants: filled as they come, repeats included."""

    def __init__(self, indices: np.ndarray, size: tuple[int, int] | None):
        self.size = size  # (height, width) after rotation; None: the video's own
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
