"""Device, loss, optimizer and training settings of a config."""

import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo.config import ConfigError
from revvideo.config.batch import BatchPlan
from revvideo.engine.losses import Loss, make_loss
from revvideo.engine.optimizer import make_optimizer, parameter_groups
from revvideo.engine.schedule import learning_rate
from revvideo.engine.trainer import TrainSettings

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


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
    """How to train, from SOLVER, TRAIN, AMP, LOADER and REV."""
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
        check_inversion_period=cfg.REV.CHECK_INVERSION_PERIOD,
        check_inversion_limit=cfg.REV.CHECK_INVERSION_LIMIT,
    )


def eval_amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Autocast type of the evaluation; None is the parameters' own precision."""
    return AMP_DTYPES[cfg.AMP.DTYPE] if cfg.EVAL.MIXED_PRECISION else None
