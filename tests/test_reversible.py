"""The reversible engine against plain backprop on the same weights and random numbers: equal gradients whatever people
do with precisions, masks, forwards and losses."""

import contextlib
import copy

import pytest
import torch
from gradients import assert_gradients_equal
from reversible_networks import (
    BATCH,
    DEPTH,
    assert_like_plain,
    autocast,
    both,
    plain_step,
    streams,
    transformer,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revvideo.models.reversible import BackpropOptions, ReversibleSequence

# The rule itself


GRADIENTS = {
    "a": torch.tensor([3.0, 4.0], dtype=torch.float64),
    "zero": torch.zeros(2, dtype=torch.float64),
    "no": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"a": GRADIENTS["a"] * (1 + 2e-10)},
        {"a": -GRADIENTS["a"]},
        {"a": GRADIENTS["a"] * float("nan")},
        {"a": None},
        {"a": GRADIENTS["a"].float()},
        {"a": GRADIENTS["a"][:1]},
        {"zero": torch.full((2,), 1e-13, dtype=torch.float64)},
        {"no": torch.zeros(2, dtype=torch.float64)},
        {"more": None},
    ],
)
def test_the_gradient_rule_can_fail(change):
    assert_gradients_equal({**GRADIENTS, "a": GRADIENTS["a"] * (1 + 5e-11)}, GRADIENTS, torch.float64)
    with pytest.raises(AssertionError):
        assert_gradients_equal({**GRADIENTS, **change}, GRADIENTS, torch.float64)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_the_gradient_rule_refuses_gradients_that_prove_nothing(value):
    nothing = {"a": torch.full((2,), value)}
    with pytest.raises(AssertionError, match="proves nothing"):
        assert_gradients_equal(nothing, nothing, torch.float32)


# Precisions and random numbers


@pytest.mark.parametrize("shared_mask", [False, True])
@pytest.mark.parametrize(("drop_path", "dropout"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.2), (0.5, 0.2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_and_random_state_are_those_of_plain_backprop(dtype, drop_path, dropout, shared_mask):
    network = transformer(dtype, drop_path=drop_path, dropout=dropout, shared_mask=shared_mask)
    assert_like_plain(plain_step, network, dtype=dtype)


def test_drop_path_and_dropout_drop_in_these_tests():
    x1, x2 = streams()
    for options in ({"drop_path": 0.5, "dropout": 0.0}, {"drop_path": 0.0, "dropout": 0.2}):
        network = transformer(**options)
        with torch.no_grad():
            first, second = network(x1, x2), network(x1, x2)
            assert not torch.equal(first[0], second[0])
            network.eval()
            assert torch.equal(network(x1, x2)[0], network(x1, x2)[0])


def test_a_dropped_branch_gives_no_gradient_to_its_input():
    network, (x1, x2) = transformer(depth=1, drop_path=0.5, dropout=0.0), streams()
    y1, _ = network(x1, x2)
    y1.sum().backward()
    kept = [bool(g.abs().sum() > 0) for g in x2.grad]
    assert kept == [not torch.equal(a, b) for a, b in zip(y1, x1, strict=True)]
    assert 0 < sum(kept) < BATCH


def test_outputs_are_bit_equal_to_plain_in_training_and_evaluation():
    network, (x1, x2) = transformer(), streams()
    plain = copy.deepcopy(network)
    plain.options = BackpropOptions("plain")
    for mode in (True, False):
        outputs = []
        for each in (network, plain):
            torch.manual_seed(7)
            outputs.append(torch.stack(each.train(mode)(x1, x2)))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("stream_dtype", [torch.float32, torch.bfloat16])
def test_autocast_with_the_backward_outside_of_it(stream_dtype):
    def scenario(network, x1, x2):
        with autocast():
            pair = network(x1, x2)
        assert not torch.is_autocast_enabled("cpu")
        both(pair).backward()

    network = transformer(torch.float32)
    assert_like_plain(scenario, network, dtype=torch.bfloat16, stream_dtype=stream_dtype)
    assert {p.grad.dtype for p in network.parameters()} == {torch.float32}


def test_autocast_with_a_weight_that_is_used_after_the_sequence():
    def scenario(network, x1, x2):
        with autocast():  # its cache of cast weights must not hold one that was cast without a gradient
            pair = network(x1, x2)
            after = network.layers[1].F.proj(x2)
        (both(pair) + 100 * after.double().square().sum()).backward()

    assert_like_plain(scenario, transformer(torch.float32), dtype=torch.bfloat16, stream_dtype=torch.float32)


class CallRecorder(TorchDispatchMode):
    """Records, for each call of each watched module, its ops as (op, dtypes in, dtypes out)."""

    def __init__(self, modules: dict[str, nn.Module]):
        super().__init__()
        self.calls: dict[str, list[list[tuple]]] = {name: [] for name in modules}
        self.inside: str | None = None
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self.enter(name))
            module.register_forward_hook(lambda *_: self.leave())

    def enter(self, name):
        self.inside = name
        self.calls[name].append([])

    def leave(self):
        self.inside = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self.inside and func is not torch.ops.aten.detach.default:  # an alias, made where there is a graph
            dtypes = [tuple(t.dtype for t in tree_leaves(x) if isinstance(t, Tensor)) for x in ((args, kwargs), result)]
            self.calls[self.inside][-1].append((str(func), *dtypes))
        return result


@pytest.mark.parametrize("mode", ["autocast", "float32", "bfloat16 model"])
def test_every_op_of_the_recompute_has_the_dtypes_that_it_had_in_the_forward(mode):
    network = transformer(torch.bfloat16 if mode == "bfloat16 model" else torch.float32)
    branches = {f"{i}.{name}": getattr(layer, name) for i, layer in enumerate(network.layers) for name in "FG"}
    x1, x2 = streams(torch.bfloat16 if mode == "bfloat16 model" else torch.float32)
    with CallRecorder(branches) as recorder:
        with autocast() if mode == "autocast" else contextlib.nullcontext():
            pair = network(x1, x2)
        both(pair).backward()
    for name, calls in recorder.calls.items():
        assert len(calls) == 2, f"{name} was called {len(calls)} times, expected forward and recompute"
        forward, recompute = calls
        assert len(forward) > 5
        assert forward == recompute, name
    seen = {dtype for calls in recorder.calls.values() for _, ins, outs in calls[0] for dtype in (*ins, *outs)}
    assert (torch.bfloat16 in seen) == (mode != "float32")


@pytest.mark.parametrize("x2_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x1_dtype", [torch.float32, torch.bfloat16])
def test_both_streams_stay_float32_under_autocast(x1_dtype, x2_dtype):
    network = transformer(torch.float32)
    read = []
    for layer in network.layers:
        for branch in (layer.F, layer.G):
            branch.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].dtype))
    x1, x2 = streams()
    with autocast():
        pair, kept = network(x1.to(x1_dtype), x2.to(x2_dtype), intermediates=range(DEPTH))
    both(pair).backward()
    assert len(read) == 2 * 2 * DEPTH
    assert set(read) == {torch.float32}
    assert {y.dtype for each in (pair, *kept) for y in each} == {torch.float32}


def test_a_pure_bfloat16_model():
    network = transformer(torch.bfloat16)
    pair, kept = network(*streams(torch.bfloat16), intermediates=[1])
    assert {y.dtype for each in (pair, *kept) for y in each} == {torch.bfloat16}
    assert_like_plain(plain_step, network, dtype=torch.bfloat16)


# What people do with a graph


def test_two_forwards_before_one_backward():
    def scenario(network, x1, x2):
        first, second = network(x1, x2), network(x2, x1)
        (both(first) + 2 * both(second)).backward()

    assert_like_plain(scenario)


def test_two_forwards_and_two_backwards_in_either_order():
    def scenario(network, x1, x2, order):
        losses = [both(network(x1, x2)), 2 * both(network(x2, x1))]
        for i in order:
            losses[i].backward()

    for order in ((0, 1), (1, 0)):
        assert_like_plain(lambda *args, order=order: scenario(*args, order))


def test_one_forward_feeds_another():
    assert_like_plain(lambda network, x1, x2: both(network(*network(x1, x2))).backward())


def test_one_tensor_as_both_streams():
    assert_like_plain(lambda network, x1, x2: both(network(x1, x1)).backward())


def test_an_evaluation_forward_in_between():
    def scenario(network, x1, x2):
        pair = network(x1, x2)
        network.eval()
        with torch.no_grad():
            network(x2, x1)
        network.train()
        both(pair).backward()

    assert_like_plain(scenario)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_forward_counts_in_the_backward(mode):
    def scenario(network, x1, x2):
        network.train(mode)
        network.layers[1].G.drop.train(not mode)  # one submodule goes its own way
        pair = network(x1, x2)
        network.train(not mode)
        both(pair).backward()
        assert all(module.training is not mode for module in network.modules())

    assert_like_plain(scenario)


LOSSES = {
    "last and intermediates": lambda last, kept: both(last) + 2 * both(kept[0]) + 3 * both(kept[1]),
    "last only": lambda last, kept: both(last),
    "intermediates only": lambda last, kept: both(kept[0]) + 2 * both(kept[1]),
    "first intermediate only": lambda last, kept: both(kept[0]),
    "y1 of the last": lambda last, kept: last[0].square().sum(),
    "y2 of the last": lambda last, kept: last[1].square().sum(),
    "y1 of an intermediate": lambda last, kept: kept[1][0].square().sum(),
    "y2 of an intermediate": lambda last, kept: kept[1][1].square().sum(),
    "y1 of the last, y2 of an intermediate": lambda last, kept: last[0].square().sum() + kept[0][1].square().sum(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_on_intermediate_outputs(name):
    def scenario(network, x1, x2):
        last, kept = network(x1, x2, intermediates=[0, 2])
        LOSSES[name](last, kept).backward()

    assert_like_plain(scenario)


def test_intermediates_come_in_the_order_asked():
    network, (x1, x2) = transformer().eval(), streams()
    last, kept = network(x1, x2, intermediates=[DEPTH - 1, 0, 0])
    shallow = ReversibleSequence(network.layers[:1]).eval()(x1, x2)
    for pair, expected in zip(kept, (last, shallow, shallow), strict=True):
        assert all(torch.equal(y, e) for y, e in zip(pair, expected, strict=True))


def test_losses_on_several_outputs_backwards_one_by_one():
    def scenario(network, x1, x2):
        last, kept = network(x1, x2, intermediates=[1])
        both(last).backward(retain_graph=True)
        both(kept[0]).backward(retain_graph=True)
        both(last).backward()

    assert_like_plain(scenario)


def hooked_input(network, index: int) -> list[Tensor]:
    """What the F of a block reads in the forward: the stream y2 of the block before it."""
    caught = []
    network.layers[index].F.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    return caught


def test_a_hooked_intermediate_without_the_blocks_after_it_is_refused():
    network = transformer()
    caught = hooked_input(network, 2)
    pair = network(*streams())
    with pytest.raises(RuntimeError, match=r"without the blocks after it.*intermediates=\[index\]"):
        caught[0].sum().backward()
    network.zero_grad()
    both(pair).backward()  # the refusal has not spoilt the graph


def test_a_hooked_intermediate_together_with_the_blocks_after_it():
    def scenario(network, x1, x2):
        caught = hooked_input(network, 2)
        (both(network(x1, x2)) + 3 * caught[0].square().sum()).backward()

    assert_like_plain(scenario)


def test_gradient_accumulation():
    def scenario(network, x1, x2):
        for weight in (1, 2):
            (weight * both(network(x1, x2))).backward()

    assert_like_plain(scenario)
