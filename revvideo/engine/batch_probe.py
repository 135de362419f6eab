"""What a training step takes in memory, by making one on synthetic clips that leaves everything as it was."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from revvideo.engine.inversion import CheckInversion
from revvideo.engine.losses import Loss
from revvideo.engine.train_step import StepOutcome, StepSettings, TrainStep

# Of a part: float copies that normalising and mixing it take for a moment, beside the result.
COPIES_TO_PREPARE = 2

MeasurePeak = Callable[[Callable[[], object]], int]


@dataclasses.dataclass(frozen=True)
class ProbedStep:
    """Bytes of tensors of a step.

    Attributes:
        lasting: parameters, buffers and the optimizer's state.
        step: what the step takes above them, gradients and clips included.
    """

    lasting: int
    step: int

    @property
    def total(self) -> int:
        """Largest number of bytes alive at one moment."""
        return self.lasting + self.step


def probe_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    settings: StepSettings,
    *,
    clips_per_part: int,
    soft_targets: bool,
    device: torch.device,
    measure_peak: MeasurePeak,
    check_inversion: CheckInversion | None = None,
) -> ProbedStep | None:
    """Make a step and measure it: forward, loss and backward of two parts (of one, where there is one), and the update.

    Afterwards weights, buffers, gradients, modes, the optimizer and the random state are as before.

    Args:
        model: on `device`, in the modes in which it trains, with ``input_spec`` and ``num_classes``; not wrapped for
            several processes.
        optimizer: over its parameters.
        loss: see `revvideo.engine.losses`.
        settings: of the step.
        clips_per_part: clips of a part.
        soft_targets: targets are class weights `(B, K)` instead of class numbers `(B,)`.
        device: of the step.
        measure_peak: runs a piece of work and gives the most bytes alive at one moment, above those from before.
        check_inversion: where some steps of the training compare rebuilt inputs: this one does, too.

    Returns:
        None where the memory ran out.
    """
    settings = dataclasses.replace(settings, num_parts=min(2, settings.num_parts))
    with _as_before(model, optimizer, device):
        try:
            _make_optimizer_state(optimizer)
            step = TrainStep(model, optimizer, loss, settings, device=device)

            def work() -> StepOutcome:
                with check_inversion() if check_inversion is not None else contextlib.nullcontext():
                    parts = _parts(model, settings.num_parts, clips_per_part, soft_targets, device)
                    outcome = step.forward_backward(parts)
                optimizer.step()  # not through the loss scaler, which may leave it out
                return outcome

            taken = measure_peak(work)
            return ProbedStep(lasting=sum(tensor.nbytes for tensor in _lasting(model, optimizer)), step=taken)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return None


def _parts(
    model: nn.Module, num_parts: int, num_clips: int, soft_targets: bool, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Clips of noise, normalised as real ones are, and targets; each part made when it is asked for.

    Of a batch in parts, the part's own labels stay until the next one, its uint8 clips until they are prepared.
    """
    shape = (num_clips, *model.input_spec.shape)
    for _ in range(num_parts):
        source = torch.empty(shape, dtype=torch.uint8, device=device) if num_parts > 1 else None
        labels = torch.zeros(num_clips, dtype=torch.long, device=device)
        room = torch.empty(COPIES_TO_PREPARE, *shape, device=device)
        clips = torch.randn(shape, device=device)
        del room, source
        if soft_targets:
            yield clips, torch.full((num_clips, model.num_classes), 1.0 / model.num_classes, device=device)
        else:
            yield clips, labels


def _make_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """The state that the first step makes stays from then on; the gradients are made anew by every step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _lasting(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [*model.parameters(), *model.buffers(), *_state_tensors(optimizer)]


def _state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    values = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in values if isinstance(value, Tensor)]


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's error has a class; the CPU's allocator has only words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextlib.contextmanager
def _as_before(model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Put everything back at the end that a training step changes. The copies are in the CPU's memory."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    states = {parameter: dict(state) for parameter, state in optimizer.state.items()}
    tensors = _lasting(model, optimizer)
    copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    for parameter, _ in gradients:
        parameter.grad = None
    on_cuda = device.type == "cuda"
    try:
        with torch.random.fork_rng(devices=[device] if on_cuda else []):
            yield
    finally:
        optimizer.state.clear()
        optimizer.state.update(states)
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        if on_cuda:
            gc.collect()
            torch.cuda.empty_cache()  # blocks of a step of another size only break the memory up
