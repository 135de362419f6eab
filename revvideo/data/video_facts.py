"""What a file says of its video stream beyond the frames: codec, rotation, hidden frames, pixel shape and colours."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from revvideo.data.readers.pyav import open_stream

RATE_TOLERANCE = 0.01  # 30000/1001 counts as 30


@dataclass(frozen=True)
class VideoFacts:
    """Facts of the largest video stream of a file that is no cover picture.

    Attributes:
        codec: FFmpeg's name, such as "h264".
        pixel_format: FFmpeg's name, such as "yuv420p".
        num_channels: 3 for colour, 1 for gray.
        bit_depth: bits of a value of a channel.
        rotation: degrees counter-clockwise by which a player turns the picture.
        interlaced: the first frame consists of two fields.
        pixel_aspect: width of a pixel over its height.
        num_hidden_frames: frames in the file that an edit list takes out.
        num_video_streams: video streams of the file, cover pictures left out.
    """

    codec: str
    pixel_format: str
    num_channels: int
    bit_depth: int
    rotation: int
    interlaced: bool
    pixel_aspect: Fraction
    num_hidden_frames: int
    num_video_streams: int


def read_facts(local_path: str) -> VideoFacts:
    """Reads all packets and decodes the first frame of a file that `open_video` has accepted before.

    Raises:
        av.FFmpegError, OSError, ValueError: the file cannot be read, or its first frame does not decode.
    """
    container, stream, streams = open_stream(local_path)
    with container:
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("no frame could be decoded")
        components = first.format.components
        codec, aspect = stream.codec_context.codec.canonical_name, stream.codec_context.sample_aspect_ratio
    return VideoFacts(
        codec=codec,
        pixel_format=first.format.name,
        num_channels=1 if len(components) < 3 else 3,
        bit_depth=max(component.bits for component in components),
        rotation=int(first.rotation) % 360,
        interlaced=bool(first.interlaced_frame),
        pixel_aspect=Fraction(aspect) if aspect else Fraction(1),
        num_hidden_frames=_num_hidden(local_path),
        num_video_streams=len(streams),
    )


def _num_hidden(local_path: str) -> int:
    container, stream, _ = open_stream(local_path)
    with container:
        return sum(packet.is_discard for packet in container.demux(stream) if packet.size)


def is_variable_rate(pts: np.ndarray) -> bool:
    """Whether frames follow each other at different distances, beyond what rounding to milliseconds makes.

    Args:
        pts: float64 (frames,), seconds, presentation order.
    """
    gaps = np.diff(pts)
    if gaps.size < 2:
        return False
    usual = float(np.median(gaps))
    return float(np.abs(gaps - usual).max()) > 0.05 * usual + 0.0015


def oddities(facts: VideoFacts, pts: np.ndarray, fps: float, target_fps: float) -> list[str]:
    """What is unusual, in words; none of it keeps revvideo from reading the video.

    Args:
        facts: of `read_facts`.
        pts: float64 (frames,), seconds, presentation order.
        fps: average frames per second.
        target_fps: the rate that is usual.
    """
    notes = []
    if is_variable_rate(pts):
        notes.append("variable frame rate")
    if abs(fps / target_fps - 1) > RATE_TOLERANCE:
        notes.append(f"{fps:.4g} frames per second")
    if facts.rotation:
        notes.append(f"rotated by {facts.rotation} degrees")
    if facts.num_hidden_frames:
        notes.append(f"an edit list hides {facts.num_hidden_frames} frames")
    if facts.num_channels != 3:
        notes.append(f"not 3 channels ({facts.pixel_format})")
    if facts.bit_depth != 8:
        notes.append(f"{facts.bit_depth} bits ({facts.pixel_format})")
    if facts.num_video_streams > 1:
        notes.append(f"{facts.num_video_streams} video streams, the largest counts")
    if facts.interlaced:
        notes.append("interlaced")
    if facts.pixel_aspect != 1:
        notes.append(f"pixels of {facts.pixel_aspect.numerator}:{facts.pixel_aspect.denominator}")
    return notes
