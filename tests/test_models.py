"""The models are the official ones: names, shapes, numbers; and their reversible backprop is exact."""

import pytest
import torch
from golden_recipe import without_memory
from gradients import assert_gradients_equal, parameter_gradients
from tiny_models import CLIP_SHAPE, NUM_CLASSES, TRANSITIONS, tiny_blocks, tiny_mvit, tiny_rev_mvit
from torch import Tensor, nn

from revvideo import build_model, create_model, list_models, load_config
from revvideo.config import ConfigError
from revvideo.models.rev_blocks import STAGE_DROP_PATH_MODES
from revvideo.models.reversible import BackpropOptions

OFFICIAL = {"REV_MVIT_B_16x4_CONV": "rev_mvit_b_16x4", "MVIT_B_16x4_CONV": "mvit_b_16x4"}


# Configs


@pytest.mark.parametrize("config", OFFICIAL)
def test_the_shipped_configs_build_the_models_of_the_registry(config):
    model = without_memory(build_model, load_config(f"Kinetics/{config}.yaml"))
    named = without_memory(create_model, OFFICIAL[config])
    rates = [[module.drop_path for module in m.modules() if hasattr(module, "drop_path")] for m in (model, named)]
    assert str(rates[0]) == str(rates[1])
    assert str(model) == str(named)


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ("MVIT_B_16x4_CONV", "MVIT.DIM_MUL", [[16, 2.0]]),
        ("REV_MVIT_B_16x4_CONV", "MVIT.REV.BUFFER_LAYERS", [1, 3]),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_key(config, key, value):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        without_memory(build_model, load_config(f"Kinetics/{config}.yaml", [key, value]))


# The registry


def test_list_models_takes_a_pattern():
    assert set(OFFICIAL.values()) <= set(list_models())
    assert "mvit_b_16x4" in list_models("mvit*")
    assert all(name.startswith("rev_") for name in list_models("rev_*"))
    assert list_models("rev_*")
    assert list_models("no such*") == []
    assert list_models() == sorted(list_models())


def test_an_unknown_model_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown model 'rev_mvit_b_16x5'; did you mean 'rev_mvit_b_16x4'\?"):
        create_model("rev_mvit_b_16x5")


# What goes in and what comes out

TINY = {"mvit": tiny_mvit, "mvit without class token": lambda: tiny_mvit(class_token=False), "rev_mvit": tiny_rev_mvit}


def clips(batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, *CLIP_SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", TINY)
def test_logits_in_both_modes_from_the_parts(name):
    model = TINY[name]()
    for mode in (True, False):
        logits = model.train(mode)(clips())
        assert logits.shape == (4, NUM_CLASSES)
        assert torch.equal(model.forward_head(model.forward_features(clips())), logits)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(
    "shape", [(2, 1, 8, 32, 32), (2, 3, 4, 32, 32), (2, 3, 8, 64, 64), (2, 8, 3, 32, 32), (3, 8, 32, 32)]
)
def test_clips_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"\(B, C, T, H, W\) = \(B, 3, 8, 32, 32\)") as caught:
        TINY[name]()(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_export_of_the_evaluation_forward():
    model, example = tiny_rev_mvit().eval(), clips(2)
    with torch.no_grad():
        exported = torch.export.export(model, (example,)).module()
        torch.testing.assert_close(exported(example + 1), model(example + 1))


# Backprop


def one_step(model: nn.Module, dtype: torch.dtype = torch.float32, autocast: bool = False) -> tuple[dict, Tensor]:
    """Gradients, and the random state after the step."""
    torch.manual_seed(7)
    x = clips(dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(x)
    nn.functional.cross_entropy(logits.to(torch.promote_types(dtype, torch.float32)), torch.arange(4)).backward()
    return {**parameter_gradients(model), "clips": x.grad}, torch.get_rng_state()


# "output" in float64 only: a dropped sample is exactly zero, the rebuilt one is not, and LayerNorm (eps 1e-6) makes a
# thousandfold of the difference.
@pytest.mark.parametrize("shared_mask", [False, True])
@pytest.mark.parametrize(
    ("dtype", "stage_drop_path"),
    [(torch.float64, "branches"), (torch.float32, "branches"), (torch.float64, "output")],
)
def test_reversible_gradients_of_the_network_are_those_of_plain_backprop(dtype, stage_drop_path, shared_mask):
    options = {"drop_path": 0.5, "dropout": 0.2, "head_dropout": 0.2}
    options |= {"stage_drop_path": stage_drop_path, "shared_mask": shared_mask}
    actual, expected = (
        one_step(tiny_rev_mvit(backprop=backprop, **options).to(dtype), dtype) for backprop in ("reversible", "plain")
    )
    assert torch.equal(actual[1], expected[1])
    assert_gradients_equal(actual[0], expected[0], dtype)


@pytest.mark.parametrize("autocast", [True, False])
def test_reversible_gradients_in_bfloat16(autocast):
    dtype = torch.float32 if autocast else torch.bfloat16
    actual, expected = (
        one_step(tiny_rev_mvit(backprop=backprop, drop_path=0.2, dropout=0.2).to(dtype), dtype, autocast)
        for backprop in ("reversible", "plain")
    )
    assert torch.equal(actual[1], expected[1])
    assert_gradients_equal(actual[0], expected[0], torch.bfloat16)


@pytest.mark.parametrize("stage_drop_path", STAGE_DROP_PATH_MODES)
def test_drop_path_of_a_transition(stage_drop_path):
    """Branches: the sample keeps its skip path. Output: the sample is zero."""
    model = tiny_rev_mvit(drop_path=0.9, stage_drop_path=stage_drop_path)
    transition, x = model.rev_backbone.layers[3], torch.randn(64, 2 * 4 * 4, 16)
    assert transition.drop_path == pytest.approx(0.9 * 3 / 5)
    y, grid = transition(x, x, (2, 4, 4), options=BackpropOptions("plain"))
    assert grid == (2, 2, 2)
    assert y.shape == (64, 8, 32)
    zero = (y == 0).flatten(1).all(1)
    if stage_drop_path == "branches":
        assert not zero.any()
    else:
        assert 0.3 < zero.float().mean() < 0.8
        model.eval()
        kept = transition(x, x, (2, 4, 4), options=BackpropOptions("plain"))[0] / (1 - transition.drop_path)
        torch.testing.assert_close(y[~zero], kept[~zero])


def test_checkpointed_blocks_have_equal_gradients():
    actual, expected = (
        one_step(tiny_mvit(checkpoint_blocks=checkpoint, drop_path=0.5, dropout=0.2).double(), torch.float64)
        for checkpoint in (True, False)
    )
    assert torch.equal(actual[1], expected[1])
    assert_gradients_equal(actual[0], expected[0], torch.float64)


@pytest.mark.parametrize("missing", TRANSITIONS)
def test_a_transition_that_is_not_listed_is_refused(missing):
    with pytest.raises(ValueError, match=rf"block {missing} changes the width .*MVIT\.REV\.BUFFER_LAYERS"):
        tiny_rev_mvit(transitions=[i for i in TRANSITIONS if i != missing])


@pytest.mark.parametrize("transitions", [[*TRANSITIONS, 6], [-1, *TRANSITIONS]])
def test_a_transition_outside_of_the_network_is_refused(transitions):
    assert len(tiny_blocks()) == 6
    with pytest.raises(ValueError, match="BUFFER_LAYERS"):
        tiny_rev_mvit(transitions=transitions)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"REV\.BACKPROP"):
        tiny_rev_mvit(backprop="fast")
    with pytest.raises(ValueError, match=r"REV\.STAGE_DROPPATH is 'skip'"):
        tiny_rev_mvit(stage_drop_path="skip")
