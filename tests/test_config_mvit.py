"""The checks of MVIT's values at load: a wrong form is one readable error, before any model is built."""

import pytest
from config_checks import refused

from revvideo.config import IGNORED_KEYS, load_config
from revvideo.config.defaults import get_value

REV = "Kinetics/REV_MVIT_B_16x4_CONV"
PLAIN = "Kinetics/MVIT_B_16x4_CONV"
IMAGE = "ImageNet/MVIT_B_16_CONV"
FUSIONS = ("MVIT.REV.RESPATH_FUSE", "MVIT.REV.PRE_Q_FUSION")


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize(
    "mode",
    ["add", "max", "min", "avg", "concat"]
    + ["concat_linear", "concat_linear_2", "concat_linear_0.5_0.1", "ln+concat_linear", "ln+concat_linear_2_0"],
)
def test_stream_fusions(name, mode):
    assert get_value(load_config(REV, {name: mode}), name) == mode


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize(
    "mode",
    ["", "mean", "ln+concat", "ln+avg", "concat_linear_", "concat_linear_0", "concat_linear_-1", "concat_linear_two"]
    + ["concat_linear_2_1", "concat_linear_2_0.1_3", "concat_linear_inf", "concat_linear_nan", "avg\n"],
)
def test_unknown_stream_fusions(name, mode):
    expected = "add, max, min, avg, concat or [ln+]concat_linear[_MULT[_DROP]]"
    with refused("command line", f"{name} is {mode!r}", expected, "MULT > 0", "DROP from 0 to below 1"):
        load_config(REV, {name: mode})


@pytest.mark.parametrize(
    ("config", "name", "value", "expected"),
    [
        (PLAIN, "MVIT.PATCH_KERNEL", [7, 7], "3 numbers >= 1, for T, H and W (MVIT.PATCH_2D False)"),
        (PLAIN, "MVIT.PATCH_STRIDE", [2, 4, 0], "3 numbers >= 1"),
        (IMAGE, "MVIT.PATCH_KERNEL", [3, 7, 7], "2 numbers >= 1, for H and W (MVIT.PATCH_2D True)"),
        (IMAGE, "MVIT.PATCH_PADDING", [3, -1], "2 numbers >= 0"),
        (PLAIN, "MVIT.POOL_Q_STRIDE", [[1, 2, 2]], "[block, T, H, W] entries"),
        (PLAIN, "MVIT.POOL_Q_STRIDE", [[-1, 1, 2, 2]], "blocks from 0"),
        (PLAIN, "MVIT.POOL_Q_STRIDE", [[1, 1, 2.5, 2]], "whole numbers"),
        (PLAIN, "MVIT.POOL_KV_STRIDE", [[0, 1, 4, 4], [1, 0, 2, 2]], "strides from 1"),
        (PLAIN, "MVIT.POOL_KV_STRIDE_ADAPTIVE", [8, 8], "3 numbers >= 1, for T, H and W"),
        (PLAIN, "MVIT.POOL_KVQ_KERNEL", [3, 3, 0], "3 numbers >= 1, for T, H and W"),
        (PLAIN, "MVIT.DIM_MUL", [[1]], "[block, factor] entries"),
        (PLAIN, "MVIT.DIM_MUL", [[1.5, 2.0]], "[block, factor] entries"),
        (PLAIN, "MVIT.HEAD_MUL", [[1, 0.0]], "factors > 0"),
        (PLAIN, "MVIT.LAYER_SCALE_INIT_VALUE", -0.1, "a number >= 0"),
        (PLAIN, "MVIT.HEAD_INIT_SCALE", -1.0, "a number >= 0"),
    ],
)
def test_forms_that_cannot_work(config, name, value, expected):
    with refused("command line", f"{name} is {value!r}", expected):
        load_config(config, {name: value})


def test_patch_sizes_follow_patch_2d():
    with refused("MVIT.PATCH_KERNEL is [3, 7, 7]", "2 numbers"):
        load_config(PLAIN, {"MVIT.PATCH_2D": True})
    sizes = {"MVIT.PATCH_KERNEL": [7, 7], "MVIT.PATCH_STRIDE": [4, 4], "MVIT.PATCH_PADDING": [0, 0]}
    cfg = load_config(PLAIN, {"MVIT.PATCH_2D": True, "MVIT.REL_POS_TEMPORAL": True, **sizes})
    assert cfg.MVIT.SEP_POS_EMBED, "one row of time works as any other number of them"


def test_combinations_without_a_meaning():
    with refused("MVIT.USE_FIXED_SINCOS_POS is True", "MVIT.SEP_POS_EMBED is True", "MVIT_B_16x4_CONV.yaml", "one of"):
        load_config(PLAIN, {"MVIT.USE_FIXED_SINCOS_POS": True})
    assert load_config(PLAIN, {"MVIT.USE_FIXED_SINCOS_POS": True, "MVIT.SEP_POS_EMBED": False}).MVIT.USE_ABS_POS
    with refused("MVIT.LAYER_SCALE_INIT_VALUE is 0.1", "MVIT.REV.ENABLE is True", "no layer scale"):
        load_config(REV, {"MVIT.LAYER_SCALE_INIT_VALUE": 0.1})
    assert load_config(PLAIN, {"MVIT.LAYER_SCALE_INIT_VALUE": 0.1}).MVIT.LAYER_SCALE_INIT_VALUE == 0.1


def test_options_that_every_model_of_the_family_takes():
    for name in (REV, PLAIN):
        assert load_config(name, {"MVIT.NORM_STEM": True, "MODEL.DETACH_FINAL_FC": True}).MVIT.NORM_STEM
    assert "MODEL.DETACH_FINAL_FC" not in IGNORED_KEYS
