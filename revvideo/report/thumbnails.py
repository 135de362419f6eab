"""Videos as small moving pictures in the page: a strip of frames that the style sheet plays."""

import base64
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from revvideo.data.image_dataset import open_picture
from revvideo.data.video_reader import VideoError, open_video
from revvideo.errors import InputError
from revvideo.report.markup import Html, tag

NUM_FRAMES = 8  # the style sheet's animation has as many steps
HEIGHT, MAX_WIDTH = 96, 240  # pixels of one frame
QUALITY = 55
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"))


@dataclass
class Budget:
    """What the moving pictures of a page may take together; one that would exceed it is left out, with a word.

    Attributes:
        num_bytes: of the page.
        deadline: on the monotonic clock, in seconds.
    """

    num_bytes: int
    deadline: float

    @classmethod
    def of(cls, num_bytes: int, seconds: float) -> "Budget":
        return cls(num_bytes, time.monotonic() + seconds)


def thumbnail(path: str, budget: Budget) -> Html:
    """A video or picture as a moving picture, or why there is none.

    Args:
        path: as predictions.npz has it.
        budget: what is left; it is reduced by what this one takes.
    """
    if budget.num_bytes <= 0 or time.monotonic() > budget.deadline:
        return _instead("left out: the report is large, or took long, already")
    try:
        frames = read_frames(path)
    except (VideoError, InputError, OSError) as error:
        return _instead(getattr(error, "reason", None) or str(error))
    strip, width = encode_strip(frames)
    if len(strip) > budget.num_bytes:
        return _instead("left out: the report would become too large")
    budget.num_bytes -= len(strip)
    frames_class = "film" if len(frames) > 1 else "film still"
    style = f"width:{width}px;background-image:url({strip})"
    return tag("div", role="img", aria_label=f"frames of {Path(path).name}", class_=frames_class, style=style)


def _instead(reason: str) -> Html:
    return tag("div", f"no picture: {reason}", class_="film missing")


def read_frames(path: str) -> np.ndarray:
    """Frames spread over the video, small: uint8 (8, 96, W, 3); of a picture (1, 96, W, 3).

    Raises:
        VideoError, InputError, OSError: it cannot be read.
    """
    if Path(path).suffix.lower() in PICTURES:
        picture = open_picture(path)
        height, width = _size(picture.height, picture.width)
        return np.asarray(picture.resize((width, height)))[None]
    with open_video(path, "frames" if Path(path).is_dir() else "pyav") as video:
        # The middles of 8 equal parts: neither a black first frame nor a last one that cannot be decoded.
        places = (np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES * video.num_frames
        return video.frames(places.astype(np.int64), size=_size(video.height, video.width))


def _size(height: int, width: int) -> tuple[int, int]:
    return HEIGHT, max(16, min(MAX_WIDTH, round(width * HEIGHT / height)))


def encode_strip(frames: np.ndarray) -> tuple[str, int]:
    """uint8 (N, H, W, 3) side by side as a data URI (WebP), and the width of one frame in pixels."""
    from PIL import Image

    strip = Image.fromarray(np.ascontiguousarray(np.concatenate(list(frames), axis=1)))  # (H, N W, 3)
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=QUALITY, method=4)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/webp;base64,{encoded}", frames.shape[2]
