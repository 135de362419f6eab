"""One optimizer step: a batch forward and backward in parts, the gradients clipped, the weights moved."""

import contextlib
import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from revvideo.engine.events import EventLog
from revvideo.engine.inversion import CheckInversion, inversion_checked
from revvideo.engine.losses import Loss
from revvideo.engine.metrics import merge_mixed_targets, topk_correct
from revvideo.engine.optimizer import clip_gradients, set_lr


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """How to make a step.

    Attributes:
        num_parts: so many parts of equal size a batch comes in (RUN.ACCUMULATION_STEPS).
        amp_dtype: autocast to float16 (with loss scaling) or bfloat16; None trains in the parameters' own precision.
        clip_value, clip_l2_norm: limits of the gradients, see `clip_gradients`.
        check_inversion_period: the inputs that a reversible model rebuilds are compared with the true ones on every
            n-th step, from the first one on; 0: never.
        check_inversion_limit: training stops when one differs by more, see `inversion_checked`.
    """

    num_parts: int = 1
    amp_dtype: torch.dtype | None = None
    clip_value: float | None = None
    clip_l2_norm: float | None = None
    check_inversion_period: int = 0
    check_inversion_limit: float = 1e-3


@dataclasses.dataclass(frozen=True)
class StepOutcome:
    """What the forward and the backward of a step gave; tensors on the model's device, nothing waits for it.

    Attributes:
        loss: scalar, the mean over the clips of this process.
        num_correct: scalar int64, clips whose class has the highest score, see `merge_mixed_targets`.
        num_clips: of this process.
        grad_norm: scalar, of the gradients over all processes, before clipping.
    """

    loss: Tensor
    num_correct: Tensor
    num_clips: int
    grad_norm: Tensor


class TrainStep:
    """Forward and backward, then the update: apart, so that the processes can agree on what to do in between.

    Args:
        model: `(B, C, T, H, W) -> logits (B, K)`, on `device`.
        optimizer: over its parameters, with groups of `parameter_groups`.
        loss: see `revvideo.engine.losses`.
        settings: how.
        device: where the model is.
        replica: the model as several processes train it together (DistributedDataParallel); None: the model itself.
        events: takes the inversion checks.
        check_inversion: of a reversible model; makes the context in which it compares what it rebuilds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        settings: StepSettings,
        *,
        device: torch.device,
        replica: nn.Module | None = None,
        events: EventLog | None = None,
        check_inversion: CheckInversion | None = None,
    ):
        self.model, self.optimizer, self.loss, self.settings = model, optimizer, loss, settings
        self.device, self.replica = device, model if replica is None else replica
        self.events, self.check_inversion = events, check_inversion
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp_dtype is torch.float16)

    def forward_backward(self, parts: Iterable[tuple[Tensor, Tensor]], *, step: int | None = None) -> StepOutcome:
        """Gradients of the mean loss of a batch, over all processes, clipped.

        Args:
            parts: `settings.num_parts` pairs of clips and targets, see `Trainer`; taken one after the other, so that
                only one needs to be in memory.
            step: number of the step from the start of training; the inversion is checked when its turn has come.

        Raises:
            CheckFailed: the inversion check; the weights are as they were.
        """
        settings, num_clips = self.settings, 0
        self.optimizer.zero_grad(set_to_none=True)
        losses, corrects = [], []
        with self._inversion_checked(step):
            for number, (clips, targets) in enumerate(parts, 1):
                with self._reduced(number == settings.num_parts):
                    loss, logits = self._part(clips, targets)
                scores, labels = merge_mixed_targets(logits, targets)
                corrects.append(topk_correct(scores, labels, (1,))[0])
                losses.append(loss)
                num_clips += len(clips)
        assert len(losses) == settings.num_parts, (len(losses), settings.num_parts)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), value=settings.clip_value, l2_norm=settings.clip_l2_norm)
        return StepOutcome(torch.stack(losses).mean(), torch.stack(corrects).sum(), num_clips, norm)

    def _part(self, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        amp_dtype, num_parts = self.settings.amp_dtype, self.settings.num_parts
        with torch.autocast(self.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            logits = self.replica(clips)
        outputs = logits.float().sigmoid() if self.loss.takes_probabilities else logits
        loss = self.loss(outputs, targets)
        self.scaler.scale(loss / num_parts if num_parts > 1 else loss).backward()
        return loss.detach(), logits.detach()

    def _reduced(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes add their gradients in the last part only."""
        return contextlib.nullcontext() if last or self.replica is self.model else self.replica.no_sync()

    def _inversion_checked(self, step: int | None) -> contextlib.AbstractContextManager:
        period = self.settings.check_inversion_period
        if self.check_inversion is None or step is None or not period or step % period:
            return contextlib.nullcontext()
        limit = self.settings.check_inversion_limit
        return inversion_checked(self.check_inversion, step=step, limit=limit, events=self.events)

    def update(self, learning_rate: float, *, finite: bool = True) -> None:
        """Move the weights; under loss scaling gradients that are not finite leave them as they are.

        Args:
            learning_rate: of this step.
            finite: False leaves the weights in any case; a loss scale is adapted all the same.
        """
        set_lr(self.optimizer, learning_rate)
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def __call__(
        self, parts: Iterable[tuple[Tensor, Tensor]], learning_rate: float, *, step: int | None = None
    ) -> StepOutcome:
        """`forward_backward` and `update`."""
        outcome = self.forward_backward(parts, step=step)
        self.update(learning_rate)
        return outcome
