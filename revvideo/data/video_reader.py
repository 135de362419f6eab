"""One contract for reading frames of a video file, whatever library decodes it.

    with open_video("clip.mp4") as video:
        frames = video.clip(start=0, num_frames=16, stride=4)    # (16, H, W, 3) uint8 RGB

Frames are addressed by their presentation index: 0 is the first frame that a player shows, frames that an edit list
hides do not count. Everything that can go wrong with a file is a `VideoError`.
"""

import importlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from revvideo.errors import InputError
from revvideo.paths import path_manager

# name -> (module, class); the module is imported when the backend is asked for.
BACKENDS = {
    "pyav": ("revvideo.data.readers.pyav", "PyAVReader"),
}


class VideoError(RuntimeError):
    """A video that cannot be read (or, with `strict`, not without damage).

    Attributes:
        path: the video as the caller named it.
        backend: the backend that refused it.
        reason: one line, in words.
    """

    def __init__(self, path: str, backend: str, reason: str):
        # The three go to the base class so that the exception pickles across worker processes.
        super().__init__(path, backend, reason)
        self.path = path
        self.backend = backend
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the video {self.path} ({self.backend}): {self.reason}"


class VideoReader(ABC):
    """An open video: facts, and frames by presentation index. A context manager.

    Attributes:
        path: the video as the caller named it.
        strict: refuse whatever the decoder reports as damaged instead of filling in.
        num_frames: true number of frames (counted, not the header's claim).
        fps: average frames per second.
        pts: float64 (num_frames,), seconds, presentation order, as stored in the file (the first need not be 0).
        num_bad_frames: frames returned so far that are damaged or stand in for one that could not be decoded.
        warnings: what was found wrong so far, one line each.
    """

    backend = "abstract"

    def __init__(self, path: str, local_path: str, strict: bool):
        self.path = path
        self.local_path = local_path
        self.strict = strict
        self.num_frames = 0
        self.fps = 0.0
        self.pts = np.zeros(0, np.float64)
        self.num_bad_frames = 0
        self.warnings: list[str] = []

    @property
    @abstractmethod
    def height(self) -> int:
        """Height in pixels of the frames that are returned (after the display rotation)."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width in pixels of the frames that are returned (after the display rotation)."""

    @abstractmethod
    def _read(self, indices: np.ndarray) -> np.ndarray:
        """Frames for checked int64 indices: uint8 (len(indices), H, W, 3)."""

    @abstractmethod
    def close(self) -> None:
        """Release the file. May be called twice."""

    @property
    def duration_seconds(self) -> float:
        """From the first frame's time to the end of the last frame."""
        return float(self.pts[-1] - self.pts[0]) + 1.0 / self.fps

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Decode the named frames.

        Args:
            indices: presentation indices in [0, num_frames), in any order, repeats allowed.

        Returns:
            uint8 (len(indices), H, W, 3), RGB, in the order of `indices`.

        Raises:
            IndexError: an index outside the video, or no index at all (a mistake of the caller).
            VideoError: nothing could be decoded, or, with `strict`, not everything without damage.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if wanted.size == 0:
            raise IndexError(f"no frame index given for {self.path}")
        if wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise IndexError(
                f"frame indices {wanted.min()}..{wanted.max()} asked of {self.path}, which has {self.num_frames} frames"
            )
        return self._read(wanted)

    def clip(self, start: int, num_frames: int, stride: int) -> np.ndarray:
        """Frames start, start + stride, ...; past the end the last frame is repeated.

        Returns:
            uint8 (num_frames, H, W, 3), RGB.
        """
        return self.frames(np.minimum(start + stride * np.arange(num_frames), self.num_frames - 1))

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def open_video(path: str, backend: str = "pyav", strict: bool = False) -> VideoReader:
    """Open a video file.

    Args:
        path: anything that `revvideo.paths.path_manager` knows; remote files are made local first.
        backend: a name in `BACKENDS`.
        strict: for evaluation: raise `VideoError` for whatever the decoder reports as damaged. Otherwise a frame that
            does not decode is replaced by the nearest earlier good one, counted in `num_bad_frames` and told in
            `warnings`.

    Raises:
        InputError: unknown backend.
        VideoError: not a regular file, empty, not a video, or damaged beyond use.
    """
    if backend not in BACKENDS:
        raise InputError(
            f"unknown video decoding backend {backend!r}; known: {', '.join(sorted(BACKENDS))} (DATA.DECODING_BACKEND)"
        )
    path = os.fspath(path)
    local_path = _regular_local_file(path, backend)
    module, class_name = BACKENDS[backend]
    return getattr(importlib.import_module(module), class_name)(path, local_path, strict)


def _regular_local_file(path: str, backend: str) -> str:
    """The local name of the file, checked before any decoder sees it: opening a fifo would hang every one of them."""
    try:
        local_path = path_manager.get_local_path(path)
        status = os.stat(local_path)
    except (OSError, ValueError) as error:
        raise VideoError(path, backend, getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, backend, "not a regular file")
    if status.st_size == 0:
        raise VideoError(path, backend, "the file is empty")
    return local_path
