"""The models are the official ones: names, shapes, numbers; and their reversible backprop is exact."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from tiny_models import CLIP_SHAPE, NUM_CLASSES, TRANSITIONS, tiny_blocks, tiny_mvit, tiny_rev_mvit
from torch import Tensor, nn

from revvideo import build_model, create_model, list_models, load_config
from revvideo.config import ConfigError
from revvideo.models.rev_mvit import STAGE_DROP_PATH_MODES

DATA = Path(__file__).parent / "data"
GOLDEN = np.load(DATA / "golden_models.npz")
OFFICIAL = {"REV_MVIT_B_16x4_CONV": "rev_mvit_b_16x4", "MVIT_B_16x4_CONV": "mvit_b_16x4"}
NUM_PARAMETERS = {"REV_MVIT_B_16x4_CONV": 34_963_120, "MVIT_B_16x4_CONV": 36_610_672}
LABEL = 7  # of the golden clip


def official_shapes(config: str) -> dict[str, list[int]]:
    return json.loads((DATA / f"state_dict_{config}.json").read_text())


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def without_memory(build, *args, **options) -> nn.Module:
    """A full-size model of which only names and shapes are of interest."""
    with torch.device("meta"):
        return build(*args, **options)


# Goldens: what PySlowFast computes with the same weights


def golden_tensor(name: str, shape: list[int]) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def golden_weight(name: str, shape: list[int]) -> np.ndarray:
    """Small numbers; weights of LayerNorm around one."""
    around = 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0
    return golden_tensor(name, shape) * np.float32(0.02) + np.float32(around)


@pytest.fixture(scope="module")
def golden(request) -> tuple[str, nn.Module, Tensor]:
    """Official config, the model with the golden weights, the golden clip."""
    config = request.param
    weights = {name: golden_weight(name, shape) for name, shape in official_shapes(config).items()}
    absolute_sum = sum(np.abs(weight.astype(np.float64)).sum() for weight in weights.values())
    assert absolute_sum == pytest.approx(GOLDEN[f"{config}/weights_abs_sum"].item(), rel=1e-6)
    clip = golden_tensor("input", [1, 3, 16, 224, 224])
    np.testing.assert_array_equal(clip.ravel()[:8], GOLDEN[f"{config}/input_first8"])
    model = create_model(OFFICIAL[config], drop_path=0.0, head_dropout=0.0)
    model.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    return config, model, torch.from_numpy(clip)


def relative_difference(logits: Tensor, golden: np.ndarray) -> float:
    expected = torch.from_numpy(golden).double()
    return ((logits.double().flatten() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("golden", "backprop"),
    [
        ("REV_MVIT_B_16x4_CONV", "reversible"),
        pytest.param("REV_MVIT_B_16x4_CONV", "plain", marks=pytest.mark.slow),
        ("MVIT_B_16x4_CONV", "plain"),
    ],
    indirect=["golden"],
)
def test_logits_loss_and_gradient_norms_are_pyslowfasts(golden, backprop):
    config, model, clip = golden
    if config.startswith("REV"):
        model.rev_backbone.backprop = backprop
    model.eval()
    with torch.no_grad():
        assert relative_difference(model(clip), GOLDEN[f"{config}/eval_logits"]) < 5e-6

    model.train()
    model.zero_grad()
    logits = model(clip)
    loss = nn.functional.cross_entropy(logits, torch.tensor([LABEL]))
    loss.backward()
    assert relative_difference(logits.detach(), GOLDEN[f"{config}/{backprop}/logits"]) < 5e-6
    assert loss.item() == pytest.approx(GOLDEN[f"{config}/{backprop}/loss"].item(), rel=1e-5)
    golden_norms = dict(zip(official_shapes(config), GOLDEN[f"{config}/{backprop}/grad_l2"], strict=True))
    left_out = set(np.array(list(golden_norms))[GOLDEN[f"{config}/zero_gradient"]])
    if not config.startswith("REV"):
        floor = 1e-6 * GOLDEN[f"{config}/{backprop}/grad_total_l2"]
        left_out |= {name for name, norm in golden_norms.items() if norm < floor}
    # Zero by mathematics: softmax does not see what is added to every key.
    assert {name.rpartition(".attn.")[2] for name in left_out} <= {"norm_k.bias", "qkv.bias"}
    norms = {name: p.grad.double().norm().item() for name, p in model.named_parameters() if name not in left_out}
    assert norms == pytest.approx({name: golden_norms[name] for name in norms}, rel=1e-4, abs=0)
    assert len(norms) + len(left_out) == len(golden_norms)


# Names and shapes


@pytest.mark.parametrize("config", OFFICIAL)
def test_parameters_are_the_official_ones(config):
    model = without_memory(create_model, OFFICIAL[config])
    assert shapes(model) == official_shapes(config)
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[config]


@pytest.mark.parametrize("config", OFFICIAL)
def test_the_shipped_configs_build_the_official_models(config):
    model = without_memory(build_model, load_config(f"Kinetics/{config}.yaml"))
    assert shapes(model) == official_shapes(config)
    named = without_memory(create_model, OFFICIAL[config])
    rates = [[module.drop_path for module in m.modules() if hasattr(module, "drop_path")] for m in (model, named)]
    assert str(rates[0]) == str(rates[1])
    assert str(model) == str(named)


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        ("MVIT_B_16x4_CONV", "MVIT.MODE", "avg"),
        ("MVIT_B_16x4_CONV", "MVIT.REL_POS_SPATIAL", True),
        ("MVIT_B_16x4_CONV", "MVIT.DIM_MUL", [[16, 2.0]]),
        ("REV_MVIT_B_16x4_CONV", "MVIT.MODE", "avg"),
        ("REV_MVIT_B_16x4_CONV", "MVIT.REV.RESPATH_FUSE", "add"),
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


@pytest.mark.parametrize("name", list_models())
def test_every_model_takes_a_number_of_classes(name):
    assert without_memory(create_model, name).head.projection.out_features == 400
    assert without_memory(create_model, name, num_classes=8).head.projection.out_features == 8


@pytest.mark.parametrize("name", list_models())
def test_every_model_sorts_its_parameters(name):
    model = without_memory(create_model, name)
    groups = model.layer_groups()
    names = [name for name, _ in model.named_parameters()]
    assert len(groups) == model.depth + 2
    assert all(groups)
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert "patch_embed.proj.weight" in groups[0]
    assert {"norm.weight", "head.projection.weight"} <= set(groups[-1])
    without_decay = {fragment: [n for n in names if fragment in n] for fragment in model.no_weight_decay()}
    assert "pos_embed" in without_decay
    assert without_decay["pos_embed"]
    has_token = any(name == "cls_token" for name in names)
    assert all(found for fragment, found in without_decay.items() if fragment != "cls_token" or has_token)


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


# Not with two frames of tokens: there torch 2.15 computes a wrong weight gradient of a bfloat16 depthwise conv3d.
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
    y, grid = transition(x, x, (2, 4, 4), recompute=False)
    assert grid == (2, 2, 2)
    assert y.shape == (64, 8, 32)
    zero = (y == 0).flatten(1).all(1)
    if stage_drop_path == "branches":
        assert not zero.any()
    else:
        assert 0.3 < zero.float().mean() < 0.8
        model.eval()
        kept = transition(x, x, (2, 4, 4), recompute=False)[0] / (1 - transition.drop_path)
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


def test_a_transition_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match=r"MVIT\.REV\.BUFFER_LAYERS.*MVIT\.POOL_Q_STRIDE"):
        tiny_rev_mvit(transitions=[*TRANSITIONS, 4])


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
