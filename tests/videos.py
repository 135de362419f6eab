"""Tiny generated videos for tests: every frame tells its number, and the encoder's options can be chosen."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def numbered_frames(num_frames: int, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """uint8 (T, H, W, 3): a smooth random picture; the number is written as 8 black or white blocks in the top rows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phases = rng.uniform(0, 2 * np.pi, 3)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        for c in range(3):
            frames[t, ..., c] = 128 + 90 * np.sin(phases[c] + (x + 2 * t) / 17 + y / (11 + 3 * c))
        for bit in range(8):
            frames[t, :8, bit * width // 8 : (bit + 1) * width // 8] = 255 if t >> bit & 1 else 0
    return frames


def frame_number(frame: np.ndarray) -> int:
    """The number in a decoded frame of `numbered_frames` (uint8 (H, W, 3))."""
    width = frame.shape[1]
    blocks = [frame[2:6, bit * width // 8 + 2 : (bit + 1) * width // 8 - 2].mean() > 128 for bit in range(8)]
    return sum(1 << bit for bit, on in enumerate(blocks) if on)


def write_video(
    path: Path,
    num_frames: int = 60,
    *,
    size: tuple[int, int] = (64, 96),
    fps: int = 30,
    gop: int = 30,
    b_frames: int = 0,
    times: list[int] | None = None,
    rotation: int | None = None,
    codec: str = "libx264",
    seed: int = 0,
) -> str:
    """Encode `numbered_frames`; the container follows from the path's suffix.

    Args:
        size: (height, width), both even.
        times: presentation times in units of 1 / fps, for a variable frame rate; default 0, 1, 2, ...
        rotation: display rotation in degrees counter-clockwise.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if codec == "libx264":
            stream.options = {"preset": "veryfast", "crf": "18", "bf": str(b_frames), "sc_threshold": "0"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, fps)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for t, array in enumerate(numbered_frames(num_frames, *size, seed=seed)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = (times[t] if times is not None else t), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def damage(path: str, first: float, last: float) -> None:
    """Overwrite a share of an mp4's media data, from `first` to `last` (0..1), with zeros."""
    content = bytearray(Path(path).read_bytes())
    start = content.index(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big") - 8
    begin, end = start + int(size * first), start + int(size * last)
    content[begin:end] = bytes(end - begin)
    Path(path).write_bytes(content)


def decode_plainly(path: str) -> np.ndarray:
    """All frames by PyAV's simplest loop, without any rotation: the reference for the readers."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def unreadable_files(folder: Path) -> list[str]:
    """Names of things in a folder that no reader can read, beside `whole.mp4`; one of them is not there."""
    whole = Path(write_video(folder / "whole.mp4", 30)).read_bytes()
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"not a video\n",
        "page.mp4": b"<html><body>404</body></html>" * 50,
        "zeros.mp4": bytes(20000),
        "noise.mp4": np.random.default_rng(0).bytes(20000),
        "no_index.mp4": whole[: len(whole) // 2],  # the index stands at the end
        "concat.mp4": b"ffconcat version 1.0\nfile whole.mp4\n",
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nwhole.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo.mp4")
    (folder / "folder.mp4").mkdir()
    return [*contents, "fifo.mp4", "folder.mp4", "missing.mp4"]
