"""Every key of the model reaches the network: its value, not the default, is found there."""

import math
from operator import attrgetter

import pytest
import torch
from torch import nn

from revvideo import build_model, load_config
from revvideo.build import check_pooling
from revvideo.config import ConfigError
from revvideo.models.pooling_attention import PoolingAttention

PLAIN, REVERSIBLE = "Kinetics/MVIT_B_16x4_CONV", "Kinetics/REV_MVIT_B_16x4_CONV"


def built(config: str, *options) -> nn.Module:
    with torch.device("meta"):
        return build_model(load_config(config, list(options)))


def dropouts(model: nn.Module) -> set[float]:
    return {m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout) and not n.startswith("head")}


def first(kind: str):
    """The first attention's attribute ``kind``."""
    return lambda model: attrgetter(kind)(next(m for m in model.modules() if isinstance(m, PoolingAttention)))


BOTH = [
    ("MVIT.MODE", "avg", first("options.pool_mode")),
    ("MVIT.POOL_FIRST", True, first("options.pool_first")),
    ("COMPILE.POOLING", "taps", first("options.pooling")),
    ("MVIT.SEPARATE_QKV", True, first("options.separate_qkv")),
    ("MVIT.RESIDUAL_POOLING", True, first("options.residual_pooling")),
    ("MVIT.REL_POS_SPATIAL", True, first("options.relative_space")),
    ("MVIT.REL_POS_TEMPORAL", True, first("options.relative_time")),
    ("MVIT.REL_POS_ZERO_INIT", True, first("options.relative_zero_init")),
    ("MVIT.PATCH_KERNEL", [1, 5, 5], lambda m: list(m.patch_embed.proj.kernel_size)),
    ("MVIT.PATCH_STRIDE", [4, 8, 8], lambda m: list(m.patch_embed.proj.stride)),
    ("MVIT.PATCH_PADDING", [0, 1, 1], lambda m: list(m.patch_embed.proj.padding)),
    ("MVIT.EMBED_DIM", 64, lambda m: m.patch_embed.proj.out_channels),
    ("MVIT.NUM_HEADS", 2, first("num_heads")),
    ("MVIT.DEPTH", 18, lambda m: m.depth),
    ("MVIT.MLP_RATIO", 3.0, lambda m: m._plan[0].mlp_ratio),
    ("MVIT.DROPPATH_RATE", 0.4, lambda m: m._plan[-1].drop_path),
    ("MVIT.HEAD_MUL", [[1, 4.0]], lambda m: [[i, b.num_heads / 1.0] for i, b in enumerate(m._plan) if i == 1]),
    ("MVIT.POOL_KVQ_KERNEL", [1, 3, 3], first("pool_k.kernel_size")),
    ("MVIT.POOL_KV_STRIDE_ADAPTIVE", [1, 4, 4], first("pool_k.stride")),
    ("MVIT.NORM_STEM", True, lambda m: m.norm_stem is not None),
    ("MVIT.DROPOUT_RATE", 0.3, lambda m: dropouts(m).pop()),
    ("MVIT.USE_ABS_POS", False, lambda m: m.positions != "none"),
    ("MVIT.SEP_POS_EMBED", False, lambda m: m.positions == "separable"),
    ("MVIT.USE_MEAN_POOLING", True, lambda m: m.mean_pooling),
    ("MVIT.HEAD_INIT_SCALE", 0.01, lambda m: m.head_init_scale),
    ("MODEL.NUM_CLASSES", 7, lambda m: m.get_classifier().out_features),
    ("MODEL.DROPOUT_RATE", 0.1, lambda m: m.head.dropout.p),
    ("MODEL.DETACH_FINAL_FC", True, lambda m: m.detach_head),
    ("INIT.SCHEME", "fan_in", lambda m: m.init_scheme),
    ("DATA.NUM_FRAMES", 8, lambda m: m.input_spec.frames),
    ("DATA.SAMPLING_RATE", 2, lambda m: m.input_spec.stride),
    ("DATA.MEAN", [0.1, 0.2, 0.3], lambda m: list(m.input_spec.mean)),
    ("DATA.STD", [0.1, 0.2, 0.3], lambda m: list(m.input_spec.std)),
]
ONLY_PLAIN = [
    ("MVIT.CLS_EMBED_ON", False, lambda m: m.cls_token is not None),
    ("MVIT.DIM_MUL_IN_ATT", True, lambda m: m.blocks[1].widen_in_attention),
    ("MVIT.LAYER_SCALE_INIT_VALUE", 0.1, lambda m: 0.1 if m.blocks[0].gamma_1 is not None else None),
    ("MODEL.ACT_CHECKPOINT", True, lambda m: m.checkpoint_blocks),
    ("MVIT.QKV_BIAS", False, lambda m: m.blocks[0].attn.qkv.bias is not None),
]
ONLY_REVERSIBLE = [
    ("MVIT.REV.RESPATH_FUSE", "avg", lambda m: m.fuse.mode),
    ("MVIT.REV.PRE_Q_FUSION", "concat_linear_2", lambda m: m.rev_backbone.layers[1].pre_q_fuse.mode),
    ("MVIT.REV.RES_PATH", "max", lambda m: "max" if m.rev_backbone.layers[1].max_pool_stride else "conv"),
    (
        "MVIT.REV.BUFFER_LAYERS",
        [1, 3, 5, 14],
        lambda m: [i for i, b in enumerate(m.rev_backbone.layers) if hasattr(b, "res_proj")],
    ),
    ("MVIT.QKV_BIAS", True, lambda m: m.rev_backbone.layers[0].F.attn.qkv.bias is not None),
    ("REV.BACKPROP", "plain", lambda m: m.rev_backbone.backprop.backprop),
    ("REV.CHUNK", 100, lambda m: m.rev_backbone.backprop.chunk_tokens),
    ("REV.KEEP_MIB", 7.5, lambda m: m.rev_backbone.backprop.keep_mib),
    ("REV.BUFFER_EVERY", 3, lambda m: m.rev_backbone.backprop.buffer_every),
    ("REV.PARALLEL", True, lambda m: m.rev_backbone.backprop.parallel),
    ("REV.STAGE_DROPPATH", "output", lambda m: m.rev_backbone.layers[1].drop_path_mode),
    ("REV.SHARED_FG_MASK", True, lambda m: m.rev_backbone.layers[0].shared_mask),
]
CASES = [(config, *case) for case in BOTH for config in (PLAIN, REVERSIBLE)]
CASES += [(PLAIN, *case) for case in ONLY_PLAIN] + [(REVERSIBLE, *case) for case in ONLY_REVERSIBLE]


@pytest.mark.parametrize(("config", "key", "value", "found"), CASES, ids=[f"{c[9:12]}-{k}" for c, k, *_ in CASES])
def test_a_key_reaches_the_network(config, key, value, found):
    def equals(model: nn.Module) -> bool:
        actual = found(model)
        actual = list(actual) if isinstance(actual, tuple) else actual
        return actual == (pytest.approx(value) if isinstance(value, float) and math.isfinite(value) else value)

    assert not equals(built(config))
    assert equals(built(config, key, value))


@pytest.mark.parametrize("setting", [(PLAIN,), (REVERSIBLE, "REV.BACKPROP", "plain")])
def test_keys_of_reversible_backprop_without_effect_are_named(setting, caplog):
    built(*setting, "REV.CHUNK", 7, "REV.PARALLEL", True)
    assert "REV.CHUNK, REV.PARALLEL: without effect" in caplog.text
    caplog.clear()
    built(*setting)
    built(REVERSIBLE, "REV.CHUNK", 7)
    assert "without effect" not in caplog.text


def test_a_pooling_operator_that_cannot_work_on_the_device_is_refused():
    cfg = load_config(REVERSIBLE, ["COMPILE.POOLING", "compiled"])
    with pytest.raises(ConfigError, match=r"'compiled' runs on the CPU, not on cuda; use 'auto' \(COMPILE.POOLING\)"):
        check_pooling(cfg, torch.device("cuda"))
    check_pooling(load_config(REVERSIBLE, []), torch.device("cuda"))


def test_strides_and_widths_reach_the_network():
    model = built(PLAIN, "MVIT.POOL_Q_STRIDE", [[2, 1, 2, 2]], "MVIT.DIM_MUL", [[2, 3.0]], "MVIT.HEAD_MUL", [])
    assert [i for i, block in enumerate(model.blocks) if block.pools] == [2]
    assert [block.dim_out for block in model._plan][:3] == [96, 288, 288]
    strides = [[0, 1, 4, 4], [5, 1, 2, 2]]
    model = built(PLAIN, "MVIT.POOL_KV_STRIDE_ADAPTIVE", None, "MVIT.POOL_KV_STRIDE", strides)
    assert {i: list(b.attn.pool_k.stride) for i, b in enumerate(model.blocks) if b.attn.pool_k} == {
        0: [1, 4, 4],
        5: [1, 2, 2],
    }


def test_crop_and_channels_reach_the_network():
    model = built(PLAIN, "DATA.TRAIN_CROP_SIZE", 112, "DATA.TEST_CROP_SIZE", 112)
    assert model.input_spec.shape == (3, 16, 112, 112)
    one = ["DATA.INPUT_CHANNEL_NUM", [1], "DATA.MEAN", [0.5], "DATA.STD", [0.2]]
    assert built(PLAIN, *one).patch_embed.proj.in_channels == 1


@pytest.mark.parametrize("name", ["MVITv2_S_16x4", "MVITv2_B_32x3", "MVITv2_L_40x3"])
def test_something_something_models(name):
    model = built(f"SSv2/{name}")
    assert model.num_classes == 174
    twin = built(f"Kinetics/{name}_test" if "L_" in name else f"Kinetics/{name}")
    ours, theirs = ({n: t.shape for n, t in m.state_dict().items() if "projection" not in n} for m in (model, twin))
    assert ours == theirs
