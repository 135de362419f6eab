"""What one training step takes: parameters, gradients, optimizer state, input, and the peak of everything else."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from revvideo.build import build_loss, build_model, build_optimizer
from revvideo.config.batch import batch_plan
from revvideo.engine.losses import CrossEntropy, Loss
from revvideo.models.branch_call import chunk_size
from revvideo.models.reversible import BackpropOptions
from revvideo.planner.kernel_workspace import cpu_workspace
from revvideo.planner.tracked_memory import TrackedMemory, as_fake, storage_bytes, without_memory

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = ("plain", "checkpointed", "reversible")
DEVICES = ("cpu", "cuda")
CUDA_GRANULARITY = 512  # bytes: what CUDA's caching allocator rounds to

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Bytes of a training step whose gradients are already allocated, as they are from the second step on.

    Attributes:
        batch_size: clips of the step in one process.
        precision: one of `PRECISIONS`.
        mode: one of `MODES`, or ``"as built"``.
        device: the device planned for.
        parameters: parameters and buffers.
        gradients: of the parameters that the loss reaches.
        optimizer_state: after the first step.
        inputs: clips and targets.
        activations: what the forward made and the peak of forward and backward finds alive.
        temporaries: what else is alive at that peak: the backward's own tensors and a kernel's buffers.
        optimizer_temporaries: peak of the optimizer's step above its state; activations are gone by then.
    """

    batch_size: int
    precision: str
    mode: str
    device: str
    parameters: int
    gradients: int
    optimizer_state: int
    inputs: int
    activations: int
    temporaries: int
    optimizer_temporaries: int

    @property
    def peak(self) -> int:
        """Peak of forward, loss and backward above the state before: what `revvideo.benchmark.memory` measures."""
        return self.activations + self.temporaries

    @property
    def total(self) -> int:
        """Largest number of bytes of tensors alive at one moment."""
        lasting = self.parameters + self.gradients + self.optimizer_state + self.inputs
        return lasting + max(self.peak, self.optimizer_temporaries)


def training_modes(model: nn.Module) -> tuple[str, str]:
    """The two modes that a model of this package can be trained in."""
    return ("plain", "reversible" if getattr(model, "reversible", False) else "checkpointed")


def plan_training(
    source: CfgNode | Callable[[], nn.Module],
    batch_size: int,
    precision: str = "float32",
    mode: str | None = None,
    optimizer: MakeOptimizer | None = None,
    *,
    device: str = "cpu",
) -> TrainingPlan:
    """Plan one training step; nothing is computed and nothing allocated.

    Args:
        source: a config, planned with its loss, targets and optimizer; or a function that makes a model with an
            ``input_spec``, planned with cross-entropy.
        batch_size: clips in one process.
        precision: of the forward, by autocast as in `revvideo.engine.trainer`; float16 with its loss scaler.
        mode: one of `training_modes` of the model; None: as the source builds it.
        optimizer: makes the optimizer of a model; None: that of the config, none for a function.
        device: ``"cpu"``: exactly what the CPU allocates, on as many threads as this process uses. ``"cuda"``: storages
            rounded as CUDA's allocator does; MLPs in chunks, LayerNorm under autocast in float32 and the optimizer over
            all parameters at once, as there; no buffers of kernels (`docs/planner.md`).

    Raises:
        ValueError: an unknown precision, mode or device, a mode that the model does not have, or a batch below 1.
    """
    _check(batch_size, precision, mode, device)
    loss, soft_targets = CrossEntropy(), False
    make_model = source
    if isinstance(source, CfgNode):
        loss, soft_targets = build_loss(source), source.MIXUP.ENABLE
        optimizer = optimizer or (lambda model: build_optimizer(source, model, batch_plan(source)))

        def make_model() -> nn.Module:
            return build_model(source)

    with torch.device("meta"):
        model = make_model().train()
    _set_mode(model, mode)
    if device == "cuda":
        _chunk_as_on_cuda(model)
    with without_memory():
        as_fake(model)
        found = _step(model, loss, batch_size, soft_targets, PRECISIONS[precision], optimizer, device)
    return TrainingPlan(batch_size=batch_size, precision=precision, mode=mode or "as built", device=device, **found)


def _check(batch_size: int, precision: str, mode: str | None, device: str) -> None:
    if batch_size < 1:
        raise ValueError(f"the batch is {batch_size}; expected at least 1 clip")
    for value, name, known in (
        (precision, "precision", PRECISIONS),
        (mode, "mode", (None, *MODES)),
        (device, "device", DEVICES),
    ):
        if value not in known:
            raise ValueError(f"the {name} is {value!r}; expected one of {', '.join(filter(None, known))}")


def _set_mode(model: nn.Module, mode: str | None) -> None:
    if mode is None:
        return
    known = training_modes(model)
    if mode not in known:
        raise ValueError(f"{type(model).__name__} cannot be trained {mode}; expected {' or '.join(known)}")
    model.set_grad_checkpointing(mode != "plain")


def _chunk_as_on_cuda(model: nn.Module) -> None:
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, BackpropOptions):
                chunk = chunk_size(value.chunk_tokens, torch.device("cuda"))
                setattr(module, name, dataclasses.replace(value, chunk_tokens=chunk))


def _step(
    model: nn.Module,
    loss: Loss,
    batch_size: int,
    soft_targets: bool,
    amp_dtype: torch.dtype | None,
    make_optimizer: MakeOptimizer | None,
    device: str,
) -> dict[str, int]:
    """Forward, backward and optimizer step as in `Trainer.train_step`: the sizes of `TrainingPlan`."""
    clips = torch.empty(batch_size, *model.input_spec.shape)
    soft = (batch_size, model.num_classes)
    targets = torch.empty(soft) if soft_targets else torch.empty(batch_size, dtype=torch.long)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    reached: list[Tensor] = []
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
        parameter.register_post_accumulate_grad_hook(reached.append)
    tensors = [*model.parameters(), *model.buffers()]
    on_cuda = device == "cuda"
    memory = TrackedMemory(
        [*tensors, *(parameter.grad for parameter in trained), clips, targets],
        workspace=None if on_cuda else cpu_workspace,
        granularity=CUDA_GRANULARITY if on_cuda else 1,
    )
    scaler = torch.amp.GradScaler("cpu", enabled=amp_dtype is torch.float16)
    with memory, _AutocastAsOnCuda() if on_cuda else contextlib.nullcontext():
        with torch.autocast("cpu", dtype=amp_dtype, enabled=amp_dtype is not None):
            logits = model(clips)
        value = loss(logits.float().sigmoid() if loss.takes_probabilities else logits, targets)
        memory.phase = "backward"
        scaler.scale(value).backward()
    del logits, value
    peak = memory.peak
    state, temporaries = _optimizer_step(model, make_optimizer, memory, foreach=on_cuda) if make_optimizer else (0, 0)
    return {
        "parameters": storage_bytes(tensors),
        "gradients": storage_bytes(parameter.grad for parameter in reached),
        "optimizer_state": state,
        "inputs": storage_bytes([clips, targets]),
        "activations": peak["forward"],
        "temporaries": peak.total() - peak["forward"],
        "optimizer_temporaries": temporaries,
    }


def _optimizer_step(
    model: nn.Module, make_optimizer: MakeOptimizer, memory: TrackedMemory, *, foreach: bool
) -> tuple[int, int]:
    """Bytes of the state, and what a step takes above it. ``foreach``: one operation for all parameters."""
    optimizer = make_optimizer(model)
    for group in optimizer.param_groups:
        if foreach and group.get("foreach") is None:
            group["foreach"] = True
    memory.phase = "optimizer"
    with memory:
        optimizer.step()
        memory.restart()
        before = memory.alive["optimizer"]
        optimizer.step()
    return storage_bytes(_state(optimizer)), memory.peak["optimizer"] - before


def _state(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (entry for state in optimizer.state.values() for entry in state.values() if isinstance(entry, Tensor))


class _AutocastAsOnCuda(TorchFunctionMode):
    """LayerNorm under autocast computes in float32, as CUDA's autocast has it and the CPU's does not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
            kwargs = {name: arg.float() if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        return func(*args, **kwargs)
