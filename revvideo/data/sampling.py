"""Which frames and which crops: pure functions of numbers, by PySlowFast's formulas.

Source: PySlowFast `datasets/decoder.py` (get_start_end_idx, temporal_sampling) and `datasets/transform.py`. Temporal
positions are fractional frame indices; only `frame_indices` makes integers of them. Boxes are (y, x, height, width) in
pixels.

Every random decision takes a `numpy.random.Generator`; `keyed_generator` makes one for each clip, so that no decision
depends on which worker makes it or on what was drawn before.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch

from revvideo.errors import InputError

# What a generator is for: the first word of its key, so that two uses never share their numbers.
_CLIP, _REPLACEMENT, _MIXING, _ORDER, _ERASING = 1, 2, 3, 4, 5

Box = tuple[int, int, int, int]


# Random generators


def keyed_generator(seed: int, epoch: int, sample: int, clip: int) -> np.random.Generator:
    """The generator of one clip of one sample in one epoch: where it starts, its crop, its flip."""
    return _generator(_CLIP, seed, epoch, sample, clip)


def replacement_generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """Which videos stand in for a sample that does not decode."""
    return _generator(_REPLACEMENT, seed, epoch, sample)


def mixing_generator(seed: int, epoch: int, step: int, rank: int) -> np.random.Generator:
    """Mixup and cutmix of one batch on one process."""
    return _generator(_MIXING, seed, epoch, step, rank)


def erasing_generator(seed: int, epoch: int, step: int, rank: int, part: int = 0) -> np.random.Generator:
    """Random erasing of one batch, or one part of a batch, on one process."""
    return _generator(_ERASING, seed, epoch, step, rank, *([part] if part else []))


def order_generator(seed: int, epoch: int) -> np.random.Generator:
    """The order of the samples in one epoch, the same on all processes."""
    return _generator(_ORDER, seed, epoch)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([word % 2**32 for word in key])))


# Time


def clip_length_frames(num_frames: int, sampling_rate: int, target_fps: float, fps: float) -> float:
    """Frames of the source that a clip spans: the same time span whatever the source's frame rate.

    Args:
        num_frames: frames of the clip (T).
        sampling_rate: stride between them at `target_fps`.
        target_fps: the frame rate that the stride is meant for, per second.
        fps: the source's frame rate, per second.
    """
    return max(1.0, sampling_rate * num_frames / target_fps * fps)


def jittered_fps(target_fps: float, jitter: float, generator: np.random.Generator) -> float:
    """Training: `target_fps` plus a uniform share of `jitter` (DATA.TRAIN_JITTER_FPS), both per second."""
    return target_fps + float(generator.uniform(0.0, jitter)) if jitter > 0 else target_fps


def max_start(video_frames: int, clip_length: float) -> float:
    """The latest start at which the whole clip lies in the video (0 for a video shorter than the clip)."""
    return max(video_frames - clip_length, 0.0)


def random_start(video_frames: int, clip_length: float, generator: np.random.Generator) -> float:
    """Training: uniform in [0, max_start]."""
    return float(generator.uniform(0.0, max_start(video_frames, clip_length)))


def centre_start(video_frames: int, clip_length: float) -> float:
    """Validation: the middle clip."""
    return max_start(video_frames, clip_length) / 2


def view_start(
    video_frames: int, clip_length: float, view: int, num_views: int, use_offset_sampling: bool = False
) -> float:
    """Test: the start of view `view` of `num_views`.

    PySlowFast's quirk is kept: the last view does not reach the end of the video, unless `use_offset_sampling`
    (TEST.USE_OFFSET_SAMPLING) spreads whole-frame starts over the full range (and takes the middle for one view).
    """
    latest = max_start(video_frames, clip_length)
    if not use_offset_sampling:
        return latest * view / num_views
    if num_views == 1:
        return float(math.floor(latest / 2))
    return float(math.floor(latest / (num_views - 1)) * view)


def reaching_view_start(video_frames: int, clip_length: float, view: int, num_views: int) -> float:
    """Test, mode "to_end": from a view that starts at frame 0 to one that ends at the last; one view is centred."""
    if num_views == 1:
        return centre_start(video_frames, clip_length)
    return max_start(video_frames, clip_length) * view / (num_views - 1)


def jittered_view_start(
    video_frames: int, clip_length: float, view: int, num_views: int, generator: np.random.Generator
) -> float:
    """View `view` of `num_views` starts anywhere in its own n-th part of [0, max_start]. Not PySlowFast's: ours."""
    share = max_start(video_frames, clip_length) / num_views
    return float(generator.uniform(share * view, share * (view + 1)))


def frame_indices(start: float, clip_length: float, num_frames: int, video_frames: int) -> np.ndarray:
    """The frames of a clip: trunc(clamp(linspace(start, start + clip_length - 1, T), 0, n - 1)).

    The step is (clip_length - 1) / (T - 1), 4.2 for "16x4"; a short video repeats its last frame. torch's float32
    linspace is used as it is: its rounding decides single frames. PySlowFast decodes the whole video for this.

    Returns:
        int64 (num_frames,).
    """
    positions = torch.linspace(start, start + clip_length - 1, num_frames)
    return positions.clamp(0, video_frames - 1).long().numpy()


def selected_frame_indices(start: float, clip_length: float, num_frames: int, video_frames: int) -> np.ndarray:
    """`frame_indices` where PySlowFast decodes only the clip's own frames: up to one frame later.

    It keeps the whole frames between start and start + clip_length - 1 and samples these from their first one on. A
    video that is not longer than the clip is decoded whole.

    Returns:
        int64 (num_frames,).
    """
    if video_frames <= clip_length:
        return frame_indices(start, clip_length, num_frames, video_frames)
    first = math.ceil(start)
    last = min(math.floor(start + clip_length - 1), video_frames - 1)
    return first + frame_indices(0.0, clip_length, num_frames, last - first + 1)


def exact_indices(start: float, num_frames: int, stride_frames: float, video_frames: int) -> np.ndarray:
    """Mode "exact": round(start + k * stride) for k = 0 .. T - 1, clamped to the video.

    Args:
        start: in frames.
        num_frames: T.
        stride_frames: between two frames of the clip, in frames of the source; may be fractional.
        video_frames: length of the video.

    Returns:
        int64 (num_frames,).
    """
    positions = np.floor(start + np.arange(num_frames) * stride_frames + 0.5)
    return positions.clip(0, video_frames - 1).astype(np.int64)


def segment_indices(num_frames: int, video_frames: int, generator: np.random.Generator | None = None) -> np.ndarray:
    """One frame from each of T equal segments of the whole video, as PySlowFast samples Something-Something v2.

    Args:
        num_frames: T.
        video_frames: length of the video.
        generator: draws the frame within each segment (training); None takes the middle one (evaluation).

    Returns:
        int64 (num_frames,); both ends of a segment may be drawn.
    """
    edges = np.round((video_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)
    if generator is None:
        return (edges[:-1] + edges[1:]) // 2
    # One by one, first and last included: the numbers that PySlowFast would get from the same source.
    return np.array([int(generator.integers(low, high + 1)) for low, high in itertools.pairwise(edges)], np.int64)


# Space


def random_resized_crop_box(
    height: int,
    width: int,
    area_range: Sequence[float],
    aspect_range: Sequence[float],
    generator: np.random.Generator,
    num_tries: int = 10,
) -> Box:
    """A box with a share of the area uniform in `area_range` and log-uniform aspect (width / height).

    Box that does not fit: tried again `num_tries` times, then the largest centred box with an allowed aspect.

    Returns:
        (y, x, height, width) in pixels.
    """
    for _ in range(num_tries):
        area = generator.uniform(area_range[0], area_range[1]) * height * width
        aspect = math.exp(generator.uniform(math.log(aspect_range[0]), math.log(aspect_range[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            y = int(generator.integers(0, height - h + 1))
            return y, int(generator.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < min(aspect_range):
        h = max(1, min(height, round(width / min(aspect_range))))
    elif width / height > max(aspect_range):
        w = max(1, min(width, round(height * max(aspect_range))))
    return (height - h) // 2, (width - w) // 2, h, w


def random_short_side(smallest: int, largest: int, generator: np.random.Generator, inverse: bool = False) -> int:
    """Scale jitter: a short side in pixels, uniform, or uniform in its inverse (DATA.INV_UNIFORM_SAMPLE)."""
    if inverse:
        return round(1.0 / generator.uniform(1.0 / largest, 1.0 / smallest))
    return round(generator.uniform(smallest, largest))


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter side to `size`; the longer one is rounded down."""
    if min(height, width) == size:
        return height, width
    if width < height:
        return math.floor(height / width * size), size
    return size, math.floor(width / height * size)


def random_crop_offsets(height: int, width: int, size: int, generator: np.random.Generator) -> tuple[int, int]:
    """(y, x) of a random size x size crop. As in PySlowFast the very last offset is never drawn."""
    _check_fits(height, width, size)
    y = int(generator.integers(0, height - size)) if height > size else 0
    x = int(generator.integers(0, width - size)) if width > size else 0
    return y, x


def uniform_crop_offsets(height: int, width: int, size: int, spatial_index: int) -> tuple[int, int]:
    """(y, x) of crop 0 (start), 1 (centre) or 2 (end) along the longer side; centred along the shorter one."""
    _check_fits(height, width, size)
    if spatial_index not in (0, 1, 2):
        raise InputError(
            f"spatial crop {spatial_index} asked for; there are 0, 1, 2 (TEST.NUM_SPATIAL_CROPS is 1 or 3)"
        )
    y, x = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    if height > width:
        y = (0, y, height - size)[spatial_index]
    else:
        x = (0, x, width - size)[spatial_index]
    return y, x


def _check_fits(height: int, width: int, size: int) -> None:
    if min(height, width) < size:
        raise InputError(
            f"a {size}x{size} crop does not fit into a picture of {height}x{width} pixels (height x width): "
            "DATA.TRAIN_CROP_SIZE or TEST_CROP_SIZE is larger than the short side in DATA.TRAIN_JITTER_SCALES"
        )
