"""COMPILE.ENABLE: compiled branches give the gradients of eager ones, the names stay, and nothing is compiled again
after the first steps."""

import copy
from collections.abc import Iterator

import pytest
import tiny
import torch
from gradients import assert_gradients_equal, parameter_gradients
from tiny_models import CLIP_SHAPE, TRANSITIONS, tiny_blocks, tiny_mvit, tiny_rev_mvit
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from revvideo.build.compile import branches_of, compile_model
from revvideo.config import ConfigError

STEPS = 5


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No graphs, counts or limits of other tests."""
    limits = {
        name: getattr(torch._dynamo.config, name) for name in ("cache_size_limit", "accumulated_cache_size_limit")
    }
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    for name, limit in limits.items():
        setattr(torch._dynamo.config, name, limit)


def step(model: nn.Module, number: int, *, amp: bool) -> dict:
    """The gradients of one step."""
    generator = torch.Generator().manual_seed(number)
    clips, labels = torch.randn(2, *CLIP_SHAPE, generator=generator), torch.tensor([number, 0])
    torch.manual_seed(number)  # for drop path
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        logits = model(clips)
    nn.functional.cross_entropy(logits.float(), labels).backward()
    return parameter_gradients(model)


def assert_compiled_like_eager(model: nn.Module, backend: str, *, amp: bool) -> None:
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend(backend)
    names = list(model.state_dict())
    compile_model(model, backend=counter)
    assert list(model.state_dict()) == names
    graphs = []
    for number in range(STEPS):
        gradients, expected = step(model, number, amp=amp), step(eager, number, amp=amp)
        assert_gradients_equal(gradients, expected, torch.bfloat16 if amp else torch.float32)
        graphs.append(counter.frame_count)
    assert graphs[-1] == graphs[2] >= len(branches_of(model)), f"graphs after each step: {graphs}"
    assert not counters["graph_break"], dict(counters["graph_break"])
    print(f"{len(branches_of(model))} branches, graphs after each step: {graphs}")


def small(make, **options) -> nn.Module:
    """Three blocks with a transition, drop path on."""
    reversible = make is tiny_rev_mvit
    blocks = tiny_blocks(drop_path=0.3, reversible=reversible)[:3]
    return make(blocks=blocks, **({"transitions": [1]} if reversible else {}), **options)


@pytest.mark.parametrize("amp", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["float32", "bfloat16"])
def test_reversible_models_are_compiled_once(amp):
    """With chunks, so that an MLP meets whole and cut ones."""
    assert_compiled_like_eager(small(tiny_rev_mvit, chunk_tokens=100), "eager", amp=amp)


def test_plain_models_are_compiled_once():
    assert_compiled_like_eager(small(tiny_mvit), "eager", amp=False)


def test_all_branches_are_compiled_and_nothing_else():
    model = tiny_rev_mvit()
    compile_model(model, backend="eager")
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert compiled == [f"rev_backbone.layers.{i}.{half}" for i in range(6) for half in "FG"]
    assert not any(module._compiled_call_impl for module in copy.deepcopy(model).modules())
    assert len(TRANSITIONS) == 2  # they are among the six


def test_the_limit_of_graphs_is_raised_to_what_the_model_needs():
    compile_model(tiny_rev_mvit(), backend="eager")
    assert torch._dynamo.config.cache_size_limit >= 2 * 2 * 6  # two branches a block, forward and recompute


def test_evaluation_is_compiled_too():
    model = small(tiny_rev_mvit).eval()
    expected = model(torch.ones(2, *CLIP_SHAPE)).detach()
    counter = CompileCounterWithBackend("eager")
    compile_model(model, backend=counter)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.ones(2, *CLIP_SHAPE)), expected)
    assert counter.frame_count > 0


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"COMPILE\.ENABLE"):
        compile_model(nn.Linear(2, 2), backend="eager")


@pytest.mark.slow
def test_without_a_compiler_the_key_is_named():
    import torch._inductor.config

    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)})
    with no_compiler, pytest.raises(ConfigError, match=r"COMPILE\.ENABLE is True.*compiler.*COMPILE\.ENABLE False"):
        compile_model(tiny_rev_mvit())


@pytest.mark.slow
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])
def test_autograd_graphs_are_compiled_once(amp):
    assert_compiled_like_eager(tiny_rev_mvit(drop_path=0.3), "aot_eager", amp=amp)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "amp"), [(tiny_rev_mvit, False), (tiny_rev_mvit, True), (tiny_mvit, False)])
def test_inductor_gives_the_gradients_of_eager_mode(make, amp):
    """Drop path and dropout draw what eager mode draws."""
    model = small(make, dropout=0.1)
    eager = copy.deepcopy(model)
    compile_model(model)
    graphs = []
    for number in range(4):
        gradients, expected = step(model, number, amp=amp), step(eager, number, amp=amp)
        assert_gradients_equal(gradients, expected, torch.bfloat16 if amp else torch.float32)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[2], graphs
    assert not counters["graph_break"]


@pytest.mark.slow
def test_a_run_with_the_key_compiles_and_trains_like_one_without(data, tmp_path):
    losses = {}
    for name, keys in {"eager": {}, "compiled": {"COMPILE.ENABLE": True}}.items():
        outcome = tiny.done(tiny.run_net(data, tmp_path / name, tiny.RANDOM, tiny.TRAIN_ONLY, keys))
        assert ("torch.compile (inductor) of 8 branches" in outcome.err) == (name == "compiled")
        losses[name] = tiny.losses(tmp_path / name)
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-4)
