"""Map-style data sets of video clips: one open and one decode a video, whatever number of clips is cut from it.

Training replaces a video that does not decode (and says so); evaluation never does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from revvideo.data import sampling
from revvideo.data.manifest import Manifest
from revvideo.data.transforms import EvalTransform, TrainTransform, as_clip, resize_short_side
from revvideo.data.video_reader import VideoError, VideoReader, open_video
from revvideo.errors import InputError


@dataclass(frozen=True)
class ClipSpec:
    """Which frames make a clip.

    Attributes:
        num_frames: T (DATA.NUM_FRAMES).
        sampling_rate: stride between them at `target_fps` (DATA.SAMPLING_RATE).
        target_fps: frames per second that the stride is meant for (DATA.TARGET_FPS).
    """

    num_frames: int
    sampling_rate: int
    target_fps: float = 30.0

    def length_frames(self, fps: float) -> float:
        """Frames that the clip spans in a video of `fps` frames per second."""
        return sampling.clip_length_frames(self.num_frames, self.sampling_rate, self.target_fps, fps)

    def indices(self, video: VideoReader, start: float) -> np.ndarray:
        """Presentation indices of the clip that begins at `start` (frames): int64 (T,)."""
        return sampling.frame_indices(start, self.length_frames(video.fps), self.num_frames, video.num_frames)


class TrainClips(Dataset):
    """Random clips for training.

    Every random decision depends on (seed, epoch, sample, clip) alone. A video that does not decode is replaced by
    another one of the list, drawn from a generator keyed by (seed, epoch, sample).

    Args:
        manifest: videos and labels.
        clip: which frames.
        transform: crop and flip.
        seed: RNG_SEED.
        num_clips_per_video: clips cut from each video (AUG.NUM_SAMPLE), S.
        backend: DATA.DECODING_BACKEND.
        max_replacements: so many stand-ins are tried for one sample.
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
        max_replacements: int = 10,
    ):
        self.manifest = manifest
        self.clip = clip
        self.transform = transform
        self.seed = seed
        self.num_clips_per_video = num_clips_per_video
        self.backend = backend
        self.max_replacements = max_replacements

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """Clips of one sample in one epoch.

        Args:
            key: (epoch, sample index), as `loader.EpochSampler` gives them.

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
        stand_ins = sampling.replacement_generator(self.seed, epoch, sample)
        candidates = [sample] + [int(i) for i in stand_ins.integers(len(self), size=self.max_replacements)]
        bad: list[tuple[str, str]] = []
        for index in dict.fromkeys(candidates):
            path = self.manifest.paths[index]
            try:
                video, damaged = self._read_clips(path, epoch, sample)
            except VideoError as error:
                bad.append((path, error.reason))
                continue
            label = self.manifest.labels[index]
            return {"video": video, "label": label, "index": index, "bad": bad, "damaged": damaged}
        listed = "; ".join(f"{path}: {reason}" for path, reason in bad)
        raise InputError(
            f"sample {sample} of {self.manifest.source} and the {len(bad) - 1} videos drawn in its place cannot be "
            f"decoded: {listed}. Check DATA.PATH_PREFIX and the files"
        )

    def _read_clips(self, path: str, epoch: int, sample: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
        generators = [
            sampling.keyed_generator(self.seed, epoch, sample, clip) for clip in range(self.num_clips_per_video)
        ]
        with open_video(path, self.backend) as video:
            length = self.clip.length_frames(video.fps)
            starts = [sampling.random_start(video.num_frames, length, generator) for generator in generators]
            frames = video.frames(np.concatenate([self.clip.indices(video, start) for start in starts]))
            damaged = [(path, "; ".join(dict.fromkeys(video.warnings)))] if video.num_bad_frames else []
        size, num_frames = self.transform.crop_size, self.clip.num_frames
        clips = torch.empty((len(generators), num_frames, size, size, 3), dtype=torch.uint8)
        for i, (source, generator) in enumerate(zip(np.split(frames, len(generators)), generators)):
            clips[i].permute(0, 3, 1, 2).copy_(self.transform(as_clip(source), generator))
        return clips.permute(0, 1, 4, 2, 3), damaged  # (S, T, C, H, W)


class EvalClips(Dataset):
    """Fixed views for evaluation: view k has the temporal index k // num_crops and the spatial index k % num_crops.

    Args:
        manifest: videos and labels.
        clip: which frames.
        transform: short side and crop.
        num_views: temporal views, V (TEST.NUM_ENSEMBLE_VIEWS).
        num_crops: 1 (centre) or 3 (start, centre, end of the longer side), S (TEST.NUM_SPATIAL_CROPS).
        use_offset_sampling: TEST.USE_OFFSET_SAMPLING.
        centre: one clip from the middle of the video instead of PySlowFast's views: validation. Needs num_views 1.
        backend: DATA.DECODING_BACKEND.
        strict: a video that the decoder reports as damaged counts as undecodable.
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
        centre: bool = False,
        backend: str = "pyav",
        strict: bool = True,
    ):
        if num_crops not in (1, 3):
            raise InputError(f"TEST.NUM_SPATIAL_CROPS is {num_crops}; expected 1 or 3")
        if num_views < 1:
            raise InputError(f"TEST.NUM_ENSEMBLE_VIEWS is {num_views}; expected at least 1")
        if centre and num_views != 1:
            raise ValueError(f"the centre clip is one view, but num_views is {num_views}")
        self.manifest = manifest
        self.clip = clip
        self.transform = transform
        self.num_views = num_views
        self.num_crops = num_crops
        self.use_offset_sampling = use_offset_sampling
        self.centre = centre
        self.backend = backend
        self.strict = strict

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
        try:
            item["video"] = self._read_views(self.manifest.paths[index])
        except VideoError as error:
            item["error"] = error.reason
        return item

    def _start(self, video_frames: int, length: float, view: int) -> float:
        if self.centre:
            return sampling.centre_start(video_frames, length)
        return sampling.view_start(video_frames, length, view, self.num_views, self.use_offset_sampling)

    def _read_views(self, path: str) -> torch.Tensor:
        with open_video(path, self.backend, strict=self.strict) as video:
            length = self.clip.length_frames(video.fps)
            starts = [self._start(video.num_frames, length, view) for view in range(self.num_views)]
            indices = np.concatenate([self.clip.indices(video, start) for start in starts])
            unique, places = np.unique(indices, return_inverse=True)
            frames = video.frames(unique)
        # Each frame is resized once, whatever number of views and crops it serves.
        resized = resize_short_side(as_clip(frames), self.transform.short_side)
        places = torch.from_numpy(places).view(self.num_views, self.clip.num_frames)
        size, crops = self.transform.crop_size, (1,) if self.num_crops == 1 else (0, 1, 2)
        views = torch.empty((self.num_views, len(crops), self.clip.num_frames, size, size, 3), dtype=torch.uint8)
        for s, spatial_index in enumerate(crops):
            cropped = self.transform.crop(resized, spatial_index).permute(0, 2, 3, 1)  # (frames, H, W, C)
            for v in range(self.num_views):
                views[v, s] = cropped[places[v]]
        return views.flatten(0, 1).permute(0, 1, 4, 2, 3)  # (V * S, T, C, H, W)
