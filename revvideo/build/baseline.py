"""pytorchvideo's networks from a config: MODEL.MODEL_NAME PTVResNet, PTVCSN, PTVR2plus1D, PTVX3D, PTVMViT."""

from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode

from revvideo.build.input_spec import input_spec
from revvideo.config import ConfigError
from revvideo.config.defaults import get_value
from revvideo.models.baseline_networks import Baseline
from revvideo.models.baselines import build_factorised, build_mvit, build_resnet, build_x3d

# What pytorchvideo's networks do not have: key -> the value that means "without it".
_COMMON = {"BN.NORM_TYPE": "batchnorm", "MODEL.FROZEN_BN": False}
_CONVOLUTIONAL = _COMMON | {
    "RESNET.STRIDE_1X1": False,
    "RESNET.ZERO_INIT_FINAL_CONV": False,
    "NONLOCAL.LOCATION": [[[]], [[]], [[]], [[]]],
}
_BOTTLENECK = _CONVOLUTIONAL | {"RESNET.TRANS_FUNC": "bottleneck_transform"}
# PySlowFast's PTVCSN and PTVR2plus1D ignore these keys, so that a value here would be lost without a word.
_FIXED_LAYOUT = _BOTTLENECK | {
    "RESNET.NUM_GROUPS": 1,
    "RESNET.SPATIAL_STRIDES": [[1], [2], [2], [2]],
    "RESNET.SPATIAL_DILATIONS": [[1], [1], [1], [1]],
}
_X3D = _CONVOLUTIONAL | {
    "RESNET.TRANS_FUNC": "x3d_transform",
    "X3D.SCALE_RES2": False,
    "X3D.CHANNELWISE_3x3x3": True,
}
_MVIT = _COMMON | {
    "MVIT.REV.ENABLE": False,
    "MVIT.LAYER_SCALE_INIT_VALUE": 0.0,
    "MVIT.USE_ABS_POS": True,
    "MVIT.USE_FIXED_SINCOS_POS": False,
    "MVIT.REL_POS_SPATIAL": False,
    "MVIT.REL_POS_TEMPORAL": False,
    "MVIT.RESIDUAL_POOLING": False,
    "MVIT.DIM_MUL_IN_ATT": False,
    "MVIT.HEAD_INIT_SCALE": 1.0,
    "MVIT.USE_MEAN_POOLING": False,
}


def build_baseline(cfg: CfgNode) -> Baseline:
    """The network of a config whose MODEL.MODEL_NAME starts with PTV, on the CPU.

    In evaluation the convolutional ones also take DATA.TEST_CROP_SIZE, and average the logits over the places of the
    larger picture (PySlowFast averages their softmax).

    Raises:
        ConfigError: an option that pytorchvideo's networks do not have, or numbers that make no network.
    """
    required, options = _NETWORKS[cfg.MODEL.MODEL_NAME]
    for name, expected in required.items():
        value = get_value(cfg, name)
        if value != expected:
            raise ConfigError(
                f"{name} is {value!r}; {cfg.MODEL.MODEL_NAME} (pytorchvideo) is built only with {expected!r}"
            )
    build, arguments = options(cfg)
    try:
        model = build(
            input_spec=input_spec(cfg),
            num_classes=cfg.MODEL.NUM_CLASSES,
            head_dropout=cfg.MODEL.DROPOUT_RATE,
            **arguments,
        )
    except ValueError as error:
        raise ConfigError(f"the {cfg.MODEL.MODEL_NAME} cannot be built: {error}") from error
    model.detach_head = cfg.MODEL.DETACH_FINAL_FC
    model.set_grad_checkpointing(cfg.MODEL.ACT_CHECKPOINT)
    return model


Options = tuple[Callable[..., Baseline], dict[str, Any]]


def _convolutional(cfg: CfgNode) -> dict[str, Any]:
    size = cfg.DATA.TEST_CROP_SIZE
    return {"eval_size": (size, size), "inplace_relu": cfg.RESNET.INPLACE_RELU}


def _bottleneck(cfg: CfgNode) -> dict[str, Any]:
    return _convolutional(cfg) | {"depth": cfg.RESNET.DEPTH, "width": cfg.RESNET.WIDTH_PER_GROUP}


def _resnet(cfg: CfgNode) -> Options:
    return build_resnet, _bottleneck(cfg) | {
        "arch": cfg.MODEL.ARCH,
        "groups": cfg.RESNET.NUM_GROUPS,
        "spatial_strides": _of_stages(cfg, "RESNET.SPATIAL_STRIDES"),
        "spatial_dilations": _of_stages(cfg, "RESNET.SPATIAL_DILATIONS"),
    }


def _of_stages(cfg: CfgNode, name: str) -> list[int]:
    """The numbers of the one pathway: [[1], [2], [2], [2]] -> [1, 2, 2, 2]."""
    rows = get_value(cfg, name)
    if [len(row) for row in rows] != [1, 1, 1, 1] or not all(isinstance(row[0], int) and row[0] >= 1 for row in rows):
        raise ConfigError(f"{name} is {rows!r}; expected four lists of one whole number, such as [[1], [2], [2], [2]]")
    return [row[0] for row in rows]


def _csn(cfg: CfgNode) -> Options:
    return build_factorised, _bottleneck(cfg) | {"kind": "csn"}


def _r2plus1d(cfg: CfgNode) -> Options:
    return build_factorised, _bottleneck(cfg) | {"kind": "r2plus1d"}


def _x3d(cfg: CfgNode) -> Options:
    return build_x3d, _convolutional(cfg) | {
        "width_factor": cfg.X3D.WIDTH_FACTOR,
        "depth_factor": cfg.X3D.DEPTH_FACTOR,
        "bottleneck_factor": cfg.X3D.BOTTLENECK_FACTOR,
        "stem_dim": cfg.X3D.DIM_C1,
        "head_dim": cfg.X3D.DIM_C5,
        "head_norm": cfg.X3D.BN_LIN5,
    }


def _mvit(cfg: CfgNode) -> Options:
    mvit, data = cfg.MVIT, cfg.DATA
    if data.TEST_CROP_SIZE != data.TRAIN_CROP_SIZE:
        raise ConfigError(
            f"DATA.TEST_CROP_SIZE is {data.TEST_CROP_SIZE}; expected DATA.TRAIN_CROP_SIZE ({data.TRAIN_CROP_SIZE}): "
            "the positions of an MViT are made for one crop"
        )
    return build_mvit, {
        "dropout": mvit.DROPOUT_RATE,
        "drop_path": mvit.DROPPATH_RATE,
        "depth": mvit.DEPTH,
        "embed_dim": mvit.EMBED_DIM,
        "num_heads": mvit.NUM_HEADS,
        "mlp_ratio": mvit.MLP_RATIO,
        "qkv_bias": mvit.QKV_BIAS,
        "class_token": mvit.CLS_EMBED_ON,
        "separable_positions": mvit.SEP_POS_EMBED,
        "norm_stem": mvit.NORM_STEM,
        "patch_kernel": mvit.PATCH_KERNEL,
        "patch_stride": mvit.PATCH_STRIDE,
        "patch_padding": mvit.PATCH_PADDING,
        "pool_mode": mvit.MODE,
        "pool_first": mvit.POOL_FIRST,
        "dim_mul": mvit.DIM_MUL,
        "head_mul": mvit.HEAD_MUL,
        "pool_q_stride": mvit.POOL_Q_STRIDE,
        "pool_kv_stride": mvit.POOL_KV_STRIDE,
        "pool_kv_stride_adaptive": mvit.POOL_KV_STRIDE_ADAPTIVE,
        "pool_kvq_kernel": mvit.POOL_KVQ_KERNEL,
    }


# MODEL.MODEL_NAME -> keys with one possible value, and the builder with its arguments.
_NETWORKS: dict[str, tuple[dict[str, Any], Callable[[CfgNode], Options]]] = {
    "PTVResNet": (_BOTTLENECK, _resnet),
    "PTVCSN": (_FIXED_LAYOUT, _csn),
    "PTVR2plus1D": (_FIXED_LAYOUT, _r2plus1d),
    "PTVX3D": (_X3D, _x3d),
    "PTVMViT": (_MVIT, _mvit),
}
