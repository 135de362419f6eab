"""Lists, loaders and model inputs of a config."""

import logging
import os
from collections.abc import Callable, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from revvideo.config import ConfigError
from revvideo.config.batch import BatchPlan
from revvideo.data import sampling
from revvideo.data.dataset import ClipSpec, EvalClips, TrainClips
from revvideo.data.loader import Batch, ClipLoader, eval_loader, train_loader
from revvideo.data.manifest import Manifest, read_manifest, require_files
from revvideo.data.mixing import Mixing
from revvideo.data.transforms import EvalTransform, TrainTransform, normalise
from revvideo.errors import InputError

logger = logging.getLogger(__name__)


def build_manifest(cfg: CfgNode, split: str) -> Manifest:
    """The list `DATA.PATH_TO_DATA_DIR/{split}.csv`, checked; videos that are missing are logged.

    Raises:
        InputError: no such list, a bad line, or not one video of it exists.
    """
    dataset = (cfg.TRAIN if split == "train" else cfg.TEST).DATASET
    if dataset.lower() != "kinetics":
        raise ConfigError(
            f"{'TRAIN' if split == 'train' else 'TEST'}.DATASET is {dataset!r}; this version reads kinetics"
        )
    if not cfg.DATA.PATH_TO_DATA_DIR:
        raise ConfigError(
            f"DATA.PATH_TO_DATA_DIR is empty; set it to the folder that holds {split}.csv, one 'path label' a line"
        )
    manifest = read_manifest(
        os.path.join(cfg.DATA.PATH_TO_DATA_DIR, f"{split}.csv"),
        separator=cfg.DATA.PATH_LABEL_SEPARATOR,
        prefix=cfg.DATA.PATH_PREFIX,
        num_classes=cfg.MODEL.NUM_CLASSES,
    )
    missing = require_files(manifest)
    if missing:
        logger.warning(
            "%d of %d videos of %s are missing, the first is %s",
            len(missing),
            len(manifest),
            manifest.source,
            missing[0],
        )
    return manifest


def build_train_loader(cfg: CfgNode, plan: BatchPlan) -> ClipLoader:
    """Random clips of train.csv."""
    data = cfg.DATA
    transform = TrainTransform(
        crop_size=data.TRAIN_CROP_SIZE,
        short_side_range=tuple(data.TRAIN_JITTER_SCALES),
        relative_scales=tuple(data.TRAIN_JITTER_SCALES_RELATIVE),
        relative_aspects=tuple(data.TRAIN_JITTER_ASPECT_RELATIVE),
        flip=data.RANDOM_FLIP,
        inverse_uniform=data.INV_UNIFORM_SAMPLE,
    )
    clips = TrainClips(
        build_manifest(cfg, "train"),
        _clip_spec(cfg),
        transform,
        seed=cfg.RNG_SEED,
        num_clips_per_video=cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1,
        backend=data.DECODING_BACKEND,
    )
    return train_loader(clips, batch_size=plan.videos_per_process, seed=cfg.RNG_SEED, **_worker_options(cfg))


def build_val_loader(cfg: CfgNode) -> ClipLoader:
    """One centre clip, centre crop, of every video of val.csv."""
    data = cfg.DATA
    transform = EvalTransform(crop_size=data.TEST_CROP_SIZE, short_side=data.TRAIN_JITTER_SCALES[0])
    clips = EvalClips(
        build_manifest(cfg, "val"), _clip_spec(cfg), transform, centre=True, backend=data.DECODING_BACKEND
    )
    return eval_loader(clips, **_worker_options(cfg))


def build_test_loader(cfg: CfgNode, num_views: int) -> ClipLoader:
    """All views of every video of test.csv: `num_views` in time, TEST.NUM_SPATIAL_CROPS in space."""
    data, crops = cfg.DATA, cfg.TEST.NUM_SPATIAL_CROPS
    short_side = data.TEST_CROP_SIZE if crops == 3 else data.TRAIN_JITTER_SCALES[0]
    clips = EvalClips(
        build_manifest(cfg, "test"),
        _clip_spec(cfg),
        EvalTransform(crop_size=data.TEST_CROP_SIZE, short_side=short_side),
        num_views=num_views,
        num_crops=crops,
        use_offset_sampling=data.USE_OFFSET_SAMPLING,
        backend=data.DECODING_BACKEND,
    )
    return eval_loader(clips, **_worker_options(cfg))


def _clip_spec(cfg: CfgNode) -> ClipSpec:
    return ClipSpec(cfg.DATA.NUM_FRAMES, cfg.DATA.SAMPLING_RATE, cfg.DATA.TARGET_FPS)


def _worker_options(cfg: CfgNode) -> dict:
    pin_memory = cfg.DATA_LOADER.PIN_MEMORY and cfg.NUM_GPUS > 0
    return {"num_workers": cfg.DATA_LOADER.NUM_WORKERS, "pin_memory": pin_memory}


def build_eval_input(cfg: CfgNode, device: torch.device) -> Callable[[Tensor], Tensor]:
    """uint8 clips `(B, T, C, H, W)` to normalised float ones `(B, C, T, H, W)` on `device`."""
    mean, std, reverse = cfg.DATA.MEAN, cfg.DATA.STD, cfg.DATA.REVERSE_INPUT_CHANNEL

    def prepare(video: Tensor) -> Tensor:
        return normalise(video.to(device, non_blocking=True), mean, std, reverse_channels=reverse)

    return prepare


def build_train_input(cfg: CfgNode, device: torch.device) -> Callable[[Batch, int, int], tuple[Tensor, Tensor]]:
    """A batch to what the trainer feeds the model: normalised and, with MIXUP.ENABLE, mixed clips, and targets."""
    normalised, mixing = build_eval_input(cfg, device), None
    if cfg.MIXUP.ENABLE:
        mixing = Mixing(
            num_classes=cfg.MODEL.NUM_CLASSES,
            mixup_alpha=cfg.MIXUP.ALPHA,
            cutmix_alpha=cfg.MIXUP.CUTMIX_ALPHA,
            prob=cfg.MIXUP.PROB,
            switch_prob=cfg.MIXUP.SWITCH_PROB,
            label_smoothing=cfg.MIXUP.LABEL_SMOOTH_VALUE,
        )

    def prepare(batch: Batch, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        clips, labels = normalised(batch.video), batch.label.to(device, non_blocking=True)
        if mixing is None:
            return clips, labels
        return mixing(clips, labels, sampling.mixing_generator(cfg.RNG_SEED, epoch, step, 0))

    return prepare


def temporal_views(cfg: CfgNode) -> Sequence[int]:
    """Numbers of temporal views to evaluate with: TEST.NUM_TEMPORAL_CLIPS, or else TEST.NUM_ENSEMBLE_VIEWS."""
    views = list(cfg.TEST.NUM_TEMPORAL_CLIPS) or [cfg.TEST.NUM_ENSEMBLE_VIEWS]
    if len(set(views)) != len(views):
        raise InputError(f"TEST.NUM_TEMPORAL_CLIPS is {views}; expected different numbers")
    return views
