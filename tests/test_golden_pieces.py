"""PySlowFast's parameter groups, drop-path rates and inflation, on the models of the shipped configs."""

import json

import pytest
import torch
from golden_recipe import CONFIGS, DATA, OFFICIAL_SHAPES, built, golden_weights, without_memory

from revvideo import load_config
from revvideo.build import build_optimizer
from revvideo.config.batch import batch_plan
from revvideo.models.checkpoint_formats import fit_weights

GOLDEN = json.loads((DATA / "golden_parameter_groups.json").read_text())


def groups_of(config: str, *overrides) -> tuple[list[dict], dict[int, str]]:
    """Parameter groups of the optimizer of a config, and the name of each parameter by its id."""
    cfg = load_config(CONFIGS[config], list(overrides))
    model = without_memory(built, config, overrides)
    groups = build_optimizer(cfg, model, batch_plan(cfg)).param_groups
    return groups, {id(parameter): name for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "golden", GOLDEN["weight_decay"], ids=lambda g: g["config"] + " ZERO_DECAY_POS_CLS" * g["positions"]
)
def test_weight_decay_groups(golden):
    config = golden["config"]
    groups, names = groups_of(config, "MVIT.ZERO_DECAY_POS_CLS", golden["positions"])
    sizes = [[g["weight_decay"], len(g["params"]), sum(p.numel() for p in g["params"])] for g in groups]
    assert sizes == golden["groups"]
    marks = zip(OFFICIAL_SHAPES[config], golden["undecayed"], strict=True)
    assert {names[id(p)] for p in groups[1]["params"]} == {name for name, mark in marks if mark == "1"}
    assert {(g["lr"], g["betas"], g["eps"], g["layer_decay"]) for g in groups} == {
        (golden["lr"], (0.9, 0.999), 1e-8, 1.0)
    }


def test_layer_decay_groups_of_a_plain_model():
    groups, names = groups_of("k400_VIT_B_16x4_FT")
    expected = GOLDEN["k400_VIT_B_16x4_FT"]["layer_decay"]
    assert len(groups) == len(expected) == 28
    for group, golden in zip(groups, expected):
        assert group["layer_decay"] == pytest.approx(golden["layer_decay"], rel=1e-12)
        assert (group["weight_decay"], len(group["params"])) == (golden["weight_decay"], golden["n"])
        assert [names[id(group["params"][i])] for i in (0, -1)] == [golden["first"], golden["last"]]


def test_layer_decay_reaches_the_blocks_of_a_reversible_model():
    """In PySlowFast, whose table this departs from, all blocks of REV_VIT_S keep the full rate."""
    groups, names = groups_of("REV_VIT_S", "SOLVER.LAYER_DECAY", 0.65)
    multipliers = {names[id(p)]: group["layer_decay"] for group in groups for p in group["params"]}
    depth = 12
    for name, multiplier in multipliers.items():
        if name.startswith("rev_backbone.layers."):
            layer = int(name.split(".")[2]) + 1
        else:
            layer = 0 if name.startswith(("pos_embed", "patch_embed")) else depth + 1
        assert multiplier == pytest.approx(0.65 ** (depth + 1 - layer), rel=1e-12), name
    assert multipliers.keys() == OFFICIAL_SHAPES["REV_VIT_S"].keys()
    assert len(groups) == 2 * (depth + 2)


@pytest.mark.parametrize("config", GOLDEN["drop_path"])
def test_drop_path_rates_of_the_blocks(config):
    model = without_memory(built, config)
    if config.startswith("REV"):
        rates = [layer.drop_path for layer in model.rev_backbone.layers]
    else:
        rates = [block.drop_path.probability for block in model.blocks]
    assert rates == pytest.approx(GOLDEN["drop_path"][config], rel=1e-6, abs=0)


@pytest.mark.parametrize(("inflation", "share"), [("mean", 1 / 3), ("repeat", 1.0)])
def test_inflation_of_an_image_kernel(inflation, share):
    """CHECKPOINT_INFLATE divides by the 3 frames of the kernel, CHECKPOINT_IN_INIT does not."""
    image = golden_weights("MVIT_B_16_CONV")
    video = without_memory(built, "MVIT_B_16x4_CONV")
    report, state = fit_weights(video, image, allow={"head", "inflate", "interpolate"}, inflation=inflation)
    name = "patch_embed.proj.weight"
    expected = image[name].unsqueeze(2).repeat(1, 1, 3, 1, 1) * share
    torch.testing.assert_close(state[name], expected)
    assert any(entry.startswith(name) for entry in report.inflated)
