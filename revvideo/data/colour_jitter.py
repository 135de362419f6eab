"""Colour jitter of uint8 clips: torchvision's ColorJitter with PIL's results, the same for all frames of a clip."""

from dataclasses import dataclass

import numpy as np
import torch

from revvideo.data import colour_operations
from revvideo.errors import InputError

MAX_JITTER = 100  # factors above 128 would leave the integers of `colour_operations`


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue in random order: `(clip uint8 (T, 3, H, W), generator) -> clip`.

    Attributes:
        brightness, contrast, saturation: v means a factor uniform in [max(0, 1 - v), 1 + v]; 0 leaves it out
            (AUG.COLOR_JITTER sets all three).
        hue: v means a turn of the hue circle uniform in [-v, v], in full turns, at most 0.5; 0 leaves it out.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= MAX_JITTER:
                raise InputError(
                    f"colour jitter of {name} is {getattr(self, name)}; expected 0 to {MAX_JITTER} (AUG.COLOR_JITTER)"
                )
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"colour jitter of hue is {self.hue}; expected 0 to 0.5 of a full turn")

    def draw(self, generator: np.random.Generator) -> list[tuple[str, float]]:
        """(name, factor or turn) in the order in which they are applied."""
        changes = []
        for name in np.array(["brightness", "contrast", "saturation", "hue"])[generator.permutation(4)].tolist():
            width = getattr(self, name)
            if width > 0:
                low, high = (-width, width) if name == "hue" else (max(0.0, 1 - width), 1 + width)
                changes.append((name, float(generator.uniform(low, high))))
        return changes

    def __call__(self, clip: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """uint8 (T, 3, H, W) -> the same, with channels-last strides; the input is not changed."""
        changes = self.draw(generator)
        if not changes:
            return clip
        frames = np.ascontiguousarray(clip.permute(0, 2, 3, 1).numpy())  # (T, H, W, 3)
        for name, value in changes:
            frames = _change(frames, name, value)
        return torch.from_numpy(frames).permute(0, 3, 1, 2)


def _change(frames: np.ndarray, name: str, value: float) -> np.ndarray:
    if name == "brightness":
        return colour_operations.apply_tables(frames, colour_operations.brightness_table(value))
    if name == "contrast":
        return colour_operations.apply_tables(frames, colour_operations.contrast_tables(frames, value))
    if name == "saturation":
        return colour_operations.saturation(frames, value)
    return colour_operations.shift_hue(frames, value)
