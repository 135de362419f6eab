"""The only place where a config becomes objects. Below it every constructor takes plain arguments."""

import logging
import os
from collections.abc import Callable, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from revvideo.config import ConfigError
from revvideo.config.batch import BatchPlan
from revvideo.data import sampling
from revvideo.data.dataset import ClipSpec, EvalClips, TrainClips
from revvideo.data.loader import Batch, ClipLoader, eval_loader, train_loader
from revvideo.data.manifest import Manifest, read_manifest, require_files
from revvideo.data.mixing import Mixing
from revvideo.data.transforms import EvalTransform, TrainTransform, normalise
from revvideo.engine.losses import Loss, make_loss
from revvideo.engine.optimizer import make_optimizer, parameter_groups
from revvideo.engine.schedule import learning_rate
from revvideo.engine.trainer import TrainSettings
from revvideo.errors import InputError
from revvideo.models.mvit import MViT, PatchSpec, plan_blocks
from revvideo.models.rev_mvit import RevMViT

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# Options of the model whose other values this version does not build.
_ONLY = {
    "MVIT.MODE": "conv",
    "MVIT.NORM": "layernorm",
    "MVIT.POOL_FIRST": False,
    "MVIT.PATCH_2D": False,
    "MVIT.LAYER_SCALE_INIT_VALUE": 0.0,
    "MVIT.NORM_STEM": False,
    "MVIT.USE_ABS_POS": True,
    "MVIT.USE_FIXED_SINCOS_POS": False,
    "MVIT.REL_POS_SPATIAL": False,
    "MVIT.REL_POS_TEMPORAL": False,
    "MVIT.RESIDUAL_POOLING": False,
    "MVIT.DIM_MUL_IN_ATT": False,
    "MVIT.SEPARATE_QKV": False,
    "MVIT.HEAD_INIT_SCALE": 1.0,
    "MVIT.USE_MEAN_POOLING": False,
    "MVIT.REV.RESPATH_FUSE": "concat",
    "MVIT.REV.RES_PATH": "conv",
    "MVIT.REV.PRE_Q_FUSION": "avg",
    "MODEL.HEAD_ACT": "softmax",
}


def build_model(cfg: CfgNode) -> nn.Module:
    """The network of a config, on the CPU: float clips `(B, C, T, H, W)` to logits `(B, MODEL.NUM_CLASSES)`.

    Raises:
        ConfigError: an option that this version does not build, or numbers that make no network.
    """
    for name, expected in _ONLY.items():
        value = _get(cfg, name)
        if value != expected:
            raise ConfigError(f"{name} is {value!r}; this version builds only {expected!r}")
    mvit, size = cfg.MVIT, cfg.DATA.TRAIN_CROP_SIZE
    reversible = mvit.REV.ENABLE
    try:
        blocks = plan_blocks(
            depth=mvit.DEPTH,
            embed_dim=mvit.EMBED_DIM,
            num_heads=mvit.NUM_HEADS,
            dim_mul=mvit.DIM_MUL,
            head_mul=mvit.HEAD_MUL,
            pool_q_stride=mvit.POOL_Q_STRIDE,
            pool_kv_stride=mvit.POOL_KV_STRIDE,
            pool_kv_stride_adaptive=mvit.POOL_KV_STRIDE_ADAPTIVE,
            pool_kvq_kernel=mvit.POOL_KVQ_KERNEL,
            mlp_ratio=mvit.MLP_RATIO,
            qkv_bias=mvit.QKV_BIAS,
            drop_path=mvit.DROPPATH_RATE,
            widen_in_attention=reversible,
        )
        common = {
            "blocks": blocks,
            "num_classes": cfg.MODEL.NUM_CLASSES,
            "head_dropout": cfg.MODEL.DROPOUT_RATE,
            "dropout": mvit.DROPOUT_RATE,
            "input_size": (cfg.DATA.NUM_FRAMES, size, size),
            "in_channels": cfg.DATA.INPUT_CHANNEL_NUM[0],
            "patch": PatchSpec(tuple(mvit.PATCH_KERNEL), tuple(mvit.PATCH_STRIDE), tuple(mvit.PATCH_PADDING)),
            "separable_positions": mvit.SEP_POS_EMBED,
            "init_scheme": cfg.INIT.SCHEME,
        }
        if not reversible:
            return MViT(class_token=mvit.CLS_EMBED_ON, checkpoint_blocks=cfg.MODEL.ACT_CHECKPOINT, **common)
        return RevMViT(
            transitions=mvit.REV.BUFFER_LAYERS,
            backprop=cfg.REV.BACKPROP,
            stage_drop_path=cfg.REV.STAGE_DROPPATH,
            shared_mask=cfg.REV.SHARED_FG_MASK,
            **common,
        )
    except ValueError as error:
        raise ConfigError(f"the model cannot be built: {error}") from error


def _get(cfg: CfgNode, name: str):
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def choose_device(cfg: CfgNode) -> torch.device:
    """The one device that a plain run uses: the CPU for NUM_GPUS 0, else the first GPU.

    Raises:
        ConfigError: the config asks for several machines or GPUs, or for a GPU that is not there; the message says
            which overrides run it here.
    """
    here = f"NUM_SHARDS 1 NUM_GPUS {int(torch.cuda.is_available())}" + (" SHARD_ID 0" if cfg.SHARD_ID else "")
    if cfg.NUM_SHARDS > 1:
        raise ConfigError(
            f"NUM_SHARDS is {cfg.NUM_SHARDS}, but this is a plain run on one machine; to run the config here, in one "
            f"process, add: {here} (and leave out --num_shards; the batch stays TRAIN.BATCH_SIZE "
            f"{cfg.TRAIN.BATCH_SIZE}, per machine)"
        )
    if cfg.NUM_GPUS > 1:
        raise ConfigError(
            f"NUM_GPUS is {cfg.NUM_GPUS}; this version trains in one process, on the CPU or one GPU: add {here}"
        )
    if cfg.NUM_GPUS == 1 and not torch.cuda.is_available():
        raise ConfigError("NUM_GPUS is 1, but torch finds no CUDA device; add NUM_GPUS 0 to run on the CPU")
    return torch.device("cuda" if cfg.NUM_GPUS else "cpu")


def build_loss(cfg: CfgNode) -> Loss:
    """The loss of MODEL.LOSS_FUNC."""
    return make_loss(cfg.MODEL.LOSS_FUNC)


def build_optimizer(cfg: CfgNode, model: nn.Module, plan: BatchPlan) -> torch.optim.Optimizer:
    """The optimizer of SOLVER over the parameter groups of `model`."""
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        weight_decay=solver.WEIGHT_DECAY,
        zero_weight_decay_1d=solver.ZERO_WD_1D_PARAM,
        no_decay_keywords=None if cfg.MVIT.ZERO_DECAY_POS_CLS else (),
        layer_decay=solver.LAYER_DECAY,
        bn_weight_decay=cfg.BN.WEIGHT_DECAY,
    )
    return make_optimizer(
        solver.OPTIMIZING_METHOD,
        groups,
        lr=plan.base_lr,
        momentum=solver.MOMENTUM,
        dampening=solver.DAMPENING,
        nesterov=solver.NESTEROV,
        betas=solver.BETAS,
    )


def train_settings(cfg: CfgNode, plan: BatchPlan) -> TrainSettings:
    """How to train, from SOLVER, TRAIN, AMP and LOADER."""
    solver = cfg.SOLVER

    def rate(epoch_exact: float) -> float:
        return learning_rate(
            epoch_exact,
            policy=solver.LR_POLICY,
            base_lr=plan.base_lr,
            max_epoch=solver.MAX_EPOCH,
            end_lr=plan.cosine_end_lr,
            warmup_epochs=solver.WARMUP_EPOCHS,
            warmup_start_lr=plan.warmup_start_lr,
            cosine_after_warmup=solver.COSINE_AFTER_WARMUP,
            steps=solver.STEPS,
            relative_lrs=solver.LRS,
        )

    return TrainSettings(
        max_epoch=solver.MAX_EPOCH,
        learning_rate=rate,
        eval_period=cfg.TRAIN.EVAL_PERIOD,
        checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
        log_period=cfg.LOG_PERIOD,
        amp_dtype=AMP_DTYPES[cfg.AMP.DTYPE] if cfg.TRAIN.MIXED_PRECISION else None,
        clip_value=solver.CLIP_GRAD_VAL or None,
        clip_l2_norm=solver.CLIP_GRAD_L2NORM or None,
        max_bad_fraction=cfg.LOADER.MAX_BAD_FRACTION,
    )


def eval_amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Autocast type of the evaluation; None is the parameters' own precision."""
    return AMP_DTYPES[cfg.AMP.DTYPE] if cfg.EVAL.MIXED_PRECISION else None


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
