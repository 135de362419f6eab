"""Lists, data sets, loaders and model inputs of a config."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from revvideo.build.augmentation import build_erasing, image_eval_transform, image_train_transform, train_transform
from revvideo.build.input_spec import input_spec
from revvideo.config import ConfigError
from revvideo.config.batch import BatchPlan
from revvideo.config.datasets import check_list_kind, dataset_kind, list_arguments
from revvideo.data import sampling
from revvideo.data.batch import Batch, batch_part
from revvideo.data.dataset import ClipSpec, EvalClips, TrainClips
from revvideo.data.image_dataset import EvalImages, TrainImages
from revvideo.data.loader import ClipLoader, TrainLoader, eval_loader, train_loader
from revvideo.data.manifest import Manifest, read_split, require_files, write_missing
from revvideo.data.mixing import Mixing
from revvideo.data.readers.index_cache import IndexCache
from revvideo.data.transforms import EvalTransform, normalise
from revvideo.distributed.env import Process
from revvideo.engine.video_batches import VideoBatches
from revvideo.errors import InputError

logger = logging.getLogger(__name__)

ALONE = Process()
_PLURAL = {"video": "videos", "frames": "frame folders", "image": "pictures"}


def build_manifest(cfg: CfgNode, split: str, *, folder: Path | None = None) -> Manifest:
    """The videos or pictures of a split in DATA.PATH_TO_DATA_DIR, checked; those that are missing are logged.

    Args:
        cfg: DATA and LOADER say where and in which format.
        split: train, val or test.
        folder: the run folder: the missing paths are written there, to missing_{split}.txt. None writes nothing.

    Raises:
        InputError: no such list, a bad line, or not one video of it exists.
    """
    manifest = read_split(**list_arguments(cfg, split))
    check_list_kind(cfg, split, manifest.kind, manifest.source)
    if not manifest.labelled:
        logger.warning("%s has no labels: every sample counts as class 0", manifest.source)
    _report_missing(manifest, split, folder)
    return manifest


def _report_missing(manifest: Manifest, split: str, folder: Path | None) -> None:
    missing = require_files(manifest)
    file = folder / f"missing_{split}.txt" if folder is not None else None
    if missing:
        logger.warning(
            "%d of %d %s of %s are missing, the first is %s%s",
            *(len(missing), len(manifest), _PLURAL[manifest.kind], manifest.source, missing[0]),
            f"; {file} lists them" if file is not None else "",
        )
    if file is not None:
        write_missing(manifest, missing, file)


def build_train_loader(
    cfg: CfgNode, plan: BatchPlan, *, process: Process = ALONE, folder: Path | None = None
) -> TrainLoader:
    """This process's random clips, or crops of pictures, of the training set; `folder` as in `build_manifest`."""
    manifest = build_manifest(cfg, "train", folder=folder)
    repeats = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
    if manifest.kind == "image":
        _check_image_model(cfg)
        dataset = TrainImages(manifest, image_train_transform(cfg), seed=cfg.RNG_SEED, num_crops_per_picture=repeats)
    else:
        dataset = TrainClips(
            manifest,
            _clip_spec(cfg, "train"),
            train_transform(cfg),
            seed=cfg.RNG_SEED,
            num_clips_per_video=repeats,
            **_reading_options(cfg, manifest),
        )
    return train_loader(
        dataset,
        batch_size=plan.videos_per_process,
        seed=cfg.RNG_SEED,
        rank=process.rank,
        world_size=process.world_size,
        **_worker_options(cfg),
    )


def build_val_loader(cfg: CfgNode, *, process: Process = ALONE, folder: Path | None = None) -> ClipLoader:
    """One centre clip, centre crop, of this process's videos of the validation set; `folder` as in `build_manifest`."""
    manifest = build_manifest(cfg, "val", folder=folder)
    videos = video_batches(cfg, len(manifest), 1).share(process.rank, process.world_size)
    if manifest.kind == "image":
        return _eval_loader(cfg, _image_dataset(cfg, manifest), videos)
    transform = EvalTransform(crop_size=cfg.DATA.TEST_CROP_SIZE, short_side=cfg.DATA.TRAIN_JITTER_SCALES[0])
    clip = _clip_spec(cfg, "val")
    clips = EvalClips(manifest, clip, transform, centre=True, **_reading_options(cfg, manifest))
    return _eval_loader(cfg, clips, videos)


def clips_per_forward(cfg: CfgNode) -> int:
    """Most clips of a forward pass in evaluation: TEST.BATCH_SIZE over NUM_GPUS, as in PySlowFast.

    The numbers of the config alone decide, and not how many processes there are: see `VideoBatches`.
    """
    return max(1, cfg.TEST.BATCH_SIZE // max(1, cfg.NUM_GPUS))


def video_batches(cfg: CfgNode, num_videos: int, num_views: int) -> VideoBatches:
    """How the videos of a list go through the model: `num_views` counts temporal views x spatial crops."""
    return VideoBatches(num_videos, num_views, clips_per_forward(cfg))


def build_test_loader(
    cfg: CfgNode, num_views: int, *, manifest: Manifest | None = None, videos: Sequence[int] | None = None
) -> ClipLoader:
    """All views of videos of the test set: `num_views` in time, TEST.NUM_SPATIAL_CROPS in space.

    Args:
        cfg: the config.
        num_views: temporal views; a picture has one.
        manifest: what `build_manifest` gave for the split test; None reads it here.
        videos: numbers of the videos in the order in which they come, see `VideoBatches.share`; None: the whole list.
    """
    if manifest is None:
        manifest = build_manifest(cfg, "test")
    return _eval_loader(cfg, build_test_dataset(cfg, num_views, manifest), videos)


def build_test_dataset(cfg: CfgNode, num_views: int, manifest: Manifest) -> EvalClips | EvalImages:
    """The views of each video, or the crop of each picture, of `manifest` that the evaluation scores."""
    data, crops = cfg.DATA, cfg.TEST.NUM_SPATIAL_CROPS
    if manifest.kind == "image":
        if (num_views, crops) != (1, 1):
            raise ConfigError(
                f"a picture has one view, but {num_views} temporal views of {crops} crops are asked for; set "
                "TEST.NUM_ENSEMBLE_VIEWS 1 TEST.NUM_SPATIAL_CROPS 1 (and TEST.NUM_TEMPORAL_CLIPS [])"
            )
        return _image_dataset(cfg, manifest)
    clip = _clip_spec(cfg, "test")
    if clip.segments and num_views > 1:
        logger.warning("TEST.DATASET ssv2: all %d temporal views of a video are the same frames", num_views)
    short_side = data.TEST_CROP_SIZE if crops == 3 else data.TRAIN_JITTER_SCALES[0]
    return EvalClips(
        manifest,
        clip,
        EvalTransform(crop_size=data.TEST_CROP_SIZE, short_side=short_side),
        num_views=num_views,
        num_crops=crops,
        use_offset_sampling=data.USE_OFFSET_SAMPLING,
        to_end=cfg.EVAL.VIEWS == "to_end",
        **_reading_options(cfg, manifest),
    )


def _image_dataset(cfg: CfgNode, manifest: Manifest) -> EvalImages:
    _check_image_model(cfg)
    return EvalImages(manifest, image_eval_transform(cfg))


def _eval_loader(cfg: CfgNode, dataset: EvalClips | EvalImages, videos: Sequence[int] | None) -> ClipLoader:
    return eval_loader(dataset, videos, **_worker_options(cfg))


def _check_image_model(cfg: CfgNode) -> None:
    if input_spec(cfg).frames != 1:
        raise ConfigError(
            f"the data set is one of pictures (imagenet), but the model takes {cfg.DATA.NUM_FRAMES} frames; expected "
            "an image model (MVIT.PATCH_2D True) or DATA.NUM_FRAMES 1"
        )


def _clip_spec(cfg: CfgNode, split: str) -> ClipSpec:
    return ClipSpec(
        cfg.DATA.NUM_FRAMES,
        cfg.DATA.SAMPLING_RATE,
        cfg.DATA.TARGET_FPS,
        jitter_fps=cfg.DATA.TRAIN_JITTER_FPS if split == "train" else 0.0,
        exact=cfg.LOADER.CLIP_SPAN == "exact",
        segments=dataset_kind(cfg, split) == "ssv2",
    )


def _reading_options(cfg: CfgNode, manifest: Manifest) -> dict:
    """Arguments of the data sets of clips on how videos are read."""
    cache = cfg.LOADER.INDEX_CACHE
    if cache not in ("", "memory"):
        _check_cache_folder(cache)
    return {
        "backend": "frames" if manifest.kind == "frames" else cfg.DATA.DECODING_BACKEND,
        "scale_large": cfg.LOADER.DECODE_SIZE == "auto",
        "index_cache": IndexCache(None if cache == "memory" else cache) if cache else None,
    }


def _check_cache_folder(folder: str) -> None:
    """A cache that cannot be written is none, and nobody would notice: refuse it before the first video."""
    if Path(folder).name == folder:
        raise ConfigError(
            f"LOADER.INDEX_CACHE is {folder!r}; expected memory, an empty string for no cache, or a folder "
            f"(./{folder} for one in the working folder)"
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        writable, reason = os.access(folder, os.W_OK | os.X_OK), "no permission to write into it"
    except OSError as error:
        writable, reason = False, error.strerror
    if not writable:
        raise ConfigError(f"LOADER.INDEX_CACHE is {folder!r}; expected a folder that can be written: {reason}")


def _worker_options(cfg: CfgNode) -> dict:
    return {
        "num_workers": cfg.DATA_LOADER.NUM_WORKERS,
        "pin_memory": cfg.DATA_LOADER.PIN_MEMORY and cfg.NUM_GPUS > 0,
        "prefetch_factor": cfg.LOADER.PREFETCH,
        "multiprocessing_context": cfg.LOADER.START_METHOD or None,
        "timeout_seconds": cfg.LOADER.TIMEOUT_SECONDS,
    }


def build_eval_input(cfg: CfgNode, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 clips `(B, T, C, H, W)` to normalised float ones `(B, C, T, H, W)` on `device`."""
    mean, std, reverse = cfg.DATA.MEAN, cfg.DATA.STD, cfg.DATA.REVERSE_INPUT_CHANNEL

    def prepare(video: Tensor) -> Tensor:
        return normalise(video.to(device, non_blocking=True), mean, std, reverse_channels=reverse)

    return prepare


def build_train_input(
    cfg: CfgNode, device: torch.device, *, num_parts: int = 1, rank: int = 0
) -> Callable[[Batch, int, int], Iterator[tuple[Tensor, Tensor]]]:
    """A batch to what the trainer feeds the model: clips normalised, erased (AUG) and mixed (MIXUP), and targets.

    Args:
        cfg: the config.
        device: of the model.
        num_parts: the clips come in so many parts, one after the other. Mixing pairs each clip with the one at the
            mirrored place of the whole batch, so that the parts together are the batch in one part.
        rank: number of this process.

    Returns:
        `(batch, epoch, step) -> parts`, see `Trainer`.
    """
    normalised, erase, mixing = build_eval_input(cfg, device), build_erasing(cfg), None
    if cfg.MIXUP.ENABLE:
        mixing = Mixing(
            num_classes=cfg.MODEL.NUM_CLASSES,
            mixup_alpha=cfg.MIXUP.ALPHA,
            cutmix_alpha=cfg.MIXUP.CUTMIX_ALPHA,
            prob=cfg.MIXUP.PROB,
            switch_prob=cfg.MIXUP.SWITCH_PROB,
            label_smoothing=cfg.MIXUP.LABEL_SMOOTH_VALUE,
        )

    def prepare(batch: Batch, epoch: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part in range(num_parts):
            video, labels = batch_part(batch, part, num_parts)
            clips, targets = normalised(video), labels.to(device, non_blocking=True)
            del video  # a copy of the part, which need not be there while the model works
            if erase is not None:
                clips = erase(clips, sampling.erasing_generator(cfg.RNG_SEED, epoch, step, rank, part))
            if mixing is not None:
                generator = sampling.mixing_generator(cfg.RNG_SEED, epoch, step, rank)  # the same box in each part
                clips, targets = mixing(clips, targets, generator)
            yield clips, targets

    return prepare


def temporal_views(cfg: CfgNode) -> Sequence[int]:
    """Numbers of temporal views to evaluate with: TEST.NUM_TEMPORAL_CLIPS, or else TEST.NUM_ENSEMBLE_VIEWS."""
    views = list(cfg.TEST.NUM_TEMPORAL_CLIPS) or [cfg.TEST.NUM_ENSEMBLE_VIEWS]
    if len(set(views)) != len(views):
        raise InputError(f"TEST.NUM_TEMPORAL_CLIPS is {views}; expected different numbers")
    return views


def sampling_notes(cfg: CfgNode) -> list[str]:
    """What differs from PySlowFast's clips and views in the test set, in words, for the protocol of the results."""
    kind = dataset_kind(cfg, "test")
    if kind == "imagenet":
        return ["pictures"]
    if kind == "ssv2":
        return ["a frame of each of equal parts of the video instead of a clip"]
    notes = ["clips of exact strides"] if cfg.LOADER.CLIP_SPAN == "exact" else []
    return notes + (["the last view ends with the video"] if cfg.EVAL.VIEWS == "to_end" else [])
