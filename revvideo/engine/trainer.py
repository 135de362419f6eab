"""The training loop: epochs, steps, validation, checkpoints, events. It knows modules and loaders, never a config."""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from revvideo.engine.checkpoint import (
    checkpoint_name,
    checkpoint_state,
    load_checkpoint,
    load_model_state,
    random_state,
    save_checkpoint,
    set_random_state,
)
from revvideo.engine.events import EventLog
from revvideo.engine.inversion import CheckInversion, inversion_checked
from revvideo.engine.losses import Loss
from revvideo.engine.metrics import merge_mixed_targets, topk_correct
from revvideo.engine.optimizer import clip_gradients, load_optimizer_state, set_lr
from revvideo.engine.progress import Progress
from revvideo.errors import CheckFailed

logger = logging.getLogger(__name__)

BAD_VIDEOS_NAMED = 20  # in the log; events.jsonl names all
BAD_VIDEOS_IN_ERROR = 3


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        max_epoch: number of epochs.
        learning_rate: fractional epoch -> learning rate; asked before every step.
        eval_period, checkpoint_period: in epochs; the last epoch always counts.
        log_period: in steps, where progress is written as lines.
        amp_dtype: autocast to float16 (with loss scaling) or bfloat16; None trains in the parameters' own precision.
        clip_value, clip_l2_norm: limits of the gradients, see `clip_gradients`.
        max_bad_fraction: training stops when more than this share of the videos asked for could not be read.
        min_videos_judged: ... but not before so many were asked for.
        check_inversion_period: the inputs that a reversible model rebuilds are compared with the true ones on every
            n-th step, from the first one on; 0: never.
        check_inversion_limit: training stops when one differs by more, see `inversion_checked`.
    """

    max_epoch: int
    learning_rate: Callable[[float], float]
    eval_period: int = 1
    checkpoint_period: int = 1
    log_period: int = 10
    amp_dtype: torch.dtype | None = None
    clip_value: float | None = None
    clip_l2_norm: float | None = None
    max_bad_fraction: float = 0.05
    min_videos_judged: int = 100
    check_inversion_period: int = 0
    check_inversion_limit: float = 1e-3


class Trainer:
    """Trains `model` in a run folder.

    Args:
        model: `(B, C, T, H, W) -> logits (B, K)`, on `device`.
        optimizer: over its parameters, with groups of `parameter_groups`.
        loss: see `revvideo.engine.losses`.
        settings: how.
        prepare: `(batch, epoch, step) -> (clips, targets)`: float clips `(B, C, T, H, W)` on the device, normalised and
            mixed, and class numbers `(B,)` or weights `(B, K)`.
        device: where the model is.
        folder: the run folder; checkpoints go to `checkpoints/` in it.
        config_text: the resolved config, kept in the checkpoints.
        events: the diary.
        check_inversion: of a reversible model; makes the context in which it compares what it rebuilds.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        settings: TrainSettings,
        *,
        prepare: Callable[[object, int, int], tuple[Tensor, Tensor]],
        device: torch.device,
        folder: Path,
        config_text: str,
        events: EventLog,
        check_inversion: CheckInversion | None = None,
    ):
        self.model, self.optimizer, self.loss, self.settings = model, optimizer, loss, settings
        self.prepare, self.device = prepare, device
        self.folder, self.config_text, self.events = Path(folder), config_text, events
        self.check_inversion = check_inversion
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp_dtype is torch.float16)
        self.next_epoch = 0
        self.best_top1 = -1.0
        self.videos_asked = self.videos_bad = 0
        self._warned: set[str] = set()  # paths of bad videos that the log has named
        self._first_bad: dict[str, str] = {}  # path -> reason, of the first unreadable ones

    def fit(self, loader: Iterable, *, validate: Callable[[], dict] | None = None) -> None:
        """Train from `next_epoch` to the end.

        Args:
            loader: yields batches; has a length and `set_epoch(epoch)`.
            validate: evaluates the model as it is and returns the figures of `VideoScores.summary`.

        Raises:
            CheckFailed: a loss is not finite, too many videos cannot be read, or inputs cannot be rebuilt.
        """
        settings = self.settings
        for epoch in range(self.next_epoch, settings.max_epoch):
            loader.set_epoch(epoch)
            self._train_epoch(loader, epoch)
            self.next_epoch = epoch + 1
            last = self.next_epoch == settings.max_epoch
            if validate is not None and (last or self.next_epoch % settings.eval_period == 0):
                self._validate(validate, epoch)
            if last or self.next_epoch % settings.checkpoint_period == 0:
                self.save(epoch)

    def train_step(
        self, clips: Tensor, targets: Tensor, learning_rate: float, *, step: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One optimizer step; returns loss (scalar), logits `(B, K)`, detached, and the gradients' norm from before.

        With the number of the step from the start of training, the inversion is checked when its turn has come; a
        check that fails leaves the weights as they were.
        """
        settings = self.settings
        set_lr(self.optimizer, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)
        with self._inversion_checked(step):
            with torch.autocast(self.device.type, dtype=settings.amp_dtype, enabled=settings.amp_dtype is not None):
                logits = self.model(clips)
            outputs = logits.float().sigmoid() if self.loss.takes_probabilities else logits
            loss = self.loss(outputs, targets)
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), value=settings.clip_value, l2_norm=settings.clip_l2_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), logits.detach(), norm

    def _inversion_checked(self, step: int | None) -> contextlib.AbstractContextManager:
        period = self.settings.check_inversion_period
        if self.check_inversion is None or step is None or not period or step % period:
            return contextlib.nullcontext()
        limit = self.settings.check_inversion_limit
        return inversion_checked(self.check_inversion, step=step, limit=limit, events=self.events)

    def _train_epoch(self, loader: Iterable, epoch: int) -> None:
        self.model.train()
        num_steps = len(loader)
        description = f"train {epoch + 1}/{self.settings.max_epoch}"
        with Progress(num_steps, description, log_period=self.settings.log_period, logger=logger) as progress:
            asked_at = time.perf_counter()
            for step, batch in enumerate(loader):
                got_at = time.perf_counter()
                self._count_bad(batch, epoch)
                clips, targets = self.prepare(batch, epoch, step)
                lr = self.settings.learning_rate(epoch + step / num_steps)
                loss, logits, norm = self.train_step(clips, targets, lr, step=epoch * num_steps + step)
                scores, labels = merge_mixed_targets(logits, targets)
                top1 = topk_correct(scores, labels, (1,))[0].item() / len(clips)
                value, done_at = loss.item(), time.perf_counter()
                wait = (got_at - asked_at) / (done_at - asked_at)
                rate = len(clips) / (done_at - asked_at)
                self.events.write(
                    "train_step",
                    step=epoch * num_steps + step,
                    epoch=epoch,
                    loss=value,
                    lr=lr,
                    grad_norm=norm.item(),
                    top1=100.0 * top1,
                    clips_per_second=rate,
                    data_wait_share=wait,
                    bad_videos=self.videos_bad,
                )
                if not math.isfinite(value) and not self.scaler.is_enabled():
                    raise CheckFailed(
                        f"the loss is {value} at step {step} of epoch {epoch} (videos {batch.index.tolist()}); lower "
                        "SOLVER.BASE_LR, clip the gradients (SOLVER.CLIP_GRAD_L2NORM), or train without AMP"
                    )
                progress.update(loss=value, top1=100.0 * top1, lr=lr, **{"clips/s": rate, "data": f"{wait:.0%}"})
                asked_at = time.perf_counter()

    def _count_bad(self, batch, epoch: int) -> None:
        """Take note of videos that are damaged, or unreadable and replaced; stop when too many are unreadable."""
        self.videos_asked += batch.num_videos + len(batch.bad)
        self.videos_bad += len(batch.bad)
        for kind, what, videos in (
            ("bad_video", "unreadable video, another one taken", batch.bad),
            ("damaged_video", "damaged video, its good frames are used", batch.damaged),
        ):
            for path, reason in videos:
                self.events.write(kind, epoch=epoch, path=path, reason=reason)
                if path not in self._warned and len(self._warned) < BAD_VIDEOS_NAMED:
                    self._warned.add(path)
                    logger.warning("%s: %s: %s", what, path, reason)
        for path, reason in batch.bad:
            if len(self._first_bad) < BAD_VIDEOS_IN_ERROR:
                self._first_bad.setdefault(path, reason)
        share = self.videos_bad / self.videos_asked
        if self.videos_asked >= self.settings.min_videos_judged and share > self.settings.max_bad_fraction:
            raise CheckFailed(
                f"{self.videos_bad} of {self.videos_asked} videos could not be read ({share:.1%}); allowed are "
                f"{self.settings.max_bad_fraction:.1%} (LOADER.MAX_BAD_FRACTION). The first: "
                f"{'; '.join(f'{path}: {reason}' for path, reason in self._first_bad.items())}. "
                f"{self.events.path} names each"
            )

    def _validate(self, validate: Callable[[], dict], epoch: int) -> None:
        result = validate()
        top1 = result["top1_acc"]
        self.best_top1 = max(self.best_top1, -1.0 if top1 is None else top1)
        self.events.write("validation", epoch=epoch, **result)
        logger.info(
            "validation after epoch %d: top-1 %s, top-5 %s, %d videos, %d failed",
            *(epoch + 1, _percent(top1), _percent(result["top5_acc"]), result["num_videos"], len(result["failed"])),
        )

    def save(self, epoch: int) -> Path:
        """Write the checkpoint of a finished epoch (counted from 0)."""
        state = checkpoint_state(
            epoch=epoch,
            model=self.model,
            optimizer=self.optimizer,
            cfg=self.config_text,
            scaler=self.scaler if self.scaler.is_enabled() else None,
            random_state=random_state(),
            best_top1=self.best_top1,
        )
        path = save_checkpoint(self.folder / "checkpoints" / checkpoint_name(epoch), state)
        self.events.write("checkpoint", epoch=epoch, path=str(path))
        return path

    def resume(self, path: Path) -> None:
        """Continue exactly after the epoch that a checkpoint of this run was written at."""
        state = load_checkpoint(path)
        self.load(state, source=str(path))
        if "random_state" in state:
            set_random_state(state["random_state"])
        self.best_top1 = state.get("best_top1", -1.0)
        self.events.write("resume", path=str(path), epoch=state["epoch"])
        logger.info("resumed after epoch %d from %s", state["epoch"] + 1, path)

    def load(self, state: dict, *, source: str, with_progress: bool = True) -> None:
        """Take the weights of a checkpoint and, unless `with_progress` is off, its optimizer, scaler and epoch."""
        load_model_state(self.model, state["model_state"], source=source)
        if with_progress and "optimizer_state" not in state:
            logger.warning("%s holds no optimizer state: only its weights are taken", source)
        elif with_progress:
            load_optimizer_state(self.optimizer, state["optimizer_state"], source=source)
            if self.scaler.is_enabled() and "scaler_state" in state:
                self.scaler.load_state_dict(state["scaler_state"])
            self.next_epoch = state["epoch"] + 1


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f} %"
