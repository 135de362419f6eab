"""A probe makes a whole training step, measures it, and leaves no trace."""

import copy
import math

import pytest
import torch
from torch import nn

from revvideo.benchmark.memory import peak_bytes
from revvideo.engine.batch_probe import COPIES_TO_PREPARE, ProbedStep, probe_step
from revvideo.engine.losses import make_loss
from revvideo.engine.train_step import StepSettings, TrainStep
from revvideo.models.input_spec import InputSpec

CPU = torch.device("cpu")
CLIP = (3, 2, 8, 8)
WIDTH, CLASSES = 64, 5


class Network(nn.Module):
    """Everything that a step changes: weights, buffers and the random state. One part is in evaluation mode."""

    num_classes = CLASSES

    def __init__(self):
        super().__init__()
        self.input_spec = InputSpec(frames=CLIP[1], size=CLIP[2:])
        self.first = nn.Linear(math.prod(CLIP), WIDTH)
        self.norm, self.still = nn.BatchNorm1d(WIDTH), nn.BatchNorm1d(WIDTH).eval()
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, clips):
        hidden = self.still(self.norm(self.first(clips.flatten(1))))  # (B, WIDTH)
        return self.last(nn.functional.dropout(hidden.relu(), 0.5, self.training))


def network(*, frozen: bool = False) -> tuple[Network, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Network()
    model.first.requires_grad_(not frozen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, torch.optim.AdamW(trained, lr=0.1)


def probe(model, optimizer, *, clips=4, parts=1, loss="cross_entropy", dtype=None, **options) -> ProbedStep | None:
    options.setdefault("measure_peak", lambda work: peak_bytes(work, CPU))
    settings = StepSettings(num_parts=parts, amp_dtype=dtype, clip_l2_norm=1.0)
    options |= {"clips_per_part": clips, "soft_targets": loss != "cross_entropy", "device": CPU}
    return probe_step(model, optimizer, make_loss(loss), settings, **options)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "gradients": [parameter.grad for parameter in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "random": torch.get_rng_state(),
        }
    )


def assert_equal(one, other) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def train(model, optimizer, steps: int) -> list[float]:
    step = TrainStep(model, optimizer, make_loss("cross_entropy"), StepSettings(), device=CPU)
    clips = torch.randn(steps, 6, *CLIP, generator=torch.Generator().manual_seed(1))
    return [step([(each, torch.arange(6) % CLASSES)], 0.1).loss.item() for each in clips]


def out_of_memory(work):
    work()
    raise torch.OutOfMemoryError("in the middle")


def too_much_for_the_cpu(work):
    work()
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("measure_peak", [None, out_of_memory, too_much_for_the_cpu])
@pytest.mark.parametrize("begun", [False, True])
def test_everything_is_as_before(begun, measure_peak):
    model, optimizer = network()
    if begun:  # there are moments, statistics and gradients already
        train(model, optimizer, 2)
        model.first.weight.grad.fill_(7.0)
    model.eval()
    model.last.train()
    before, entries = everything(model, optimizer), {id(state) for state in optimizer.state}
    options = {} if measure_peak is None else {"measure_peak": measure_peak}
    found = probe(model, optimizer, parts=2, loss="soft_cross_entropy", **options)
    assert (found is None) == (measure_peak is not None)
    assert_equal(everything(model, optimizer), before)
    assert {id(state) for state in optimizer.state} == entries


def test_training_after_a_probe_is_training_without_one():
    plain, probed = network(), network()
    torch.manual_seed(5)
    expected = train(*plain, 3)
    torch.manual_seed(5)
    probe(*probed)
    losses = train(*probed, 3)
    assert losses == expected
    assert len(set(losses)) == 3
    assert_equal(probed[0].state_dict(), plain[0].state_dict())


def test_other_errors_are_passed_on_and_leave_no_trace():
    def wrong(work):
        work()
        raise RuntimeError("shapes do not match")

    model, optimizer = network()
    before = everything(model, optimizer)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        probe(model, optimizer, measure_peak=wrong)
    assert_equal(everything(model, optimizer), before)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_figures_cover_a_real_step(parts):
    clips = 16
    model, optimizer = network()
    found = probe(model, optimizer, clips=clips, parts=parts)
    settings = StepSettings(num_parts=parts)
    step = TrainStep(model, optimizer, make_loss("cross_entropy"), settings, device=CPU)

    def prepared():
        for _ in range(parts):
            yield torch.randn(clips, *CLIP), torch.zeros(clips, dtype=torch.long)

    step(prepared(), 0.1)
    optimizer.zero_grad(set_to_none=True)
    measured = peak_bytes(lambda: step(prepared(), 0.1), CPU)
    room = COPIES_TO_PREPARE * clips * 4 * math.prod(CLIP)
    assert measured <= found.step <= measured + room + 4096
    state = sum(tensor.nbytes for entry in optimizer.state.values() for tensor in entry.values())
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert found.lasting == state + weights
    assert found.total == found.step + found.lasting


def test_frozen_parts_and_half_precision_take_less():
    whole, frozen = (probe(*network(frozen=frozen), clips=2) for frozen in (False, True))
    saved = sum(parameter.nbytes for parameter in Network().first.parameters())
    assert frozen.lasting == whole.lasting - 2 * saved - 2 * 4  # moments, and the number of steps of each parameter
    assert frozen.step <= whole.step - saved  # their gradients
    scaled = probe(*network(), dtype=torch.float16)  # gradients may be infinite: the optimizer's state is there anyway
    assert scaled.lasting == whole.lasting


def test_steps_that_check_the_inversion_are_what_is_measured():
    entered = []

    class Check:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, *exception):
            entered.append("out")

    assert probe(*network(), check_inversion=Check) is not None
    assert entered == ["in", "out"]
