"""What the readers over other libraries share: PyAV opens and counts, the library decodes, the two are compared.

The libraries follow playlists, allocate gigabytes for a picture that a header invents, and believe the container's
frame count. So a file first passes the PyAV reader: its checks of container, protocol and picture size, its scan of the
packets (true count, times) and its first frame (size after rotation). Only then does the library see it.
That costs a few milliseconds a video: who compares speed calls the library itself.

Where the library's count or times disagree with the packets, `strict` refuses the video; otherwise it is told in
`warnings`. A library error ends the call, with `strict` or without: no frame stands in for one that does not decode.
Damage that the decoder conceals is not seen, and what a library gets wrong without showing it stays wrong: the
docstring of each reader lists what is known.
"""

import re
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.nn import functional

from revvideo.data.readers.pyav import PyAVReader
from revvideo.data.video_reader import VideoError, VideoReader

if TYPE_CHECKING:
    from revvideo.data.readers.index_cache import IndexCache

REASON_CHARACTERS = 300  # of a library's message; some attach a C++ stack trace
# Where in the library's source an error arose: decord "[11:02:03] /a/b.cc:15: ", torchcodec "function, /a/b.cpp:15, ".
_SOURCE_POSITION = re.compile(r"^((\[[\d:]+\] \S+:\d+: )+|\w+, \S+:\d+, )")
Result = TypeVar("Result")


class LibraryReader(VideoReader):
    """`VideoReader` over a library that addresses frames by number. Built by `open_video`.

    A subclass says how to open, decode and release; whatever the library raises in them becomes a `VideoError`.
    """

    def __init__(self, path: str, local_path: str, strict: bool, index_cache: "IndexCache | None" = None):
        super().__init__(path, local_path, strict, index_cache)
        self._is_open = False
        self._library = self._import_library()
        try:
            with PyAVReader(path, local_path, strict, index_cache) as truth:
                self._height, self._width = truth.height, truth.width
                self.num_frames, self.fps, self.pts = truth.num_frames, truth.fps, truth.pts
                self._stream_index = truth._stream.index
                self.warnings += truth.warnings
        except VideoError as error:
            raise self._error(f"{error.reason} (found by PyAV)") from error
        # A frame's time may differ by rounding (Matroska: milliseconds), not by half a frame.
        self._time_tolerance = 0.5 / self.fps if len(self.pts) < 2 else max(0.5 * float(np.diff(self.pts).min()), 2e-3)
        self._is_open = True
        try:
            self._library_frames = self._in_library(self._open)
            if self._library_frames < 1:
                raise self._error(f"{self.backend} sees no frame")
            if self._library_frames != self.num_frames:
                self._disagreement(
                    f"{self.backend} counts {self._library_frames} frames, the packets are {self.num_frames}"
                )
        except VideoError:
            self.close()
            raise

    @property
    def height(self) -> int:
        return self._height

    @property
    def width(self) -> int:
        return self._width

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._release()

    # What a library must be able to do

    @abstractmethod
    def _import_library(self) -> object:
        """The module to work with.

        Raises:
            InputError: it cannot be imported; says how to install it.
        """

    @abstractmethod
    def _open(self) -> int:
        """Open `self.local_path`; the number of frames that the library sees."""

    @abstractmethod
    def _decode(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Frames for ascending, distinct indices below the library's own count.

        Returns:
            uint8 (len(indices), H, W, 3) and, if the library tells them, the frames' times in seconds.
        """

    @abstractmethod
    def _release(self) -> None:
        """Let go of what `_open` opened, perhaps only in part."""

    # Reading

    def _read(self, indices: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        if not self._is_open:
            raise ValueError(f"the reader of {self.path} is closed")
        distinct, slots = np.unique(indices, return_inverse=True)
        lost = int(np.count_nonzero(distinct >= self._library_frames))
        if lost:
            self._disagreement(f"{lost} wanted frames lie behind the last one that {self.backend} has")
            distinct, again = np.unique(np.minimum(distinct, self._library_frames - 1), return_inverse=True)
            slots = again[slots]
        images, seconds = self._in_library(lambda: self._decode(distinct))
        expected = (len(distinct), self._height, self._width, 3)
        if images.shape != expected or images.dtype != np.uint8:
            raise self._error(
                f"{self.backend} gives frames of {images.shape} {images.dtype}, expected {expected} uint8"
            )
        wrong = 0
        if seconds is not None:
            wrong = int(np.count_nonzero(np.abs(seconds - self.pts[distinct]) > self._time_tolerance))
        if wrong:
            self._disagreement(f"{wrong} wanted frames have other times in {self.backend} than in the packets")
        self.num_bad_frames += lost + wrong
        if size is not None and size != expected[1:3]:
            images = resize_frames(images, size)
        return images[slots]

    def _in_library(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except VideoError:
            raise
        except Exception as error:  # the libraries raise nearly every type there is, some of their own
            raise self._error(one_line(error)) from error

    def _disagreement(self, words: str) -> None:
        if self.strict:
            raise self._error(words)
        self.warnings.append(words)

    def _error(self, reason: str) -> VideoError:
        return VideoError(self.path, self.backend, reason)


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale bilinearly (anti-aliased when shrinking): uint8 (T, H, W, 3) to uint8 (T, *size, 3)."""
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (T, 3, H, W), channels last
    scaled = functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1).numpy()  # (T, *size, 3)


def one_line(error: BaseException) -> str:
    """A library's error as one short line: no stack trace, no source position."""
    text = " ".join(str(error).split("Stack trace")[0].split())
    text = _SOURCE_POSITION.sub("", text) or type(error).__name__
    return text if len(text) <= REASON_CHARACTERS else text[:REASON_CHARACTERS] + "..."
