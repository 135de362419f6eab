"""Maps of evidence over the frames that they belong to, and the clip file that shows them."""

from fractions import Fraction
from pathlib import Path

import numpy as np

from revvideo.paths import replace_file

STRENGTH = 0.7  # share of the colour where a map is highest; where it is 0, the frame is as it was
SHOWN_PIXELS = 448  # smaller clips are enlarged by a whole number to about this height

# From black over red to light yellow, evenly rising in lightness: points of matplotlib's inferno (public domain).
_COLOURS = np.array(
    [
        (0, 0, 4),
        (27, 12, 65),
        (74, 12, 107),
        (120, 28, 109),
        (165, 44, 96),
        (207, 68, 70),
        (237, 105, 37),
        (251, 155, 6),
        (247, 209, 61),
        (252, 255, 164),
    ],
    np.float32,
)


def relative_heat(maps: np.ndarray) -> np.ndarray:
    """Maps of one video over their highest value, 0 to 1, so that times can be compared; maps of zeros stay zeros."""
    highest = maps.max()
    return maps / highest if highest > 0 else np.zeros_like(maps)


def colours(heat: np.ndarray) -> np.ndarray:
    """Colours of values from 0 to 1: float32 `(..., 3)`, levels of RGB."""
    place = np.clip(heat, 0.0, 1.0) * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(np.int64), len(_COLOURS) - 2)
    share = (place - low)[..., None].astype(np.float32)
    return (1 - share) * _COLOURS[low] + share * _COLOURS[low + 1]


def overlay(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Frames under their maps; the higher the value, the more of its colour.

    Args:
        frames: uint8 `(T, H, W, 3)`, RGB.
        heat: float32 `(T, H, W)`, 0 to 1.

    Returns:
        uint8 `(T, H, W, 3)`.
    """
    share = (STRENGTH * np.clip(heat, 0.0, 1.0))[..., None]
    return np.rint((1 - share) * frames + share * colours(heat)).astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray, frames_per_second: float) -> None:
    """Write an H.264 file that plays everywhere; small frames are enlarged, odd sides lose their last row or column.

    Args:
        path: the file, which appears when it is whole.
        frames: uint8 `(T, H, W, 3)`, RGB.
        frames_per_second: above 0.
    """
    import av

    factor = max(1, round(SHOWN_PIXELS / frames.shape[1]))
    frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = (side - side % 2 for side in frames.shape[1:3])
    rate = Fraction(frames_per_second).limit_denominator(1000)

    def write(target: Path) -> None:
        with av.open(str(target), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "18", "preset": "veryfast"}
            for frame in frames[:, :height, :width]:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())

    replace_file(path, write)
