"""Device, loss, optimizer and training settings of a config."""

import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo.config import ConfigError
from revvideo.config.batch import BatchPlan
from revvideo.distributed.env import Process
from revvideo.engine.losses import Loss, make_loss
from revvideo.engine.optimizer import make_optimizer, parameter_groups
from revvideo.engine.schedule import learning_rate
from revvideo.engine.train_step import StepSettings
from revvideo.engine.trainer import TrainSettings

ALONE = Process()
AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(cfg: CfgNode, process: Process = ALONE) -> torch.device:
    """The device of a process: the CPU for NUM_GPUS 0, else the GPU of its number on its machine.

    CUDA_VISIBLE_DEVICES stays as the launcher has set it: where each process sees one GPU, that is its own.

    Raises:
        ConfigError: there are fewer GPUs than processes, or none.
    """
    if not cfg.NUM_GPUS:
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise ConfigError(
            f"NUM_GPUS is {cfg.NUM_GPUS}, but torch finds no CUDA device; add NUM_GPUS 0 to run on the CPU"
        )
    if process.local_rank >= count > 1:
        raise ConfigError(
            f"process {process.local_rank} of this machine has no GPU: {count} are visible to the "
            f"{process.local_world_size} processes; start at most {count} of them (NUM_GPUS, --nproc-per-node, "
            "--ntasks-per-node)"
        )
    return torch.device("cuda", process.local_rank if count > 1 else 0)


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


def step_settings(cfg: CfgNode, num_parts: int) -> StepSettings:
    """How to make a step, from SOLVER, AMP and REV."""
    solver = cfg.SOLVER
    return StepSettings(
        num_parts=num_parts,
        amp_dtype=AMP_DTYPES[cfg.AMP.DTYPE] if cfg.TRAIN.MIXED_PRECISION else None,
        clip_value=solver.CLIP_GRAD_VAL or None,
        clip_l2_norm=solver.CLIP_GRAD_L2NORM or None,
        check_inversion_period=cfg.REV.CHECK_INVERSION_PERIOD,
        check_inversion_limit=cfg.REV.CHECK_INVERSION_LIMIT,
    )


def train_settings(cfg: CfgNode, plan: BatchPlan) -> TrainSettings:
    """When to do what, from SOLVER, TRAIN and RUN."""
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
        on_nan=cfg.RUN.ON_NAN,
    )


def eval_amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Autocast type of the evaluation; None is the parameters' own precision."""
    return torch.bfloat16 if cfg.EVAL.MIXED_PRECISION else None
