"""Spatial transforms on uint8 clips, the same for all frames of a clip, and the float conversion on the device.

Clips are uint8 (T, C, H, W) with channels-last strides: the reader's (T, H, W, C) array viewed, never copied. torch's
uint8 resize works on that layout with vector instructions, several times faster than PySlowFast's float path and within
one grey level of it (bilinear, align_corners False, no antialias).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from revvideo.data import sampling
from revvideo.errors import InputError


def as_clip(frames: np.ndarray) -> torch.Tensor:
    """View of uint8 (T, H, W, C) frames as (T, C, H, W) with channels-last strides; no copy."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def resize(clip: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize of uint8 (T, C, H, W) to (T, C, height, width); the clip itself if it has that size."""
    if clip.shape[-2:] == (height, width):
        return clip
    return F.interpolate(clip, size=(height, width), mode="bilinear", align_corners=False, antialias=False)


def crop(clip: torch.Tensor, y: int, x: int, height: int, width: int) -> torch.Tensor:
    """View of a box of (T, C, H, W)."""
    return clip[:, :, y : y + height, x : x + width]


def horizontal_flip(clip: torch.Tensor) -> torch.Tensor:
    """Mirror left and right: (T, C, H, W), a copy."""
    return clip.flip(-1)


def resize_short_side(clip: torch.Tensor, size: int) -> torch.Tensor:
    """Scale (T, C, H, W) so that the shorter side has `size` pixels."""
    return resize(clip, *sampling.short_side_size(clip.shape[-2], clip.shape[-1], size))


def check_box_ranges(relative_scales: Sequence[float], relative_aspects: Sequence[float]) -> None:
    """Raises InputError unless both are the [smallest, largest] that a random resized crop can be drawn from."""
    for key, values in (("SCALES", relative_scales), ("ASPECT", relative_aspects)):
        if len(values) != 2 or not 0 < values[0] <= values[1]:
            raise InputError(f"DATA.TRAIN_JITTER_{key}_RELATIVE is {values}; expected [smallest, largest] > 0")


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, flip and augmentation of one training clip.

    Random resized crop where `relative_scales` is given (DATA.TRAIN_JITTER_SCALES_RELATIVE and _ASPECT_RELATIVE), else
    short-side jitter in `short_side_range` pixels and a random crop.

    Attributes:
        crop_size: side of the result in pixels (DATA.TRAIN_CROP_SIZE).
        short_side_range: (smallest, largest) in pixels (DATA.TRAIN_JITTER_SCALES).
        relative_scales: (smallest, largest) share of the picture's area, or empty.
        relative_aspects: (smallest, largest) width / height of the box.
        flip: mirror with probability 0.5 (DATA.RANDOM_FLIP).
        inverse_uniform: draw the short side uniformly in its inverse (DATA.INV_UNIFORM_SAMPLE).
        augment: `(clip, generator) -> clip` of the same shape and dtype, such as `rand_augment.RandAugment`, or None.
        augment_first: augment the decoded frames before the crop, as PySlowFast does, instead of the finished crop.
            The crop has fewer pixels, so augmenting it is faster; a fill colour or a translation relative to the
            width then refers to the crop.
    """

    crop_size: int
    short_side_range: Sequence[int] = (256, 320)
    relative_scales: Sequence[float] = ()
    relative_aspects: Sequence[float] = (3 / 4, 4 / 3)
    flip: bool = True
    inverse_uniform: bool = False
    augment: Callable[[torch.Tensor, np.random.Generator], torch.Tensor] | None = None
    augment_first: bool = False

    def __post_init__(self):
        if self.relative_scales:
            check_box_ranges(self.relative_scales, self.relative_aspects)
        elif len(self.short_side_range) != 2 or not (
            self.crop_size <= self.short_side_range[0] <= self.short_side_range[1]
        ):
            raise InputError(
                f"DATA.TRAIN_JITTER_SCALES is {self.short_side_range}; expected [smallest, largest] with "
                f"DATA.TRAIN_CROP_SIZE = {self.crop_size} <= smallest <= largest"
            )

    def __call__(self, clip: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """uint8 (T, C, H, W) -> uint8 (T, C, crop_size, crop_size), channels-last strides or a view of such."""
        if self.augment is not None and self.augment_first:
            clip = self.augment(clip, generator)
        height, width = clip.shape[-2:]
        if self.relative_scales:
            box = sampling.random_resized_crop_box(
                height, width, self.relative_scales, self.relative_aspects, generator
            )
            clip = resize(crop(clip, *box), self.crop_size, self.crop_size)
        else:
            size = sampling.random_short_side(*self.short_side_range, generator, self.inverse_uniform)
            clip = resize_short_side(clip, size)
            y, x = sampling.random_crop_offsets(*clip.shape[-2:], self.crop_size, generator)
            clip = crop(clip, y, x, self.crop_size, self.crop_size)
        if self.flip and generator.random() < 0.5:
            clip = horizontal_flip(clip)
        if self.augment is not None and not self.augment_first:
            clip = self.augment(clip, generator)
        return clip


@dataclass(frozen=True)
class EvalTransform:
    """Short-side resize, then one of the crops at the start, centre or end of the longer side.

    Attributes:
        crop_size: side of the result in pixels (DATA.TEST_CROP_SIZE).
        short_side: pixels. PySlowFast: DATA.TRAIN_JITTER_SCALES[0] for one crop, DATA.TEST_CROP_SIZE for three.
    """

    crop_size: int
    short_side: int

    def __post_init__(self):
        if self.short_side < self.crop_size:
            raise InputError(
                f"the short side {self.short_side} (DATA.TRAIN_JITTER_SCALES[0]) is smaller than the crop "
                f"{self.crop_size} (DATA.TEST_CROP_SIZE)"
            )

    def __call__(self, clip: torch.Tensor, spatial_index: int = 1) -> torch.Tensor:
        """uint8 (T, C, H, W) -> uint8 (T, C, crop_size, crop_size); 0, 1, 2 = start, centre, end of the longer side."""
        return self.crop(resize_short_side(clip, self.short_side), spatial_index)

    def crop(self, resized: torch.Tensor, spatial_index: int) -> torch.Tensor:
        """The crop alone, of a clip that `resize_short_side` has made: several crops share one resize."""
        y, x = sampling.uniform_crop_offsets(*resized.shape[-2:], self.crop_size, spatial_index)
        return crop(resized, y, x, self.crop_size, self.crop_size)


def normalise(
    video: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    reverse_channels: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """(x / 255 - mean) / std on whatever device the batch is on.

    Args:
        video: uint8 (B, T, C, H, W), RGB.
        mean, std: one number a channel, in [0, 1], RGB order.
        reverse_channels: return BGR (DATA.REVERSE_INPUT_CHANNEL; swapped after normalising, as PySlowFast does).
        dtype: of the result; the arithmetic is float32.

    Returns:
        (B, C, T, H, W).
    """
    mean = torch.tensor(mean, dtype=torch.float32, device=video.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(std, dtype=torch.float32, device=video.device).view(1, -1, 1, 1, 1)
    clips = video.permute(0, 2, 1, 3, 4).to(torch.float32)  # (B, C, T, H, W)
    clips = clips.div_(255.0).sub_(mean).div_(std)
    if reverse_channels:
        clips = clips.flip(1)
    return clips.to(dtype)
