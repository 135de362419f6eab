"""Map-style data sets of pictures: clips of one frame, so that loaders, training and evaluation are those of videos.

A picture is decoded by PIL, once, whatever number of crops is cut from it.
"""

import os
import stat
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from revvideo.data import sampling
from revvideo.data.dataset import MAX_ASPECT, read_or_replace
from revvideo.data.manifest import Manifest
from revvideo.data.transforms import as_clip
from revvideo.data.video_reader import MAX_PIXELS, VideoError
from revvideo.paths import path_manager

if TYPE_CHECKING:
    from PIL import Image

    from revvideo.data.image_transforms import ImageEvalTransform, ImageTrainTransform

_READER = "PIL"
# What PIL lets through for a file that is no picture, or half of one.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError, MemoryError, struct.error)


def open_picture(path: str) -> "Image.Image":
    """A picture file as an RGB PIL image, decoded whole; the EXIF orientation is not applied, as in PySlowFast.

    Args:
        path: anything that `revvideo.paths.path_manager` knows.

    Raises:
        VideoError: not a regular file, empty, no picture, cut off, larger than `MAX_PIXELS`, or a strip.
    """
    from PIL import Image

    try:
        local_path = path_manager.get_local_path(path)
        status = os.stat(local_path)
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(path, _READER, "not a regular file")
        if status.st_size == 0:
            raise VideoError(path, _READER, "the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EXIF oddities, of which ImageNet has many, and of sizes judged below
            with Image.open(local_path) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    words = f"{picture.width}x{picture.height} pixels; at most {MAX_PIXELS} are read"
                    raise VideoError(path, _READER, words)
                if max(picture.size) > MAX_ASPECT * min(picture.size):
                    words = f"a strip of {picture.width}x{picture.height} pixels; sides up to 1:{MAX_ASPECT} are read"
                    raise VideoError(path, _READER, words)
                return picture.convert("RGB")
    except (*_PICTURE_ERRORS, Image.DecompressionBombError) as error:
        raise VideoError(path, _READER, getattr(error, "strerror", None) or str(error) or repr(error)) from error


@dataclass(frozen=True)
class PictureAsClip:
    """A transform of pictures that is one of clips: PySlowFast's evaluation of pictures without AUG.ENABLE.

    Attributes:
        transform: of uint8 (1, C, H, W), such as `EvalTransform`: bilinear without antialiasing.
    """

    transform: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, picture: "Image.Image") -> torch.Tensor:
        """An RGB PIL picture -> uint8 (1, C, H, W)."""
        return self.transform(as_clip(np.array(picture)[None]))


class TrainImages(Dataset):
    """Randomly cropped and augmented pictures for training; see `TrainClips`, which says what the items hold.

    Args:
        manifest: picture files and labels.
        transform: crop, flip and augmentation of one picture.
        seed: RNG_SEED.
        num_crops_per_picture: crops of each picture (AUG.NUM_SAMPLE), S.
        max_replacements: so many stand-ins are tried for one sample.

    Attributes:
        on_read: called with the index of each picture that is about to be opened.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: "ImageTrainTransform",
        *,
        seed: int,
        num_crops_per_picture: int = 1,
        max_replacements: int = 10,
    ):
        self.manifest = manifest
        self.transform = transform
        self.seed = seed
        self.num_crops_per_picture = num_crops_per_picture
        self.max_replacements = max_replacements
        self.on_read: Callable[[int], object] | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """Crops of one sample in one epoch, as `TrainClips` gives clips; video is uint8 (S, 1, C, H, W).

        Raises:
            InputError: neither the sample nor a stand-in can be read.
        """
        epoch, sample = key

        def read(path: str) -> tuple[torch.Tensor, list[tuple[str, str]]]:
            picture = open_picture(path)
            generators = (
                sampling.keyed_generator(self.seed, epoch, sample, crop) for crop in range(self.num_crops_per_picture)
            )
            return _stacked([self.transform(picture, generator) for generator in generators]), []

        return read_or_replace(self, read, sample, sampling.replacement_generator(self.seed, epoch, sample))


class EvalImages(Dataset):
    """One centre crop of each picture; see `EvalClips`, which says what the items hold. No picture is replaced.

    Args:
        manifest: picture files and labels.
        transform: resize and crop.

    Attributes:
        on_read: called with the index of each picture that is about to be opened.
    """

    def __init__(self, manifest: Manifest, transform: "ImageEvalTransform | PictureAsClip"):
        self.manifest = manifest
        self.transform = transform
        self.on_read: Callable[[int], object] | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> dict:
        """One picture; video is uint8 (1, 1, C, H, W), or None if it cannot be read."""
        item = {"video": None, "label": self.manifest.labels[index], "index": index, "error": None}
        if self.on_read is not None:
            self.on_read(index)
        try:
            item["video"] = _stacked([self.transform(open_picture(self.manifest.paths[index]))])
        except VideoError as error:
            item["error"] = error.reason
        return item


def _stacked(pictures: list[torch.Tensor]) -> torch.Tensor:
    """uint8 (1, C, H, W) each -> (S, 1, C, H, W) with channels innermost in memory."""
    return torch.stack([picture.permute(0, 2, 3, 1) for picture in pictures]).permute(0, 1, 4, 2, 3)
