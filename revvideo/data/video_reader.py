"""One contract for reading frames of a video file, whatever library decodes it.

    with open_video("clip.mp4") as video:
        frames = video.clip(start=0, num_frames=16, stride=4)    # (16, H, W, 3) uint8 RGB

Frames are addressed by their presentation index: 0 is the first frame that a player shows, frames that an edit list
hides do not count. Everything that can go wrong with a file is a `VideoError`.
"""

import importlib
import operator
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from revvideo.errors import InputError
from revvideo.paths import path_manager

if TYPE_CHECKING:
    from revvideo.data.readers.index_cache import IndexCache

# name -> (module, class); the module is imported when the backend is asked for.
BACKENDS = {
    "pyav": ("revvideo.data.readers.pyav", "PyAVReader"),
    "torchcodec": ("revvideo.data.readers.torchcodec_reader", "TorchcodecReader"),
    "decord": ("revvideo.data.readers.decord_reader", "DecordReader"),
    "pytorchvideo": ("revvideo.data.readers.pytorchvideo_reader", "PyTorchVideoReader"),
    "frames": ("revvideo.data.readers.frame_folder", "FrameFolderReader"),
}
MAX_PIXELS = 2**25  # of one frame (8192x4096 passes): twice that takes seconds and more than a GB to decode
FOLDER_BACKENDS = frozenset({"frames"})  # their videos are folders; everybody else's are regular files


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

    def __init__(self, path: str, local_path: str, strict: bool, index_cache: "IndexCache | None" = None):
        self.path = path
        self.local_path = local_path
        self.strict = strict
        self.index_cache = index_cache
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
    def _read(self, indices: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        """Frames for checked int64 indices: uint8 (len(indices), H, W, 3), of `size` (height, width) or their own.

        Raises:
            ValueError: the reader is closed.
            VideoError: see `frames`.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the file. May be called twice."""

    @property
    def duration_seconds(self) -> float:
        """From the first frame's time to the end of the last frame."""
        return float(self.pts[-1] - self.pts[0]) + 1.0 / self.fps

    def frames(self, indices: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
        """Decode the named frames.

        Args:
            indices: presentation indices in [0, num_frames), in any order, repeats allowed.
            size: (height, width) in pixels of the result, after the display rotation: scaled bilinearly while decoding,
                which saves time where the video is well above what is needed. None: the video's own.

        Returns:
            uint8 (len(indices), H, W, 3), RGB, in the order of `indices`.

        Raises:
            IndexError: an index outside the video, or no index at all (a mistake of the caller).
            TypeError: indices that are no whole numbers (likewise).
            ValueError: a size below one pixel, or a closed reader (likewise).
            VideoError: nothing could be decoded, or, with `strict`, not everything without damage.
        """
        wanted = np.asarray(indices).reshape(-1)
        if wanted.size == 0:
            raise IndexError(f"no frame index given for {self.path}")
        if wanted.dtype.kind not in "iu":  # a mask, or times, would be read as indices
            raise TypeError(f"frame indices of type {wanted.dtype} asked of {self.path}; expected whole numbers")
        wanted = wanted.astype(np.int64)
        if wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise IndexError(
                f"frame indices {wanted.min()}..{wanted.max()} asked of {self.path}, which has {self.num_frames} frames"
            )
        if size is not None:
            height, width = size = (operator.index(size[0]), operator.index(size[1]))
            if min(size) < 1 or height * width > MAX_PIXELS:
                raise ValueError(
                    f"frames of {height}x{width} asked of {self.path}; expected (height, width), each at least 1, "
                    f"together at most {MAX_PIXELS} pixels"
                )
        return self._read(wanted, size)

    def clip(self, start: int, num_frames: int, stride: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Frames start, start + stride, ...; past the end the last frame is repeated. `size` as in `frames`.

        Returns:
            uint8 (num_frames, H, W, 3), RGB.
        """
        return self.frames(np.minimum(start + stride * np.arange(num_frames), self.num_frames - 1), size)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def open_video(
    path: str | os.PathLike[str],
    backend: str = "pyav",
    strict: bool = False,
    *,
    index_cache: "IndexCache | None" = None,
) -> VideoReader:
    """Open a video file, or a folder of pictures.

    Args:
        path: anything that `revvideo.paths.path_manager` knows; remote files are made local first.
        backend: a name in `BACKENDS`. "pyav" is the fastest and the exact one; "torchcodec", "decord" and
            "pytorchvideo" read with those libraries (their modules list what each is known to misread); "frames" reads
            a folder of pictures.
        strict: for evaluation: raise `VideoError` for whatever the decoder reports as damaged. Otherwise what can be
            read is read: a frame that does not decode is replaced by the nearest earlier good one, counted in
            `num_bad_frames` and told in `warnings`.
        index_cache: what earlier openings learnt about the packets of the file, so that this one need not read them.

    Raises:
        InputError: unknown backend, or one whose library is not installed.
        VideoError: not a regular file (with "frames": not a folder), empty, no permission, not a video, or damaged
            beyond use.
    """
    if backend not in BACKENDS:
        raise InputError(
            f"unknown video decoding backend {backend!r}; known: {', '.join(sorted(BACKENDS))} (DATA.DECODING_BACKEND)"
        )
    path = os.fsdecode(path)
    local_path = _checked_local_path(path, backend)
    module, class_name = BACKENDS[backend]
    return getattr(importlib.import_module(module), class_name)(path, local_path, strict, index_cache)


def _checked_local_path(path: str, backend: str) -> str:
    """The local name of the video, checked before any decoder sees it: opening a fifo would hang every one of them."""
    try:
        local_path = path_manager.get_local_path(path)
        status = os.stat(local_path)
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_folder or stat.S_ISREG(status.st_mode):
            # Asks the system, not the mode bits: access lists and network mounts decide, too.
            os.close(os.open(local_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except (OSError, ValueError) as error:
        raise VideoError(path, backend, getattr(error, "strerror", None) or str(error)) from error
    if backend in FOLDER_BACKENDS:
        if not is_folder:
            raise VideoError(path, backend, "not a folder of pictures")
        return local_path
    if is_folder:
        raise VideoError(path, backend, 'a folder, not a video file (a folder of pictures needs the backend "frames")')
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, backend, "not a regular file")
    if status.st_size == 0:
        raise VideoError(path, backend, "the file is empty")
    return local_path
