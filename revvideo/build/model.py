"""The network of a config."""

import logging

import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo.build.baseline import build_baseline
from revvideo.build.input_spec import input_spec
from revvideo.config import ConfigError
from revvideo.config.defaults import KEYS, get_value
from revvideo.models.assemble import assemble
from revvideo.models.depthwise_pooling import check_operator
from revvideo.models.mvit import MViT
from revvideo.models.rev_mvit import RevMViT
from revvideo.models.video_transformer import PatchSpec

logger = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> nn.Module:
    """The network of a config, on the CPU: float clips `(B, C, T, H, W)` to logits `(B, MODEL.NUM_CLASSES)`.

    Raises:
        ConfigError: numbers that make no network.
    """
    if cfg.MODEL.ACT_CHECKPOINT and cfg.MODEL.MODEL_NAME == "MViT" and cfg.MVIT.REV.ENABLE:
        logger.warning("MODEL.ACT_CHECKPOINT has no effect on a reversible model; REV.BACKPROP is %s", cfg.REV.BACKPROP)
    idle = _without_effect(cfg)
    if idle:
        logger.warning("%s: without effect, for nothing is rebuilt in the backward", ", ".join(idle))
    try:
        if cfg.MODEL.MODEL_NAME != "MViT":
            return build_baseline(cfg)
        return assemble(RevMViT if cfg.MVIT.REV.ENABLE else MViT, _options(cfg), {})
    except ValueError as error:
        raise ConfigError(f"the model cannot be built: {error}") from error


def _without_effect(cfg: CfgNode) -> list[str]:
    """The keys of reversible backprop that are set although the model is trained with ordinary backprop."""
    if cfg.MODEL.MODEL_NAME == "MViT" and cfg.MVIT.REV.ENABLE and cfg.REV.BACKPROP == "reversible":
        return []
    names = [f"REV.{name}" for name in ("CHUNK", "KEEP_MIB", "BUFFER_EVERY", "PARALLEL", "CHECK_INVERSION_PERIOD")]
    return [name for name in names if get_value(cfg, name) != KEYS[name].default]


def check_pooling(cfg: CfgNode, device: torch.device) -> None:
    """Raise a ConfigError where COMPILE.POOLING cannot work on the device of a job."""
    try:
        check_operator(cfg.COMPILE.POOLING, device.type)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _options(cfg: CfgNode) -> dict:
    """MVIT, MODEL, REV and INIT as options of `assemble`."""
    mvit, rev = cfg.MVIT, cfg.MVIT.REV
    options = {
        "input_spec": input_spec(cfg),
        "num_classes": cfg.MODEL.NUM_CLASSES,
        "head_dropout": cfg.MODEL.DROPOUT_RATE,
        "head_init_scale": mvit.HEAD_INIT_SCALE,
        "detach_head": cfg.MODEL.DETACH_FINAL_FC,
        "mean_pooling": mvit.USE_MEAN_POOLING,
        "init_scheme": cfg.INIT.SCHEME,
        "patch": PatchSpec(tuple(mvit.PATCH_KERNEL), tuple(mvit.PATCH_STRIDE), tuple(mvit.PATCH_PADDING)),
        "positions": _positions(cfg),
        "norm_stem": mvit.NORM_STEM,
        "dropout": mvit.DROPOUT_RATE,
        "depth": mvit.DEPTH,
        "embed_dim": mvit.EMBED_DIM,
        "num_heads": mvit.NUM_HEADS,
        "dim_mul": mvit.DIM_MUL,
        "head_mul": mvit.HEAD_MUL,
        "pool_q_stride": mvit.POOL_Q_STRIDE,
        "pool_kv_stride": mvit.POOL_KV_STRIDE,
        "pool_kv_stride_adaptive": mvit.POOL_KV_STRIDE_ADAPTIVE,
        "pool_kvq_kernel": mvit.POOL_KVQ_KERNEL,
        "mlp_ratio": mvit.MLP_RATIO,
        "qkv_bias": mvit.QKV_BIAS,
        "drop_path": mvit.DROPPATH_RATE,
        "widen_in_attention": mvit.DIM_MUL_IN_ATT or rev.ENABLE,
        "pool_mode": mvit.MODE,
        "pool_first": mvit.POOL_FIRST,
        "separate_qkv": mvit.SEPARATE_QKV,
        "residual_pooling": mvit.RESIDUAL_POOLING,
        "relative_space": mvit.REL_POS_SPATIAL,
        "relative_time": mvit.REL_POS_TEMPORAL,
        "relative_zero_init": mvit.REL_POS_ZERO_INIT,
        "pooling": cfg.COMPILE.POOLING,
    }
    if rev.ENABLE:
        return options | {
            "transitions": rev.BUFFER_LAYERS,
            "respath_fuse": rev.RESPATH_FUSE,
            "pre_q_fusion": rev.PRE_Q_FUSION,
            "res_path": rev.RES_PATH,
            "backprop": cfg.REV.BACKPROP,
            "chunk_tokens": cfg.REV.CHUNK,
            "keep_mib": cfg.REV.KEEP_MIB,
            "buffer_every": cfg.REV.BUFFER_EVERY,
            "parallel": cfg.REV.PARALLEL,
            "stage_drop_path": cfg.REV.STAGE_DROPPATH,
            "shared_mask": cfg.REV.SHARED_FG_MASK,
        }
    return options | {
        "class_token": mvit.CLS_EMBED_ON,
        "layer_scale": mvit.LAYER_SCALE_INIT_VALUE,
        "checkpoint_blocks": cfg.MODEL.ACT_CHECKPOINT,
    }


def _positions(cfg: CfgNode) -> str:
    mvit = cfg.MVIT
    if mvit.USE_FIXED_SINCOS_POS:
        return "sincos_twice" if mvit.USE_ABS_POS else "sincos"
    if not mvit.USE_ABS_POS:
        return "none"
    return "separable" if mvit.SEP_POS_EMBED else "joint"
