"""The reversible engine: equal gradients under everything that people do with a graph, and memory without depth."""

import contextlib
import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revvideo.models import reversible
from revvideo.models.reversible import ReversibleBlock, ReversibleSequence

BATCH, TOKENS, DIM, DEPTH = 8, 6, 8, 4


class Attention(nn.Module):
    """F: two heads, dropout behind."""

    def __init__(self, dropout: float):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        return self.drop(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """G, dropout in the middle and behind."""

    def __init__(self, dropout: float):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(self.norm(x))))))


def transformer(
    dtype=torch.float64, *, depth=DEPTH, drop_path=0.5, dropout=0.2, shared_mask=False
) -> ReversibleSequence:
    torch.manual_seed(0)
    blocks = [
        ReversibleBlock(Attention(dropout), Mlp(dropout), drop_path=drop_path, shared_mask=shared_mask)
        for _ in range(depth)
    ]
    return ReversibleSequence(blocks).to(dtype)


def streams(dtype=torch.float64, shape=(BATCH, TOKENS, DIM), requires_grad=True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x1, x2 = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x1.requires_grad_(requires_grad), x2.requires_grad_(requires_grad)


def both(pair: tuple[Tensor, Tensor]) -> Tensor:
    """A loss on both streams, each in its own way."""
    y1, y2 = (y.double() for y in pair)
    weights = torch.linspace(-1, 2, y1.numel(), dtype=y1.dtype).view_as(y1)
    return (y1 * weights).sum() + (y2 * weights).sin().sum()


def plain_step(network: nn.Module, x1: Tensor, x2: Tensor) -> None:
    both(network(x1, x2)).backward()


Scenario = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor | None] | None]


def assert_like_plain(
    scenario: Scenario, network: nn.Module | None = None, *, dtype=torch.float64, stream_dtype=None, **stream_options
) -> None:
    """The scenario leaves the gradients, the buffers and the random state that it leaves under plain backprop.

    A scenario that returns a dict has these compared in place of `.grad`.
    """
    network = transformer(dtype) if network is None else network
    network.zero_grad()
    plain = copy.deepcopy(network)
    plain.backprop = "plain"
    results = []
    for each in (network, plain):
        x1, x2 = streams(stream_dtype or dtype, **stream_options)
        torch.manual_seed(7)
        gradients = scenario(each, x1, x2)
        random_state = torch.get_rng_state()
        if gradients is None:
            gradients = {**parameter_gradients(each), "x1": x1.grad, "x2": x2.grad}
        results.append((gradients, random_state, dict(each.named_buffers())))
    (actual, actual_random, actual_buffers), (expected, expected_random, expected_buffers) = results
    assert torch.equal(actual_random, expected_random)
    assert actual_buffers.keys() == expected_buffers.keys()
    assert all(torch.equal(actual_buffers[name], expected_buffers[name]) for name in actual_buffers)
    assert_gradients_equal(actual, expected, dtype)


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


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
    plain.backprop = "plain"
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


# Frozen parts, and gradients of a part


def test_frozen_stem():
    network = transformer()
    assert_like_plain(plain_step, network, requires_grad=False)
    assert all(g is not None for g in parameter_gradients(network).values())


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("frozen", [[0], [1], [DEPTH - 1], [0, 1, 2], range(DEPTH)])
def test_frozen_blocks(frozen, requires_grad):
    if len(frozen) == DEPTH and not requires_grad:
        pytest.skip("nothing is left that has a gradient")
    network = transformer()
    for index in frozen:
        network.layers[index].requires_grad_(False)
    assert_like_plain(plain_step, network, requires_grad=requires_grad)


def test_frozen_halves_and_single_parameters():
    network = transformer()
    network.layers[0].F.requires_grad_(False)
    network.layers[2].G.requires_grad_(False)
    network.layers[1].F.qkv.weight.requires_grad_(False)
    network.layers[3].G.norm.bias.requires_grad_(False)
    for requires_grad in (True, False):
        assert_like_plain(plain_step, network, requires_grad=requires_grad)


@pytest.mark.parametrize("which", ["x1", "x2"])
def test_only_one_stream_needs_a_gradient(which):
    def scenario(network, x1, x2):
        network.layers[0].requires_grad_(False)
        (x2 if which == "x1" else x1).requires_grad_(False)
        both(network(x1, x2)).backward()

    assert_like_plain(scenario)


@pytest.mark.parametrize("wanted", ["everything", "parameters", "streams", "x1", *map(str, range(DEPTH))])
def test_autograd_grad_of_a_part(wanted):
    def scenario(network, x1, x2):
        tensors = {**dict(network.named_parameters()), "x1": x1, "x2": x2}
        names = {
            "everything": list(tensors),
            "parameters": [name for name in tensors if name not in ("x1", "x2")],
            "streams": ["x1", "x2"],
            "x1": ["x1"],
        }.get(wanted) or [name for name in tensors if name.startswith(f"layers.{wanted}.")]
        found = torch.autograd.grad(both(network(x1, x2)), [tensors[name] for name in names])
        assert all(tensor.grad is None for tensor in tensors.values()), "autograd.grad wrote a .grad"
        return dict(zip(names, found, strict=True))

    assert_like_plain(scenario)


def test_hooks_of_parameters_fire_once():
    network = transformer()
    seen, finished = [], []
    for name, parameter in network.named_parameters():
        parameter.register_hook(lambda grad, name=name: seen.append((name, grad.clone())))
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: finished.append((name, p.grad.clone())))
    plain_step(network, *streams())
    names = sorted(name for name, _ in network.named_parameters())
    assert sorted(name for name, _ in seen) == names
    assert sorted(name for name, _ in finished) == names
    gradients = parameter_gradients(network)
    assert all(torch.equal(grad, gradients[name]) for name, grad in (*seen, *finished))
    # G's gradients leave before F runs, the last block's first: DDP reduces them meanwhile.
    blocks = [tuple(name.split(".")[1:3]) for name, _ in finished]
    assert list(dict.fromkeys(blocks)) == [(str(i), half) for i in reversed(range(DEPTH)) for half in "GF"]


def test_hooks_of_parameters_can_change_the_gradient():
    def scenario(network, x1, x2):
        for parameter in network.parameters():
            parameter.register_hook(lambda grad: 2 * grad + 1)
        both(network(x1, x2)).backward()

    assert_like_plain(scenario)


# Graphs that live longer, graphs that are refused


def net_bytes(work: Callable[[], object]) -> int:
    """Bytes that are alive after `work()` and were not before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    return sum(e.nbytes() for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]")


def test_retain_graph_gives_equal_gradients_and_does_not_grow():
    network, inputs = transformer(), streams()
    loss = both(network(*inputs))
    found = []
    for _ in range(2):
        network.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        found.append(parameter_gradients(network))
    assert_gradients_equal(*found, torch.float64)


def test_retain_graph_does_not_grow_memory():
    loss = both(transformer()(*streams()))
    loss.backward(retain_graph=True)

    def backwards(times):
        return net_bytes(lambda: [loss.backward(retain_graph=True) for _ in range(times)])

    leak = []
    assert net_bytes(lambda: leak.append(torch.zeros(1000))) == 4000, "the meter measures nothing"
    backwards(1)  # the meter does not see the end of what was alive before its first use
    assert backwards(3) == 0


def test_double_backward_is_refused():
    network, inputs = transformer(), streams()
    with pytest.raises(RuntimeError, match=r"cannot be differentiated twice.*REV\.BACKPROP plain"):
        torch.autograd.grad(both(network(*inputs)), inputs, create_graph=True)
    network.backprop = "plain"
    torch.autograd.grad(both(network(*inputs)), inputs, create_graph=True)


def test_a_second_backward_without_retain_graph_is_refused():
    loss = both(transformer()(*streams()))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


CHANGES = {
    "add_": lambda y: y.add_(1),
    "of a view": lambda y: y[0].zero_(),
    "no_grad": torch.no_grad()(lambda y: y.mul_(2)),
    "detached": lambda y: y.detach().copy_(torch.zeros_like(y)),
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("output", ["last", "intermediate"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_in_place_change_of_a_kept_output_is_detected(name, output, index):
    last, kept = transformer()(*streams(), intermediates=[1])
    loss = both(last)
    changed = (last if output == "last" else kept[0])[index]

    def change_and_backward():
        CHANGES[name](changed)
        loss.backward()

    with pytest.raises(RuntimeError, match=r"in-?place"):
        change_and_backward()


@pytest.mark.parametrize("name", ["layers.0.F.qkv.weight", "layers.2.G.norm.bias"])
def test_an_in_place_change_of_a_parameter_is_detected(name):
    network = transformer()
    loss = both(network(*streams()))
    with torch.no_grad():
        network.get_parameter(name).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_optimizer_step_before_the_backward_is_detected():
    network = transformer()
    plain_step(network, *streams())
    loss = both(network(*streams()))
    torch.optim.AdamW(network.parameters(), foreach=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Copies


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.parametrize("when", ["before", "between forward and backward", "after"])
def test_a_copy_of_the_module_trains_like_the_module(clone, when):
    def gradients(network):
        network.zero_grad()
        torch.manual_seed(7)
        plain_step(network, *streams())
        return parameter_gradients(network)

    network = transformer()
    expected = gradients(transformer())
    loss = both(network(*streams())) if when != "before" else None
    if when == "after":
        loss.backward()
    twin = clone(network)
    assert network.state_dict().keys() == twin.state_dict().keys()
    assert_gradients_equal(gradients(twin), expected, torch.float64)
    if when == "between forward and backward":
        loss.backward()
    assert_gradients_equal(gradients(network), expected, torch.float64)


# The tape


@pytest.fixture
def tapes(monkeypatch):
    """Weak references to every tape made; the garbage collector is off, so a reference cycle would keep one alive."""
    made: list[weakref.ref] = []

    class RecordingTape(reversible._Tape):
        __slots__ = ()

        def __init__(self):
            super().__init__()
            made.append(weakref.ref(self))

    monkeypatch.setattr(reversible, "_Tape", RecordingTape)
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


def fail_at_call(module: nn.Module, number: int) -> None:
    calls = []

    def hook(*_):
        calls.append(None)
        if len(calls) == number:
            raise ArithmeticError("on purpose")

    module.register_forward_pre_hook(hook)


def forward_that_fails(network, x1, x2):
    fail_at_call(network.layers[2].F, 1)
    network(x1, x2)


def backward_that_fails(network, x1, x2):
    fail_at_call(network.layers[2].F, 2)
    plain_step(network, x1, x2)


ENDINGS = {
    "the outputs are dropped": lambda network, x1, x2: network(x1, x2),
    "backward": plain_step,
    "backward with retain_graph": lambda network, x1, x2: both(network(x1, x2)).backward(retain_graph=True),
    "an intermediate's loss": lambda network, x1, x2: both(network(x1, x2, intermediates=[1])[1][0]).backward(),
    "a part's gradient": lambda network, x1, x2: torch.autograd.grad(
        both(network(x1, x2)), [*network.layers[2].parameters()]
    ),
    "the forward fails": forward_that_fails,
    "the backward fails": backward_that_fails,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_tape_outlives_its_graph(tapes, ending):
    network = transformer()
    try:
        ENDINGS[ending](network, *streams())
        failed = False
    except ArithmeticError:
        failed = True
    assert failed == ending.endswith("fails")
    assert len(tapes) == 1
    assert tapes[0]() is None


def test_a_tape_lives_as_long_as_its_graph(tapes):
    pair = transformer()(*streams())
    assert tapes[0]() is not None
    y1 = pair[0]
    del pair
    assert tapes[0]() is not None
    y1.sum().backward()
    assert tapes[0]() is not None
    del y1
    assert tapes[0]() is None


def test_no_tape_without_gradients_or_under_plain_backprop(tapes):
    network = transformer()
    with torch.no_grad():
        network(*streams())
    with torch.inference_mode():
        network(*streams())
    network.backprop = "plain"
    plain_step(network, *streams())
    assert not tapes


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_tape_holds_no_streams_after_the_backward(tapes, requires_grad):
    # A loss is often kept for the log, and with it the graph and the tape. In a network of several runs the backward
    # of everything before a run would carry that run's streams along.
    loss = both(transformer()(*streams(requires_grad=requires_grad)))
    loss.backward()
    assert tapes[0]().state is None


def test_a_failed_backward_restores_random_state_and_modes():
    network = transformer()
    loss = both(network(*streams()))
    fail_at_call(network.layers[1].G.fc2, 1)
    network.eval()
    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        loss.backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in network.modules())
    assert all(isinstance(p, nn.Parameter) for p in network.parameters())


# Any F and G


class DepthwiseMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.scale * self.conv(x).tanh()


def convolutions() -> ReversibleSequence:
    torch.manual_seed(0)
    blocks = [
        (
            nn.Sequential(
                nn.Conv2d(4, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(inplace=True),
                nn.Conv2d(6, 4, 1),
            ),
            nn.Sequential(nn.BatchNorm2d(4, momentum=None), DepthwiseMixer()),
        )
        for _ in range(3)
    ]
    return ReversibleSequence(blocks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolutions_with_batch_norm(dtype, training):
    network = convolutions().to(dtype)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert_like_plain(plain_step, network.train(training), dtype=dtype, shape=(4, 4, 5, 5))  # compares buffers too
    unchanged = [torch.equal(buffer, before[name]) for name, buffer in network.named_buffers()]
    assert unchanged == [not training] * len(before)
    counts = [count.item() for name, count in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [int(training)] * 6


def test_streams_in_other_memory_formats():
    def scenario(network, x1, x2):  # the second is a strided view; the streams that the backward rebuilds are dense
        both(network(x1[:, :4].to(memory_format=torch.channels_last), x2[:, ::2])).backward()

    assert_like_plain(scenario, convolutions().double(), shape=(4, 8, 5, 5))


def test_branches_without_parameters_or_gradients():
    class Constant(nn.Module):
        def forward(self, x):
            return x.detach().cos()

    network = ReversibleSequence([(nn.Identity(), nn.Tanh()), (Constant(), nn.Linear(DIM, DIM))]).double()
    assert_like_plain(plain_step, network)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_branch_that_overwrites_its_input_is_refused(requires_grad):
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(2))

    network = ReversibleSequence([(Doubled(DIM, DIM), nn.Linear(DIM, DIM))]).double()
    x1, x2 = streams(requires_grad=requires_grad)
    with pytest.raises(RuntimeError, match=r"in-?place"):  # the recompute would find another input than the forward
        plain_step(network, x1 * 1, x2 * 1)


def test_parameters_shared_between_blocks_and_inside_a_branch():
    network = transformer()
    network.layers[2].G = network.layers[0].G
    network.layers[3].F.proj.weight = network.layers[1].F.proj.weight
    mixer = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))
    mixer[2].weight = mixer[0].weight
    network.layers[1].G = mixer.double()
    assert_like_plain(plain_step, network)
    counts = []
    network.layers[0].G.fc1.weight.register_hook(counts.append)
    plain_step(network, *streams())
    assert len(counts) == 1


def test_an_empty_sequence_is_the_identity():
    x1, x2 = streams()
    y1, y2 = ReversibleSequence([])(x1, x2)
    assert torch.equal(y1, x1)
    assert torch.equal(y2, x2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ReversibleBlock(torch.sin, nn.Identity()), r"^F is a builtin_function_or_method.*torch\.nn\.Module"),
        (lambda: ReversibleBlock(nn.Identity(), None), "^G is a NoneType"),
        (lambda: ReversibleBlock(nn.Identity(), nn.Identity(), drop_path=1.0), r"drop_path is 1\.0.*\[0, 1\)"),
        (lambda: ReversibleBlock(nn.Identity(), nn.Identity(), drop_path=-0.1), r"drop_path is -0\.1"),
        (lambda: ReversibleSequence([], backprop="fast"), "'fast'; expected one of reversible, plain.*REV.BACKPROP"),
        (lambda: transformer()(torch.ones(2, 3), torch.ones(2, 4)), r"\(2, 3\) and \(2, 4\); expected one shape"),
        (lambda: transformer()(*streams(), intermediates=[DEPTH]), r"\[4\] ask for a block outside 0\.\.3"),
        (lambda: transformer()(*streams(), intermediates=[-1]), r"\[-1\] ask for a block outside 0\.\.3"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
