"""The reversible engine in a graph: frozen parts, hooks, graphs that are retained or refused, copies, tapes."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from reversible_networks import DEPTH, assert_like_plain, both, plain_step, streams, transformer
from torch import nn
from torch.profiler import ProfilerActivity, profile

from revvideo.models import reversible

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
    network.options = reversible.BackpropOptions("plain")
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

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
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
    network.options = reversible.BackpropOptions("plain")
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
