"""A contact sheet: frames of a clip and, below each, the same frame under its map."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

CELL_PIXELS = 160  # height of a frame on the sheet
MOST_COLUMNS = 8
GAP, LINE = 4, 18  # pixels between cells, and for a line of text

_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def contact_sheet(
    title: str,
    frames: Sequence[np.ndarray],
    overlays: Sequence[np.ndarray],
    seconds: Sequence[np.ndarray | None],
) -> "Image.Image":
    """Draw a sheet: for each view a row of frames over the row of its overlays, with times between them.

    Args:
        title: one line on top; cut off where the sheet ends.
        frames: of each view uint8 `(T, H, W, 3)`; more than `MOST_COLUMNS` frames are thinned evenly.
        overlays: of each view, the same shapes.
        seconds: of each view the times of its frames `(T,)`; None shows none (pictures).

    Returns:
        a PIL image, RGB.
    """
    from PIL import Image, ImageDraw

    num_frames, height, width = frames[0].shape[:3]
    chosen = shown_frames(num_frames)
    cell = (max(1, round(width * CELL_PIXELS / height)), CELL_PIXELS)
    row = 2 * (CELL_PIXELS + GAP) + LINE
    size = (GAP + len(chosen) * (cell[0] + GAP), 2 * GAP + LINE + len(frames) * (row + GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill=_INK)
    for view, (below, above, times) in enumerate(zip(frames, overlays, seconds, strict=True)):
        top = 2 * GAP + LINE + view * (row + GAP)
        for column, frame in enumerate(chosen):
            left = GAP + column * (cell[0] + GAP)
            for line, picture in enumerate((below[frame], above[frame])):
                scaled = Image.fromarray(picture).resize(cell, Image.Resampling.BICUBIC)
                sheet.paste(scaled, (left, top + line * (CELL_PIXELS + GAP)))
            if times is not None:
                draw.text((left, top + 2 * (CELL_PIXELS + GAP)), f"{times[frame]:.2f} s", fill=_INK)
    return sheet


def shown_frames(num_frames: int) -> list[int]:
    """The frames that stand on a sheet: all, or `MOST_COLUMNS` from the first to the last."""
    count = min(num_frames, MOST_COLUMNS)
    return [round(place) for place in np.linspace(0, num_frames - 1, count)]
