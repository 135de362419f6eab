"""What the packets of a video stream tell without decoding: how many frames, when they are shown, where one can seek.

Headers lie (hidden edit-list frames, missing counts, durations that include the start), packets do not. Reading them
all costs about a millisecond for a ten-second clip; `revvideo.data.readers.index_cache` saves it the second time.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import av
import numpy as np

MAX_PACKETS = 2**20  # 9.7 hours at 30 fps; a corrupt sample table can claim many more


def _no_ticks() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass
class PacketIndex:
    """The packets of one stream, in a few arrays (about 24 bytes a frame).

    Attributes:
        seconds: float64 (frames,), presentation order.
        fps: average frame rate.
        seekable: every packet has a time of its own, so that frames can be recognised by it after a seek.
        ticks: int64 (frames,), times in units of the stream's time base, presentation order; empty if not seekable.
        packet_ticks: int64 (packets,), times in decoding order, hidden packets included; empty if not seekable.
        key_ticks: int64, times of the key packets, ascending.
        problems: what the demuxer reported (corrupt packets, a read error), one line each.
        geometry: (height, width, quarter turns) of the first frame as stored, once one has been decoded.
    """

    seconds: np.ndarray
    fps: float
    seekable: bool = False
    ticks: np.ndarray = field(default_factory=_no_ticks)
    packet_ticks: np.ndarray = field(default_factory=_no_ticks)
    key_ticks: np.ndarray = field(default_factory=_no_ticks)
    problems: list[str] = field(default_factory=list)
    geometry: tuple[int, int, int] | None = None

    @cached_property
    def frame_of_tick(self) -> dict[int, int]:
        """Time -> presentation index; empty if not seekable."""
        return {tick: frame for frame, tick in enumerate(self.ticks.tolist())}

    @cached_property
    def packet_of_tick(self) -> dict[int, int]:
        """Time -> position in decoding order; empty if not seekable."""
        return {tick: position for position, tick in enumerate(self.packet_ticks.tolist())}

    @property
    def num_bytes(self) -> int:
        """What the arrays take in memory, with the dictionaries that a reader makes of them."""
        arrays = (self.seconds, self.ticks, self.packet_ticks, self.key_ticks)
        return sum(array.nbytes for array in arrays) + 200 * len(self.packet_ticks) + 1000

    def key_tick_before(self, tick: int) -> int | None:
        """The last key packet shown not later than `tick`: with open GOPs, the one that `tick` can be decoded from."""
        k = int(np.searchsorted(self.key_ticks, tick, side="right")) - 1
        return int(self.key_ticks[k]) if k >= 0 else None


def scan_packets(container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
    """Read all packets of `stream` once, decoding none.

    Raises:
        ValueError: no packet at all, or more than `MAX_PACKETS`.
    """
    pts, dts, keys, hidden, num_corrupt, problems = [], [], [], [], 0, []
    try:
        for packet in container.demux(stream):
            if packet.size == 0:  # the flush packet at the end
                continue
            pts.append(packet.pts)
            dts.append(packet.dts)
            keys.append(packet.is_keyframe)
            hidden.append(packet.is_discard)
            num_corrupt += packet.is_corrupt
            if len(pts) > MAX_PACKETS:
                raise ValueError(f"more than {MAX_PACKETS} packets")
    except av.FFmpegError as error:
        problems.append(f"reading stopped after {len(pts)} packets: {error.strerror}")
    if num_corrupt:
        problems.append(f"{num_corrupt} corrupt packets")
    if len(pts) == sum(hidden):
        raise ValueError("no video packets" if not problems else f"no video packets; {problems[0]}")
    index = _index_of(container, stream, pts, dts, keys, hidden)
    span = float(index.seconds[-1] - index.seconds[0])
    index.problems = problems + _fewer_than_named(container, stream, len(pts), span)
    if container.format.name.startswith("matroska"):
        index.problems += _shorter_than_named(container, float(index.seconds[-1]) + 1 / index.fps)
    return index


def _index_of(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    pts: list[int | None],
    dts: list[int | None],
    keys: list[bool],
    hidden: list[bool],
) -> PacketIndex:
    """Presentation order and times out of what the packets say; lists in decoding order."""
    time_base = stream.time_base or Fraction(0)
    if time_base <= 0 or None in pts:
        fps = float(stream.guessed_rate or stream.average_rate or 30)
        return PacketIndex(np.arange(len(pts) - sum(hidden)) / fps, fps)
    header_fps = stream.average_rate or stream.guessed_rate
    if len(set(pts)) < len(pts):  # time stamps start again in the middle (concatenated streams)
        ticks = _join_segments(pts, dts, hidden)
        return PacketIndex(ticks * float(time_base), float(header_fps or 30))
    packet_ticks = np.array(pts, np.int64)
    ticks = np.sort(packet_ticks[~np.array(hidden)])
    seconds, fps = ticks * float(time_base), _average_fps(ticks, time_base, header_fps)
    if container.format.name == "avi" and pts != dts:
        # AVI stores decoding times only. With B-frames (worst: MPEG-4 "packed" ones) the times that FFmpeg makes up for
        # the packets are not those that it gives to the frames, so frames are recognised by counting them.
        return PacketIndex(seconds, fps)
    return PacketIndex(seconds, fps, True, ticks, packet_ticks, np.sort(packet_ticks[np.array(keys)]))


def _fewer_than_named(
    container: av.container.InputContainer, stream: av.VideoStream, num_packets: int, seconds: float
) -> list[str]:
    """A line when the file's own table names more frames than came, and no edit list explains it."""
    if stream.frames <= num_packets:
        return []
    missing = sum(entry.pos + entry.size > container.size for entry in stream.index_entries)
    if missing:  # a download that stopped
        return [f"the file ends early: the data of {missing} frames is missing"]
    named_seconds = float((stream.duration or 0) * (stream.time_base or 0))
    if named_seconds > 1.1 * seconds + 0.2:  # an edit list shortens the duration with the frames
        return [f"the file names {stream.frames} frames ({named_seconds:.3g} s), {num_packets} ({seconds:.3g} s) came"]
    return []


def _shorter_than_named(container: av.container.InputContainer, end: float) -> list[str]:
    """A line when a Matroska file, which has no table of frames, names a later end of its only stream.

    Args:
        container: the file. With sound, the end that it names may be the sound's.
        end: of the last frame, in seconds.
    """
    named = (container.duration or 0) / av.time_base  # includes the time before the first frame
    if len(container.streams) == 1 and named > 1.1 * end + 0.2:
        return [f"the file ends early: it names {named:.3g} s, {end:.3g} s came"]
    return []


def _join_segments(pts: list[int], dts: list[int | None], hidden: list[bool]) -> np.ndarray:
    """Presentation order when the clock jumps back: sort within each run of rising dts; times never run backwards."""
    runs: list[list[int]] = [[]]
    last = None
    for tick, decode_tick, is_hidden in zip(pts, dts, hidden):
        if last is not None and decode_tick is not None and decode_tick < last:
            runs.append([])
        last = decode_tick if decode_tick is not None else last
        if not is_hidden:
            runs[-1].append(tick)
    return np.maximum.accumulate(np.array([tick for run in runs for tick in sorted(run)], np.int64))


def _average_fps(ticks: np.ndarray, time_base: Fraction, header_fps: Fraction | None) -> float:
    """Measured on the frames; the header's exact fraction where the two agree within 10 % (time stamps are rounded)."""
    span = int(ticks[-1] - ticks[0])
    if span <= 0:
        return float(header_fps) if header_fps else 30.0
    measured = Fraction(len(ticks) - 1, span) / time_base
    if header_fps and abs(header_fps / measured - 1) < Fraction(1, 10):
        return float(header_fps)
    return float(measured)
