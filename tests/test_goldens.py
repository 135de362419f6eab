"""The shipped configs are the official models: PySlowFast's names, shapes and numbers for the same weights and input.

`golden_models.npz` holds PySlowFast's figures (commit 287ec00, float32 on the CPU); `golden_recipe` makes the weights.
"""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from golden_recipe import (
    CONFIGS,
    DATA,
    LABEL,
    OFFICIAL_SHAPES,
    built,
    golden_input,
    golden_model,
    shapes,
    without_memory,
)
from torch import Tensor, nn
from torch.nn import functional as F

from revvideo.models.reversible import ReversibleBlock

GOLDEN = np.load(DATA / "golden_models.npz")
FAST = ("REV_VIT_S", "IN_MVITv2_T", "REV_MVIT_B_16_CONV", "REV_MVIT_B_16x4_CONV")
SLOW = ("MVIT_B_16x4_CONV", "MVITv2_S_16x4", "k400_VIT_B_16x4_FT")

NUM_PARAMETERS = {
    "REV_MVIT_B_16x4_CONV": 34_963_120,
    "MVIT_B_16x4_CONV": 36_610_672,
    "MVIT_B_32x3_CONV": 53_115_280,
    "MVITv2_S_16x4": 34_537_744,
    "MVITv2_B_32x3": 51_230_128,
    "MVITv2_L_40x3_test": 213_390_112,
    "REV_VIT_S": 22_434_664,
    "REV_VIT_B": 87_335_656,
    "REV_MVIT_B_16_CONV": 39_689_320,
    "MVIT_B_16_CONV": 36_982_600,
    "IN_MVITv2_T": 24_173_320,
    "IN_MVITv2_S": 34_870_216,
    "IN_MVITv2_B": 51_472_744,
    "k400_VIT_B_16x4_FT": 86_702_224,
    "k400_VIT_L_16x4_FT": 304_506_256,
    "in1k_VIT_B_MaskFeat_FT": 86_567_656,
}
# Configs without a table of numbers: class with the highest logit, loss of class 7 (None: not known).
ARGMAX_AND_LOSS = {
    "MVIT_B_16_CONV": (162, 7.9296),
    "IN_MVITv2_S": (493, 6.81465),
    "in1k_VIT_B_MaskFeat_FT": (439, 6.93021),
    "REV_VIT_B": (514, 6.81176),
    "IN_MVITv2_B": (795, 5.99688),
    "MVIT_B_32x3_CONV": (349, 6.39026),
    "MVITv2_B_32x3": (79, 5.46155),
    "k400_VIT_L_16x4_FT": (125, 6.01471),
    "MVITv2_L_40x3_test": (389, None),
}
CHEAP = ("MVIT_B_16_CONV",)


def some_slow(names, fast) -> list:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Names and shapes


def test_every_official_config_is_here():
    assert OFFICIAL_SHAPES.keys() == CONFIGS.keys() == NUM_PARAMETERS.keys()
    assert {*FAST, *SLOW, *ARGMAX_AND_LOSS} == CONFIGS.keys()


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_the_official_ones(config):
    model = without_memory(built, config)
    assert shapes(model) == OFFICIAL_SHAPES[config]
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[config]


# Numbers


@pytest.fixture(scope="module")
def golden(request) -> tuple[str, nn.Module, Tensor]:
    """Name, the model with the golden weights and without dropout, the golden input."""
    config = request.param
    model = golden_model(config)
    absolute_sum = sum(weight.double().abs().sum().item() for weight in model.state_dict().values())
    assert absolute_sum == pytest.approx(GOLDEN[f"{config}/weights_abs_sum"].item(), rel=1e-9)
    clip = golden_input(model)
    np.testing.assert_array_equal(clip.flatten()[:8], GOLDEN[f"{config}/input_first8"])
    return config, model, clip


def relative_difference(actual: Tensor, golden: np.ndarray) -> float:
    expected = torch.from_numpy(golden).double()
    return ((actual.detach().double().flatten() - expected).norm() / expected.norm()).item()


@contextlib.contextmanager
def observed_tokens(model: nn.Module) -> Iterator[dict[str, tuple[float, float]]]:
    """A dict that an evaluation inside fills: mean and standard deviation of the tokens after every part of the model.

    The streams of a reversible block are Y1, which G reads, and Y2 = X2 + G(Y1), where F reads X2.
    """
    found: dict[str, tuple[float, float]] = {}
    handles = []

    def note(name: str, tokens: Tensor) -> None:
        tokens = tokens.double()
        found[name] = (tokens.mean().item(), tokens.std(correction=0).item())

    def note_output(module: nn.Module, name: str) -> None:
        def hook(module, args, output):
            note(name, output[0] if isinstance(output, tuple) else output)

        handles.append(module.register_forward_hook(hook))

    def note_streams(block: ReversibleBlock, name: str) -> None:
        second: list[Tensor] = []

        def hook(module, args, output):
            note(f"{name}.Y1", args[0])
            note(f"{name}.Y2", second.pop() + output)

        handles.append(block.F.register_forward_pre_hook(lambda module, args: second.append(args[0])))
        handles.append(block.G.register_forward_hook(hook))

    note_output(model.patch_embed, "patch_embed")
    note_output(model.pos_drop, "block_input")
    if hasattr(model, "rev_backbone"):
        note_output(model.final_drop, "backbone_out")
    for i, block in enumerate(model.rev_backbone.layers if hasattr(model, "rev_backbone") else model.blocks):
        if isinstance(block, ReversibleBlock):
            note_streams(block, f"layer{i:02}")
        else:
            note_output(block, f"layer{i:02}.X")
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def compared_norms(config: str, backprop: str) -> Mapping[str, float]:
    """Golden norm of the gradient of each parameter, but for those that are zero by mathematics."""
    norms = dict(zip(OFFICIAL_SHAPES[config], GOLDEN[f"{config}/{backprop}/grad_l2"].tolist(), strict=True))
    left_out = {name for name, zero in zip(norms, GOLDEN[f"{config}/zero_gradient"], strict=True) if zero}
    if not config.startswith("REV"):
        floor = 1e-6 * GOLDEN[f"{config}/{backprop}/grad_total_l2"]
        left_out |= {name for name, norm in norms.items() if norm < floor}
    # Softmax does not see what is added to every key; a head that reads the class token, no other query of block 15.
    unseen = {"norm_k.bias", "qkv.bias", "k.bias"}
    unread = {f"blocks.15.attn.{name}" for name in ("pool_q.weight", "rel_pos_t", "rel_pos_h", "rel_pos_w")}
    assert {name for name in left_out if name.rpartition(".attn.")[2] not in unseen} <= unread
    return {name: norm for name, norm in norms.items() if name not in left_out}


@pytest.mark.parametrize(
    ("golden", "backprop"),
    [
        ("REV_VIT_S", "reversible"),
        ("REV_VIT_S", "plain"),
        ("IN_MVITv2_T", "plain"),
        ("REV_MVIT_B_16_CONV", "reversible"),
        ("REV_MVIT_B_16_CONV", "plain"),
        ("REV_MVIT_B_16x4_CONV", "reversible"),
        pytest.param("REV_MVIT_B_16x4_CONV", "plain", marks=pytest.mark.slow),
        *(pytest.param(config, "plain", marks=pytest.mark.slow) for config in SLOW),
    ],
    indirect=["golden"],
)
def test_evaluation_and_training_are_pyslowfasts(golden, backprop):
    config, model, clip = golden
    if config.startswith("REV"):
        model.set_grad_checkpointing(backprop == "reversible")

    with torch.no_grad(), observed_tokens(model.eval()) as found:
        logits = model(clip)
    assert relative_difference(logits, GOLDEN[f"{config}/eval_logits"]) <= 5e-6
    assert relative_difference(logits.softmax(-1), GOLDEN[f"{config}/eval_softmax"]) <= 5e-6
    tokens = dict(zip(GOLDEN[f"{config}/token_names"].tolist(), GOLDEN[f"{config}/token_mean_std"], strict=True))
    assert found.keys() == tokens.keys()
    for name, (mean, std) in tokens.items():
        assert found[name] == pytest.approx((mean, std), rel=0, abs=1e-5 * std), name

    model.train().zero_grad()
    logits = model(clip)
    loss = F.cross_entropy(logits, torch.tensor([LABEL]))
    loss.backward()
    assert relative_difference(logits, GOLDEN[f"{config}/{backprop}/logits"]) <= 5e-6
    assert loss.item() == pytest.approx(GOLDEN[f"{config}/{backprop}/loss"].item(), rel=1e-5)
    norms = compared_norms(config, backprop)
    found = {name: p.grad.double().norm().item() for name, p in model.named_parameters() if name in norms}
    assert found == pytest.approx(norms, rel=1e-4, abs=0)


@pytest.mark.parametrize("config", some_slow(ARGMAX_AND_LOSS, CHEAP))
def test_class_and_loss_are_pyslowfasts(config):
    argmax, loss = ARGMAX_AND_LOSS[config]
    model = golden_model(config).eval()
    with torch.no_grad():
        logits = model(golden_input(model))
    assert logits.argmax().item() == argmax
    if loss is not None:
        assert F.cross_entropy(logits, torch.tensor([LABEL])).item() == pytest.approx(loss, rel=1e-5)
