"""A folder of pictures as a video: jpg and png files in the natural order of their names ("9.jpg" before "10.jpg").

Pictures carry no times: they are taken for `FPS` frames a second. Optical flow beside the pictures (`flow_x_*`,
`flow_y_*`, as mmaction2 writes it) is left out.
"""

import itertools
import os
import re
import stat
import struct
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from revvideo.data.readers.packet_index import MAX_PACKETS
from revvideo.data.video_reader import MAX_PIXELS, VideoError, VideoReader

if TYPE_CHECKING:
    from PIL import Image

    from revvideo.data.readers.index_cache import IndexCache

FPS = 30.0
MAX_PICTURES = MAX_PACKETS
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
_FLOW = ("flow_x", "flow_y")
_ORIENTATION = 0x0112  # EXIF; 5 to 8 turn the picture by a quarter

# What PIL lets through for a file that is no picture, or half of one.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError, MemoryError, struct.error)


class FrameFolderReader(VideoReader):
    """`VideoReader` over the pictures of a folder. Built by `open_video`, which has checked that the path is a folder.

    Pictures are opened when they are read, each as a file of the first one's size: another size is scaled to it (and
    told in `warnings`; refused with `strict`). One that cannot be read is replaced by the nearest earlier good one, or
    else a later one.
    """

    backend = "frames"

    def __init__(self, path: str, local_path: str, strict: bool, index_cache: "IndexCache | None" = None):
        super().__init__(path, local_path, strict, index_cache)
        self._is_open = True
        self._size: tuple[int, int] | None = None  # (height, width), known when the first picture has been read
        try:
            self._names = sorted(self._pictures(), key=natural_order)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error
        if not self._names:
            raise self._error("no jpg or png picture in the folder")
        self._check_names()
        self.num_frames = len(self._names)
        self.fps = FPS
        self.pts = np.arange(self.num_frames) / FPS

    @property
    def height(self) -> int:
        return self._own_size()[0]

    @property
    def width(self) -> int:
        return self._own_size()[1]

    def close(self) -> None:
        self._is_open = False

    # The folder

    def _pictures(self) -> list[str]:
        """Names of the pictures, in no order."""
        pictures, flow = [], []
        with os.scandir(self.local_path) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or os.path.splitext(name)[1].lower() not in SUFFIXES or entry.is_dir():
                    continue
                (flow if name.startswith(_FLOW) else pictures).append(name)
                if len(pictures) > MAX_PICTURES:
                    raise self._error(f"more than {MAX_PICTURES} pictures")
        return pictures or flow

    def _check_names(self) -> None:
        """The same name with two suffixes, and a gap in the numbers, mean that frames are there twice or missing."""
        stems = [os.path.splitext(name)[0] for name in self._names]
        for before, name, stem, next_stem in zip(self._names, self._names[1:], stems, stems[1:]):
            if stem == next_stem:
                raise self._error(f"one frame is there twice: {before} and {name}")
        numbers = [re.search(r"\d+$", stem) for stem in stems]
        if len(stems) > 2 and all(numbers):
            values = [int(number[0]) for number in numbers]
            steps = [after - before for before, after in itertools.pairwise(values)]
            usual = Counter(steps).most_common(1)[0][0]
            gap = next((position for position, step in enumerate(steps) if step != usual), None)
            if gap is not None:
                self._complain(f"pictures are missing between {self._names[gap]} and {self._names[gap + 1]}")

    def _complain(self, words: str) -> None:
        if self.strict:
            raise self._error(words)
        if words not in self.warnings:
            self.warnings.append(words)

    def _error(self, reason: str) -> VideoError:
        return VideoError(self.path, self.backend, reason)

    # Pictures

    def _own_size(self) -> tuple[int, int]:
        """(height, width) of the first picture that can be read."""
        if self._size is None:
            self._good_near(0, None)  # loading learns it
        return self._size

    def _read(self, indices: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        if not self._is_open:
            raise ValueError(f"the reader of {self.path} is closed")
        height, width = size or self._own_size()
        out = np.empty((len(indices), height, width, 3), np.uint8)
        distinct, slots = np.unique(indices, return_inverse=True)
        for position, index in enumerate(distinct.tolist()):
            picture, source = self._good_near(index, (height, width))
            self.num_bad_frames += source != index
            out[slots == position] = picture
        return out

    def _good_near(self, index: int, size: tuple[int, int] | None) -> tuple[np.ndarray, int]:
        """The picture and its index; without `strict` perhaps the nearest earlier good one's, else a later one's."""
        from PIL import Image

        problem = ""
        for candidate in itertools.chain(range(index, -1, -1), range(index + 1, self.num_frames)):
            try:
                return self._load(self._names[candidate], size), candidate
            except (*_PICTURE_ERRORS, Image.DecompressionBombError) as error:
                if not problem:
                    problem = f"{self._names[index]}: {getattr(error, 'strerror', None) or error}"
                    self._complain(problem)
        raise self._error(f"no picture can be read; {problem}")

    def _load(self, name: str, size: tuple[int, int] | None) -> np.ndarray:
        """uint8 (H, W, 3) of a picture, turned as its EXIF data say, scaled to `size` or to the first picture's."""
        from PIL import Image, ImageOps

        path = Path(self.local_path, name)
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        with warnings.catch_warnings(), Image.open(path, formats=sorted(set(SUFFIXES.values()))) as image:
            warnings.simplefilter("ignore")  # of EXIF oddities and transparent palettes, once for every picture
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height}: at most {MAX_PIXELS} pixels are accepted")
            own = image.size[::-1]
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
            own = own[::-1] if turned else own
            if self._size is None:
                self._size = own
            elif own != self._size:
                self._complain(f"{name} is {own[1]}x{own[0]}, the first picture {self._size[1]}x{self._size[0]}")
            height, width = size or self._size
            if height < own[0] and width < own[1]:  # JPEG decodes to 1/2, 1/4 or 1/8 at a fraction of the cost
                image.draft("RGB", (height, width) if turned else (width, height))
            picture = _as_rgb(ImageOps.exif_transpose(image))
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(picture)


def _as_rgb(picture: "Image.Image") -> "Image.Image":
    """8 bits a channel. PIL would cut 16-bit grey off at 255, so nearly all of it would be white."""
    from PIL import Image

    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert("RGB")


def natural_order(name: str) -> tuple:
    """A key by which "9.jpg" comes before "10.jpg"; names that differ in leading zeros only keep a fixed order."""
    parts = re.split(r"(\d+)", name)  # every second one is a number
    return [(int(part), "") if position % 2 else (-1, part) for position, part in enumerate(parts)], name
