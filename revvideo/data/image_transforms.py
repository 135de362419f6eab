"""Transforms of pictures for the image models: PIL picture in, uint8 clip of one frame (1, C, H, W) out.

As PySlowFast trains and tests on ImageNet (`datasets/imagenet.py` with AUG.ENABLE), after timm: PIL's antialiased
resize, which the published accuracies were reached with. Normalising and random erasing follow on the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from revvideo.data import geometric_operations, sampling
from revvideo.data.transforms import as_clip, check_box_ranges, horizontal_flip
from revvideo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_INTERPOLATIONS = (*geometric_operations.INTERPOLATIONS, "random")


def mean_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """DATA.MEAN (0..1) as levels: what RandAugment fills pictures with."""
    return tuple(min(255, round(255 * value)) for value in mean)


@dataclass(frozen=True)
class ImageTrainTransform:
    """Random resized crop, flip and augmentation of one picture.

    Attributes:
        crop_size: side of the result in pixels (DATA.TRAIN_CROP_SIZE).
        interpolation: of the resize: nearest, bilinear, bicubic, or random: bilinear or bicubic (AUG.INTERPOLATION).
        relative_scales: (smallest, largest) share of the picture's area.
        relative_aspects: (smallest, largest) width / height of the box.
        flip: mirror with probability 0.5 (DATA.RANDOM_FLIP).
        augment: `rand_augment.RandAugment` filled with `mean_colour`, or `colour_jitter.ColourJitter`, or None.
    """

    crop_size: int
    interpolation: str = "bicubic"
    relative_scales: Sequence[float] = (0.08, 1.0)
    relative_aspects: Sequence[float] = (3 / 4, 4 / 3)
    flip: bool = True
    augment: Callable[[torch.Tensor, np.random.Generator], torch.Tensor] | None = None

    def __post_init__(self):
        if self.interpolation not in _INTERPOLATIONS:
            raise InputError(
                f"AUG.INTERPOLATION is {self.interpolation!r}; expected one of {', '.join(_INTERPOLATIONS)}"
            )
        check_box_ranges(self.relative_scales, self.relative_aspects)

    def __call__(self, picture: "Image", generator: np.random.Generator) -> torch.Tensor:
        """A PIL picture of any mode -> uint8 (1, 3, crop_size, crop_size), RGB."""
        from PIL import Image

        picture = picture.convert("RGB")
        y, x, height, width = sampling.random_resized_crop_box(
            picture.height, picture.width, self.relative_scales, self.relative_aspects, generator
        )
        interpolation = self.interpolation
        if interpolation == "random":
            interpolation = ("bilinear", "bicubic")[int(generator.integers(0, 2))]
        cropped = picture.crop((x, y, x + width, y + height))
        clip = _as_clip(cropped.resize((self.crop_size,) * 2, Image.Resampling[interpolation.upper()]))
        if self.flip and generator.random() < 0.5:
            clip = horizontal_flip(clip)
        return clip if self.augment is None else self.augment(clip, generator)


@dataclass(frozen=True)
class ImageEvalTransform:
    """Shorter side to int(crop_size / crop_ratio) with bicubic interpolation, then the centre.

    Attributes:
        crop_size: side of the result in pixels (DATA.TEST_CROP_SIZE).
        crop_ratio: crop_size as a share of the shorter side (DATA.IN_VAL_CROP_RATIO).
    """

    crop_size: int
    crop_ratio: float = 0.875

    def __post_init__(self):
        if not 0 < self.crop_ratio <= 1:
            raise InputError(f"DATA.IN_VAL_CROP_RATIO is {self.crop_ratio}; expected more than 0 and at most 1")

    def __call__(self, picture: "Image") -> torch.Tensor:
        """A PIL picture of any mode -> uint8 (1, 3, crop_size, crop_size), RGB."""
        from PIL import Image

        picture = picture.convert("RGB")
        short = int(self.crop_size / self.crop_ratio)
        width, height = picture.size
        size = (short, int(short * height / width)) if width < height else (int(short * width / height), short)
        resized = picture.resize(size, Image.Resampling.BICUBIC)
        x, y = (round((side - self.crop_size) / 2.0) for side in size)
        return _as_clip(resized.crop((x, y, x + self.crop_size, y + self.crop_size)))


def _as_clip(picture: "Image") -> torch.Tensor:
    return as_clip(np.array(picture)[None])
