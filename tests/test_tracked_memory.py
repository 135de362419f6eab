"""The one module that stands on torch's private parts. If these tests fail after an update of torch, it has changed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from revvideo.benchmark.memory import peak_bytes
from revvideo.planner.tracked_memory import TrackedMemory, as_fake, storage_bytes, without_memory


def small_step(x, weight) -> None:
    hidden = F.gelu(x @ weight)  # the product is kept for the backward of GELU, its result for that of the second one
    (hidden @ weight).square().mean().backward()


def test_tracked_memory_is_what_the_profiler_counts():
    real = torch.randn(256, 64), torch.randn(64, 64, requires_grad=True)
    small_step(*real)
    measured = peak_bytes(lambda: small_step(*real), torch.device("cpu"))
    with without_memory():
        x, weight = torch.empty(256, 64), torch.empty(64, 64, requires_grad=True)
        weight.grad = torch.empty_like(weight)
        with TrackedMemory([x, weight, weight.grad]) as memory:
            small_step(x, weight)
        assert memory.alive.total() == 0
    assert memory.peak.total() == pytest.approx(measured, abs=256)  # scalars
    assert measured > 4 * 256 * 64 * 4


def test_storages_count_once_by_phase_until_their_last_tensor_is_gone():
    with without_memory():
        known = torch.empty(1000)
        with TrackedMemory([known], granularity=512) as memory:
            first = torch.empty(100)  # 400 bytes take 512
            views = [first[:10], first.view(10, 10), known[3:], known.detach()]
            del first
            assert memory.alive == {"forward": 512}
            memory.phase = "backward"
            second = known + 1  # 4000 bytes take 4096
            assert memory.alive == memory.peak == {"forward": 512, "backward": 4096}
            del second
            views.clear()
            assert memory.alive.total() == 0
            assert memory.peak.total() == 4608
            memory.restart()
            assert memory.peak.total() == 0
            del known  # was there before: counts neither when it comes nor when it goes
            assert memory.alive.total() == 0


def test_real_tensors_are_computed_beside_the_others():
    state = torch.get_rng_state()
    with without_memory(), TrackedMemory([]) as memory:
        torch.empty(10).uniform_()
        assert torch.equal(state, torch.get_rng_state())
        assert not torch.equal(state, state + 1)
    assert memory.alive.total() == 0


class Again(TorchDispatchMode):
    """Returns the result of the first product for all others."""

    kept = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.mm.default:
            return func(*args, **(kwargs or {}))
        if self.kept is None:
            self.kept = func(*args)
        return self.kept.detach()


def test_modes_inside_may_keep_results_and_return_them_again():
    with without_memory():
        x = torch.empty(32, 32)
        with TrackedMemory([x]) as memory, Again() as again:
            results = [x @ x for _ in range(3)]
            assert memory.alive.total() == 32 * 32 * 4
            again.kept = None
            results.pop()
            assert memory.alive.total() == 32 * 32 * 4
            results.clear()
            assert memory.alive.total() == 0


def test_a_model_from_meta_has_no_memory_and_real_shapes():
    with torch.device("meta"):
        model = nn.Linear(2**20, 2**20)  # 4 TiB
    with without_memory():
        as_fake(model)
        assert storage_bytes(model.parameters()) == 4 * (2**40 + 2**20)
        assert model(torch.empty(3, 2**20)).device.type == "cpu"
