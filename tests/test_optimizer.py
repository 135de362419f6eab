"""Parameter groups, layer decay, learning rates and clipping are PySlowFast's; what it does not do is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from revvideo.engine.optimizer import (
    clip_gradients,
    load_optimizer_state,
    make_optimizer,
    parameter_groups,
    set_lr,
)
from revvideo.errors import InputError

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_parameter_groups.json").read_text())


def skeleton(config: str) -> nn.Module:
    """A module with the parameter names and shapes of an official model, without memory behind them."""
    model = nn.Module()
    for name, shape in GOLDEN[config]["shapes"].items():
        *path, last = name.split(".")
        module = model
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(last, nn.Parameter(torch.empty(shape, device="meta")))
    return model


class Small(nn.Module):
    """Stem, two blocks, head, and a batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.norm(x))

    def layer_groups(self):
        blocks = [[f"layers.{i}.weight", f"layers.{i}.bias"] for i in range(2)]
        return [["stem.weight", "stem.bias"], *blocks, ["norm.weight", "norm.bias", "head.weight", "head.bias"]]


def sizes(groups):
    return [[g["weight_decay"], len(g["params"]), sum(p.numel() for p in g["params"])] for g in groups]


def test_rev_mvit_b_splits_as_in_pyslowfast():
    golden, model = GOLDEN["REV_MVIT_B_16x4_CONV"], skeleton("REV_MVIT_B_16x4_CONV")
    groups = parameter_groups(model, weight_decay=0.07, zero_weight_decay_1d=True)
    assert sizes(groups) == golden["plain"] == [[0.07, 106, 34_890_432], [0.0, 189, 72_688]]
    assert groups[0]["names"][:6] == golden["first_decayed"]
    keywords = {"pos_embed", "cls_token", "rel_pos"}
    groups = parameter_groups(model, weight_decay=0.07, zero_weight_decay_1d=True, no_decay_keywords=keywords)
    assert sizes(groups) == golden["zero_decay_positions"]
    model.no_weight_decay = lambda: keywords
    assert (
        sizes(parameter_groups(model, weight_decay=0.07, zero_weight_decay_1d=True)) == golden["zero_decay_positions"]
    )
    model.no_weight_decay = lambda: set()
    assert sizes(parameter_groups(model, weight_decay=0.07)) == [[0.07, 295, 34_963_120]]


def test_layer_decay_equals_pyslowfast():
    golden, model = GOLDEN["k400_VIT_B_16x4_FT"], skeleton("k400_VIT_B_16x4_FT")
    names = [name for name, _ in model.named_parameters()]
    stem = [name for name in names if name.startswith(("cls_token", "pos_embed", "patch_embed"))]
    blocks = [[name for name in names if name.startswith(f"blocks.{i}.")] for i in range(12)]
    head = [name for name in names if name.startswith(("norm", "head"))]
    model.layer_groups = lambda: [stem, *blocks, head]
    groups = parameter_groups(model, weight_decay=0.05, zero_weight_decay_1d=True, layer_decay=0.65)
    assert len(groups) == len(golden["layer_decay"]) == 28
    for group, expected in zip(groups, golden["layer_decay"]):
        assert group["layer_decay"] == pytest.approx(expected["layer_decay"], rel=1e-12)
        assert (group["weight_decay"], len(group["params"])) == (expected["weight_decay"], expected["n"])
        assert (group["names"][0], group["names"][-1]) == (expected["first"], expected["last"])


def test_batch_norm_and_frozen_parameters():
    model = Small()
    model.stem.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.1, zero_weight_decay_1d=True, bn_weight_decay=0.02)
    assert [(g["weight_decay"], g["names"]) for g in groups] == [
        (0.02, ["norm.weight", "norm.bias"]),
        (0.1, ["layers.0.weight", "layers.1.weight", "head.weight"]),
        (0.0, ["layers.0.bias", "layers.1.bias", "head.bias"]),
    ]
    with pytest.raises(InputError, match="nothing to train"):
        parameter_groups(model.requires_grad_(False), weight_decay=0.1)


def test_layer_decay_needs_the_models_layers():
    with pytest.raises(InputError, match=r"Linear has no layer_groups.*SOLVER.LAYER_DECAY 1.0"):
        parameter_groups(nn.Linear(2, 2), weight_decay=0.1, layer_decay=0.9)
    with pytest.raises(InputError, match=r"expected a number in \(0, 1\]"):
        parameter_groups(Small(), weight_decay=0.1, layer_decay=1.5)
    model = Small()
    full = model.layer_groups()
    model.layer_groups = lambda: full[:-1]
    with pytest.raises(InputError, match=r"leaves out 4 parameters: norm\.weight"):
        parameter_groups(model, weight_decay=0.1, layer_decay=0.9)
    model.layer_groups = lambda: [*full, full[0]]
    with pytest.raises(InputError, match=r"stem\.weight twice"):
        parameter_groups(model, weight_decay=0.1, layer_decay=0.9)


@pytest.mark.parametrize(("name", "cls"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW"), ("mt_adamw", "AdamW")])
def test_optimizers_and_learning_rates(name, cls):
    model = Small()
    optimizer = make_optimizer(name, parameter_groups(model, weight_decay=0.05, layer_decay=0.5), lr=0.2)
    assert type(optimizer) is getattr(torch.optim, cls)
    assert optimizer.defaults.get("foreach") is (True if name == "mt_adamw" else None)
    expected = [0.125, 0.25, 0.5, 1.0]  # stem, two blocks, head; the norm is a group of its own
    assert sorted({g["layer_decay"] for g in optimizer.param_groups}) == expected
    for lr in (0.2, 0.03):
        set_lr(optimizer, lr)
        assert [g["lr"] for g in optimizer.param_groups] == [lr * g["layer_decay"] for g in optimizer.param_groups]
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_unknown_and_impossible_optimizers_are_refused():
    groups = parameter_groups(nn.Linear(2, 2), weight_decay=0.0)
    with pytest.raises(InputError, match="OPTIMIZING_METHOD is 'lion'; known: sgd, adam, adamw, mt_adamw"):
        make_optimizer("lion", groups, lr=0.1)
    with pytest.raises(InputError, match="Nesterov"):
        make_optimizer("sgd", groups, lr=0.1, momentum=0.0, nesterov=True)


def test_clipping_by_value_then_by_norm_then_not():
    def gradients(**limits):
        parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([-4.0])
        norm = clip_gradients(parameters, **limits)
        assert norm.item() == 5.0  # from before the clipping
        return parameters[0].grad.tolist() + parameters[1].grad.tolist()

    assert gradients() == gradients(value=0, l2_norm=0) == gradients(l2_norm=10.0) == [3.0, 0.0, -4.0]
    assert gradients(value=1.0, l2_norm=0.1) == [1.0, 0.0, -1.0]
    assert gradients(l2_norm=1.0) == pytest.approx([0.6, 0.0, -0.8], rel=1e-5)
    assert clip_gradients([nn.Parameter(torch.zeros(2))]).item() == 0.0
    with pytest.raises(InputError, match="CLIP_GRAD_L2NORM is -1"):
        clip_gradients([], l2_norm=-1.0)


def test_optimizer_state_continues_or_is_refused():
    def trained(model, steps, state=None):
        optimizer = make_optimizer("adamw", parameter_groups(model, weight_decay=0.05), lr=0.01)
        if state:
            load_optimizer_state(optimizer, state, source="a.pyth")
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
        return optimizer.state_dict()

    torch.manual_seed(0)
    straight = nn.Linear(3, 3)
    broken = nn.Linear(3, 3)
    broken.load_state_dict(straight.state_dict())
    trained(straight, 4)
    saved = trained(broken, 2)
    trained(broken, 2, saved)
    assert torch.equal(straight.weight, broken.weight)

    advice = "TRAIN.CHECKPOINT_EPOCH_RESET"
    with pytest.raises(
        InputError, match=rf"a.pyth: its optimizer has groups of \[2\] .*this run's has \[1\].*{advice}"
    ):
        trained(nn.Linear(3, 3, bias=False), 1, saved)
    with pytest.raises(InputError, match=r"shape \(3, 3\) for a parameter of shape \(4, 3\)"):
        trained(nn.Linear(3, 4), 1, saved)
    with pytest.raises(InputError, match=r"weight there, 0\.weight here"):
        trained(nn.Sequential(nn.Linear(3, 3)), 1, saved)


@pytest.mark.parametrize(("before", "now"), [("adamw", "adam"), ("adam", "mt_adamw"), ("sgd", "sgd"), ("adamw", "sgd")])
def test_the_settings_of_an_optimizer_that_continues_are_the_configs(before, now):
    """As its learning rate is; another kind of optimizer is refused, instead of a KeyError in the first step."""
    model = nn.Linear(3, 3)
    model(torch.ones(2, 3)).square().sum().backward()

    def made(name, weight_decay):
        return make_optimizer(name, parameter_groups(model, weight_decay=weight_decay), lr=0.01)

    old, new, alike = made(before, 0.05), made(now, 0.5), made(now, 0.5)
    old.step()
    if now == "sgd" != before:
        with pytest.raises(InputError, match=r"its optimizer is one of the Adam family, this run's is sgd"):
            load_optimizer_state(new, old.state_dict(), source="a.pyth")
        return
    load_optimizer_state(new, old.state_dict(), source="a.pyth")
    settings, want = ([{**group, "params": None} for group in each.param_groups] for each in (new, alike))
    assert settings == want
    assert len(new.state_dict()["state"]) == 2
    new.step()
