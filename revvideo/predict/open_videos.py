"""Videos that are no files: frames in memory, and a part of an open video, behind the readers' one contract."""

import numpy as np
from torch.nn import functional as F

from revvideo.data.transforms import as_clip
from revvideo.data.video_reader import VideoReader
from revvideo.errors import InputError

IN_MEMORY = "<array>"  # the path of frames in memory, for messages


class ArrayVideo(VideoReader):
    """Frames in memory as a video.

    Args:
        frames: uint8 (T, H, W, 3), RGB; an array, or anything that numpy makes one of.
        fps: frames per second.

    Raises:
        InputError: another shape or dtype, no frame, or a rate that is not above 0.
    """

    backend = "array"

    def __init__(self, frames: object, fps: float):
        super().__init__(IN_MEMORY, IN_MEMORY, strict=True)
        array = np.asarray(frames)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
            raise InputError(
                f"the video is an array of {array.dtype} {array.shape}; expected uint8 (T, H, W, 3), RGB, 0 to 255"
            )
        if not 0 < fps < float("inf"):
            raise InputError(f"the array has {fps} frames per second; expected a number above 0")
        self._frames = array
        self.num_frames, self.fps = len(array), float(fps)
        self.pts = np.arange(len(array)) / self.fps

    @property
    def height(self) -> int:
        return self._frames.shape[1]

    @property
    def width(self) -> int:
        return self._frames.shape[2]

    def _read(self, indices: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        frames = self._frames[indices]
        if size is None or size == frames.shape[1:3]:
            return frames
        scaled = F.interpolate(as_clip(frames), size=size, mode="bilinear", antialias=True)
        return scaled.permute(0, 2, 3, 1).contiguous().numpy()

    def close(self) -> None:
        pass


class VideoPart(VideoReader):
    """The frames `first` to `last` of an open video, as a video of its own that must not outlive it.

    Args:
        video: an open video.
        first, last: presentation indices; both belong to the part.
    """

    def __init__(self, video: VideoReader, first: int, last: int):
        assert 0 <= first <= last < video.num_frames, (first, last, video.num_frames)
        super().__init__(video.path, video.local_path, video.strict)
        self.backend = video.backend
        self._video, self._first = video, first
        self.num_frames, self.fps = last - first + 1, video.fps
        self.pts = video.pts[first : last + 1]

    @property
    def height(self) -> int:
        return self._video.height

    @property
    def width(self) -> int:
        return self._video.width

    def _read(self, indices: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        before = self._video.num_bad_frames
        frames = self._video.frames(indices + self._first, size)
        self.num_bad_frames += self._video.num_bad_frames - before
        self.warnings = list(self._video.warnings)
        return frames

    def close(self) -> None:
        pass
