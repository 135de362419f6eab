"""Map-style data sets of video clips: one open and one decode a video, whatever number of clips is cut from it.

Training replaces a video that does not decode (and says so); evaluation never does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from revvideo.data import sampling
from revvideo.data.manifest import Manifest
from revvideo.data.transforms import EvalTransform, TrainTransform, as_clip, resize_short_side
from revvideo.data.video_reader import VideoError, VideoReader, open_video
from revvideo.errors import InputError

if TYPE_CHECKING:
    from revvideo.data.readers.index_cache import IndexCache

MAX_ASPECT = 32  # longer over shorter side: a strip of 8 x 8000 pixels would be resized to gigabytes
MAX_READ_BYTES = 2**28  # of frames that evaluation has in memory before they are resized
SCALE_FROM = 1.5  # frames are scaled while decoding when the source's short side is so many times what is needed


@dataclass(frozen=True)
class ClipSpec:
    """Which frames make a clip.

    Attributes:
        num_frames: T (DATA.NUM_FRAMES).
        sampling_rate: stride between them at `target_fps` (DATA.SAMPLING_RATE).
        target_fps: frames per second that the stride is meant for (DATA.TARGET_FPS).
        jitter_fps: training draws the target from [target_fps, target_fps + jitter_fps) (DATA.TRAIN_JITTER_FPS).
        exact: the stride is exactly sampling_rate * fps / target_fps and the clip spans (T - 1) strides
            (LOADER.CLIP_SPAN exact), instead of PySlowFast's T strides with a step of (span - 1) / (T - 1).
        segments: one frame of each of T equal parts of the whole video instead of a clip (SSv2); training draws it,
            evaluation takes the middle. Rates, starts and views have no meaning then.
    """

    num_frames: int
    sampling_rate: int
    target_fps: float = 30.0
    jitter_fps: float = 0.0
    exact: bool = False
    segments: bool = False

    def length_frames(self, fps: float, target_fps: float | None = None) -> float:
        """Frames that the clip spans in a video of `fps` frames per second."""
        target_fps = target_fps or self.target_fps
        if self.exact:
            return (self.num_frames - 1) * self._stride_frames(fps, target_fps) + 1.0
        return sampling.clip_length_frames(self.num_frames, self.sampling_rate, target_fps, fps)

    def indices(self, video: VideoReader, start: float, target_fps: float | None = None) -> np.ndarray:
        """Presentation indices of the clip that begins at `start` (frames): int64 (T,)."""
        target_fps = target_fps or self.target_fps
        if self.exact:
            stride = self._stride_frames(video.fps, target_fps)
            return sampling.exact_indices(start, self.num_frames, stride, video.num_frames)
        length = self.length_frames(video.fps, target_fps)
        return sampling.frame_indices(start, length, self.num_frames, video.num_frames)

    def random_indices(self, video: VideoReader, generator: np.random.Generator) -> np.ndarray:
        """Presentation indices of a random clip: int64 (T,)."""
        if self.segments:
            return sampling.segment_indices(self.num_frames, video.num_frames, generator)
        target_fps = self.target_fps
        if self.jitter_fps:
            target_fps = sampling.jittered_fps(target_fps, self.jitter_fps, generator)
        length = self.length_frames(video.fps, target_fps)
        start = sampling.random_start(video.num_frames, length, generator)
        return self.indices(video, start, target_fps)

    def _stride_frames(self, fps: float, target_fps: float) -> float:
        return self.sampling_rate * fps / target_fps


def scaled_size(video: VideoReader, short_side: int) -> tuple[int, int] | None:
    """(height, width) to decode to, so that the short side has `short_side` pixels; None: the video's own size.

    Scaling while decoding pays only for sources well above the target, and reading them at their own size would alias
    in the resize that follows (it takes no average).

    Args:
        video: an open video.
        short_side: the largest short side that is needed, in pixels; 0: always the video's own size.

    Raises:
        VideoError: the sides are further apart than 1:MAX_ASPECT.
    """
    if max(video.height, video.width) > MAX_ASPECT * min(video.height, video.width):
        words = f"the picture is a strip of {video.width}x{video.height} pixels; sides up to 1:{MAX_ASPECT} are read"
        raise VideoError(video.path, video.backend, words)
    if not short_side or min(video.height, video.width) < SCALE_FROM * short_side:
        return None
    return sampling.short_side_size(video.height, video.width, short_side)


def needed_short_side(transform: TrainTransform) -> int:
    """Pixels of the short side that a training clip is cut from, where the source has more.

    Short-side jitter: its largest. Random resized crops: so many that a box of mean area has as many pixels as the
    crop, and not below the largest of the jitter. A smaller box is enlarged; decoding for the smallest one (0.08 of
    the area) would take almost all of an HD frame, and PySlowFast cuts every box from a short side of 256.
    """
    largest = transform.short_side_range[1]
    if not transform.relative_scales:
        return largest
    mean_side = math.sqrt(sum(transform.relative_scales) / 2)
    return max(largest, math.ceil(transform.crop_size / mean_side))


class TrainClips(Dataset):
    """Random clips for training.

    Every random decision depends on (seed, epoch, sample, clip) alone. A video that does not decode is replaced by
    another one of the list, drawn from a generator keyed by (seed, epoch, sample).

    Args:
        manifest: videos and labels.
        clip: which frames.
        transform: crop, augmentation and flip.
        seed: RNG_SEED.
        num_clips_per_video: clips cut from each video (AUG.NUM_SAMPLE), S.
        backend: DATA.DECODING_BACKEND.
        scale_large: decode videos well above what is needed to that size (LOADER.DECODE_SIZE auto).
        index_cache: packet indices of videos that were opened before (LOADER.INDEX_CACHE).
        max_replacements: so many stand-ins are tried for one sample.

    Attributes:
        on_read: called with the index of each video that is about to be opened.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipSpec,
        transform: TrainTransform,
        *,
        seed: int,
        num_clips_per_video: int = 1,
        backend: str = "pyav",
        scale_large: bool = False,
        index_cache: "IndexCache | None" = None,
        max_replacements: int = 10,
    ):
        self.manifest = manifest
        self.clip = clip
        self.transform = transform
        self.seed = seed
        self.num_clips_per_video = num_clips_per_video
        self.backend = backend
        self.short_side = needed_short_side(transform) if scale_large else 0
        self.index_cache = index_cache
        self.max_replacements = max_replacements
        self.on_read: Callable[[int], object] | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """Clips of one sample in one epoch.

        Args:
            key: (epoch, sample index), as `EpochSampler` gives them.

        Returns:
            video: uint8 (S, T, C, H, W), each frame with channels-last strides.
            label: of the video that was read.
            index: of the video that was read, in the manifest.
            bad: [(path, reason)] of the videos that were replaced.
            damaged: [(path, reason)] of the video that was read, if some of its frames had to be filled in.

        Raises:
            InputError: no stand-in decodes either.
        """
        epoch, sample = key
        return read_or_replace(
            self,
            lambda path: self._read_clips(path, epoch, sample),
            sample,
            sampling.replacement_generator(self.seed, epoch, sample),
        )

    def _read_clips(self, path: str, epoch: int, sample: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
        generators = [
            sampling.keyed_generator(self.seed, epoch, sample, clip) for clip in range(self.num_clips_per_video)
        ]
        with open_video(path, self.backend, index_cache=self.index_cache) as video:
            indices = [self.clip.random_indices(video, generator) for generator in generators]
            frames = video.frames(np.concatenate(indices), scaled_size(video, self.short_side))
            damaged = [(path, "; ".join(dict.fromkeys(video.warnings)))] if video.num_bad_frames else []
        size, num_frames = self.transform.crop_size, self.clip.num_frames
        clips = torch.empty((len(generators), num_frames, size, size, 3), dtype=torch.uint8)
        for i, (source, generator) in enumerate(zip(np.split(frames, len(generators)), generators)):
            clips[i].permute(0, 3, 1, 2).copy_(self.transform(as_clip(source), generator))
        return clips.permute(0, 1, 4, 2, 3), damaged  # (S, T, C, H, W)


def read_or_replace(
    dataset,
    read: Callable[[str], tuple[torch.Tensor, list[tuple[str, str]]]],
    sample: int,
    generator: np.random.Generator,
) -> dict:
    """The item of a training data set: what `read` makes of the sample's file, or of a stand-in drawn from `generator`.

    Args:
        dataset: `TrainClips` or `TrainImages`.
        read: path -> (uint8 (S, T, C, H, W), damaged); raises VideoError.
        sample: index of the file that is asked for.
        generator: draws the stand-ins.

    Returns:
        see `TrainClips.__getitem__`.

    Raises:
        InputError: no stand-in can be read either.
    """
    manifest = dataset.manifest
    stand_ins = generator.integers(len(manifest), size=dataset.max_replacements)
    bad: list[tuple[str, str]] = []
    for index in dict.fromkeys([sample, *stand_ins.tolist()]):
        if dataset.on_read is not None:
            dataset.on_read(index)
        path = manifest.paths[index]
        try:
            video, damaged = read(path)
        except VideoError as error:
            bad.append((path, error.reason))
            continue
        return {"video": video, "label": manifest.labels[index], "index": index, "bad": bad, "damaged": damaged}
    listed = "; ".join(f"{path}: {reason}" for path, reason in bad)
    raise InputError(
        f"sample {sample} of {manifest.source} and the {len(bad) - 1} videos drawn in its place cannot be "
        f"decoded: {listed}. Check DATA.PATH_PREFIX and the files"
    )


class EvalClips(Dataset):
    """Fixed views for evaluation: view k has the temporal index k // num_crops and the spatial index k % num_crops.

    Args:
        manifest: videos and labels.
        clip: which frames.
        transform: short side and crop.
        num_views: temporal views, V (TEST.NUM_ENSEMBLE_VIEWS).
        num_crops: 1 (centre) or 3 (start, centre, end of the longer side), S (TEST.NUM_SPATIAL_CROPS).
        use_offset_sampling: TEST.USE_OFFSET_SAMPLING.
        to_end: the views are spread evenly and the last one ends with the video (EVAL.VIEWS to_end).
        centre: one clip from the middle of the video instead of PySlowFast's views: validation. Needs num_views 1.
        backend: DATA.DECODING_BACKEND.
        strict: a video that the decoder reports as damaged counts as undecodable.
        scale_large, index_cache: see `TrainClips`.

    Attributes:
        on_read: called with the index of each video that is about to be opened.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip: ClipSpec,
        transform: EvalTransform,
        *,
        num_views: int = 1,
        num_crops: int = 1,
        use_offset_sampling: bool = False,
        to_end: bool = False,
        centre: bool = False,
        backend: str = "pyav",
        strict: bool = True,
        scale_large: bool = False,
        index_cache: "IndexCache | None" = None,
    ):
        if num_crops not in (1, 3):
            raise InputError(f"TEST.NUM_SPATIAL_CROPS is {num_crops}; expected 1 or 3")
        if num_views < 1:
            raise InputError(f"TEST.NUM_ENSEMBLE_VIEWS is {num_views}; expected at least 1")
        if use_offset_sampling and to_end:
            raise InputError("DATA.USE_OFFSET_SAMPLING is True and EVAL.VIEWS to_end; expected one of the two")
        if centre and num_views != 1:
            raise ValueError(f"the centre clip is one view, but num_views is {num_views}")
        self.manifest = manifest
        self.clip = clip
        self.transform = transform
        self.num_views = num_views
        self.num_crops = num_crops
        self.use_offset_sampling = use_offset_sampling
        self.to_end = to_end
        self.centre = centre
        self.backend = backend
        self.strict = strict
        self.short_side = transform.short_side if scale_large else 0
        self.index_cache = index_cache
        self.on_read: Callable[[int], object] | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> dict:
        """All views of one video.

        Returns:
            video: uint8 (V * S, T, C, H, W), temporal index outermost, or None if the video cannot be read.
            label, index: of the video, in the manifest.
            error: None, or why it cannot be read. It is never replaced.
        """
        item = {"video": None, "label": self.manifest.labels[index], "index": index, "error": None}
        if self.on_read is not None:
            self.on_read(index)
        try:
            item["video"] = self._read_views(self.manifest.paths[index])
        except VideoError as error:
            item["error"] = error.reason
        return item

    def view_indices(self, video: VideoReader, view: int) -> np.ndarray:
        """Presentation indices of the frames of a temporal view of an open video: int64 (T,)."""
        num_frames, length = video.num_frames, self.clip.length_frames(video.fps)
        if self.clip.segments:
            return sampling.segment_indices(self.clip.num_frames, num_frames)
        if self.centre:
            start = sampling.centre_start(num_frames, length)
        elif self.to_end:
            start = sampling.reaching_view_start(num_frames, length, view, self.num_views)
        else:
            start = sampling.view_start(num_frames, length, view, self.num_views, self.use_offset_sampling)
        return self.clip.indices(video, start)

    def _read_views(self, path: str) -> torch.Tensor:
        with open_video(path, self.backend, strict=self.strict, index_cache=self.index_cache) as video:
            return self.views(video)

    def views(self, video: VideoReader, numbers: Sequence[int] | None = None) -> torch.Tensor:
        """Views of an open video: uint8 (V * S, T, C, H, W), temporal index outermost.

        Args:
            video: the video.
            numbers: which temporal views, V of them; None: all.

        Raises:
            VideoError: see `VideoReader.frames` and `scaled_size`.
        """
        numbers = range(self.num_views) if numbers is None else numbers
        indices = np.concatenate([self.view_indices(video, view) for view in numbers])
        unique, places = np.unique(indices, return_inverse=True)
        size = scaled_size(video, self.short_side)
        # Each frame is resized once, whatever number of views and crops it serves.
        resized = torch.cat(
            [
                resize_short_side(as_clip(video.frames(part, size)), self.transform.short_side)
                for part in _parts(unique, size or (video.height, video.width))
            ]
        )
        places = torch.from_numpy(places).view(len(numbers), self.clip.num_frames)
        size, crops = self.transform.crop_size, (1,) if self.num_crops == 1 else (0, 1, 2)
        views = torch.empty((len(numbers), len(crops), self.clip.num_frames, size, size, 3), dtype=torch.uint8)
        for s, spatial_index in enumerate(crops):
            cropped = self.transform.crop(resized, spatial_index).permute(0, 2, 3, 1)  # (frames, H, W, C)
            for v in range(len(numbers)):
                views[v, s] = cropped[places[v]]
        return views.flatten(0, 1).permute(0, 1, 4, 2, 3)  # (V * S, T, C, H, W)


def _parts(indices: np.ndarray, size: tuple[int, int]) -> list[np.ndarray]:
    """The indices in runs of at most MAX_READ_BYTES of frames of `size` (height, width)."""
    at_once = max(1, MAX_READ_BYTES // (3 * size[0] * size[1]))
    return [indices[first : first + at_once] for first in range(0, len(indices), at_once)]
