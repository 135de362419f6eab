"""The training loop: epochs, steps, validation, checkpoints, events. It knows modules and loaders, never a config."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from revvideo.engine.data_wait import DataWait
from revvideo.engine.events import EventLog
from revvideo.engine.freezing import FrozenParts
from revvideo.engine.peak_memory import peak_memory_mib
from revvideo.engine.progress import Progress
from revvideo.engine.saving import Saver
from revvideo.engine.step_totals import OTHER_PROCESS, StepTotals
from revvideo.engine.train_step import StepOutcome
from revvideo.engine.training_state import Position, TrainingState
from revvideo.errors import CheckFailed, Stopped

logger = logging.getLogger(__name__)

MOST_SKIPPED_STEPS = 100  # in a row: a loss scale that finds no finite gradients in so many steps finds none

Validate = Callable[[nn.Module], dict]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """When to do what.

    Attributes:
        max_epoch: number of epochs.
        learning_rate: fractional epoch -> learning rate; asked before every step.
        eval_period, checkpoint_period: in epochs; the last epoch always counts.
        log_period: in steps, where progress is written as lines.
        on_nan: "stop", or "rollback": once, to the last checkpoint, and then without the batch that did it.
    """

    max_epoch: int
    learning_rate: Callable[[float], float]
    eval_period: int = 1
    checkpoint_period: int = 1
    log_period: int = 10
    on_nan: str = "stop"


class _RolledBack(Exception):
    """The trainer is at an earlier position; the loader has to follow."""


class Trainer:
    """Trains a model in a run folder, alone or as one of several processes that all call the same methods.

    Args:
        state: model, optimizer and loss, and how far they are; what checkpoints hold.
        saver: writes the checkpoints.
        settings: when to do what.
        prepare: `(batch, epoch, step) -> parts`: pairs of float clips `(B, C, T, H, W)` on the device, normalised and
            mixed, and class numbers `(B,)` or weights `(B, K)`; together the batch.
        events: the diary.
        frozen: parts of the model that are not trained.
        data_wait: gives advice when training waits for its batches.
        stop_reason: asked at every step; where it gives a reason, in any process, all of them save and stop.
        on_stop: called in every process after that checkpoint, before `Stopped` is raised.
    """

    def __init__(
        self,
        state: TrainingState,
        saver: Saver,
        settings: TrainSettings,
        *,
        prepare: Callable[[object, int, int], Iterable[tuple[Tensor, Tensor]]],
        events: EventLog,
        frozen: FrozenParts | None = None,
        data_wait: DataWait | None = None,
        stop_reason: Callable[[], str | None] = lambda: None,
        on_stop: Callable[[], None] | None = None,
    ):
        self.state, self.saver, self.settings = state, saver, settings
        self.step, self.group = state.step, state.group
        self.prepare, self.events, self.frozen = prepare, events, frozen
        self.data_wait = DataWait(logger) if data_wait is None else data_wait
        self.stop_reason, self.on_stop = stop_reason, on_stop
        self._skipped_in_a_row = 0
        self._update_seconds = 0.0  # of the step before, from its totals on; they count in the next step's

    @property
    def model(self) -> nn.Module:
        """The model, without a wrapper."""
        return self.step.model

    @property
    def position(self) -> Position:
        """How far it is."""
        return self.state.position

    def fit(self, loader, *, validate: Validate | None = None) -> None:
        """Train from `position` to the end.

        Args:
            loader: a `TrainLoader`, or one like it: `set_epoch(epoch, samples)`, batches, `len`, `samples_per_step`,
                `batches_per_epoch`, `origin(batch)`.
            validate: evaluates a model and returns the figures of `VideoScores.summary`; in all processes the same.

        Raises:
            CheckFailed: a loss is not finite, too many videos cannot be read, or inputs cannot be rebuilt.
            InputError: `position` is within an epoch of another list or order of samples than the loader's.
            NotSaved: the checkpoint at the end or at a stop could not be written.
            Stopped: `stop_reason` gave one; a checkpoint is written.
        """
        if self.position.samples and self.state.loader:  # at the start of an epoch the list may be another one
            loader.load_state_dict(self.state.loader)
        self.state.loader = loader.state_dict()
        if not self.position.step:  # PySlowFast's checkpoints count epochs alone
            self.position.step = self.position.epoch * loader.batches_per_epoch
        while self.position.epoch < self.settings.max_epoch:
            try:
                self._train_epoch(loader)
                self._finish_epoch(validate)
            except _RolledBack:
                continue

    def _train_epoch(self, loader) -> None:
        position = self.position
        loader.set_epoch(position.epoch, position.samples)
        self.model.train()
        if self.frozen is not None:
            self.frozen.keep_in_eval()
        num_steps = position.steps + len(loader)
        later = (self.settings.max_epoch - position.epoch - 1) * loader.batches_per_epoch
        description = f"train {position.epoch + 1}/{self.settings.max_epoch}"
        with Progress(
            num_steps,
            description,
            log_period=self.settings.log_period,
            logger=logger,
            enabled=self.group.is_main,
            initial=position.steps,
            total_remaining=later,
        ) as progress:
            asked_at = time.perf_counter()
            for batch in loader:
                wait_seconds = time.perf_counter() - asked_at
                if [position.epoch, position.samples] in self.state.left_out:
                    position.advance(loader.samples_per_step)
                    continue
                fields, reason, save_due = self._step(loader, batch, asked_at, wait_seconds)
                position.advance(loader.samples_per_step)
                progress.update(**fields)
                if reason is not None:
                    self._stop(reason)
                if save_due:
                    self.saver.save()
                asked_at = time.perf_counter()

    def _step(self, loader, batch, asked_at: float, wait_seconds: float) -> tuple[dict, str | None, bool]:
        """One step; returns what to show, why to stop (or None), and whether a checkpoint is due."""
        position = self.position
        done_epochs = position.epoch + position.samples / loader.samples_per_step / loader.batches_per_epoch
        learning_rate = self.settings.learning_rate(done_epochs)
        parts = self.prepare(batch, position.epoch, position.steps)
        outcome = self.step.forward_backward(parts, step=position.step)
        totals = self._totals(batch, outcome, asked_at, wait_seconds)
        told_at = time.perf_counter()
        self._note_bad_videos(batch, totals)
        norm = outcome.grad_norm.item()
        fields = {
            "loss": totals.loss,
            "lr": learning_rate,
            "grad_norm": norm,
            "top1": totals.top1,
            "clips_per_second": totals.clips_per_second,
            "data_wait_share": totals.data_wait_share,
            "peak_memory_mib": peak_memory_mib(self.step.device),
        }
        self.events.write(
            "train_step",
            step=position.step,
            epoch=position.epoch,
            steps_per_epoch=loader.batches_per_epoch,
            **fields,
            bad_videos=self.state.bad_videos.bad,
        )
        finite = math.isfinite(totals.loss) and math.isfinite(norm)
        if not finite:
            self._not_finite(loader, batch, outcome, totals.loss, norm)
        self.step.update(learning_rate, finite=finite)
        if finite:
            self._skipped_in_a_row = 0
            if self.state.ema is not None:
                self.state.ema.update(self.model)
        if self.group.is_main:
            advice = self.data_wait.add(totals.wait_seconds, totals.seconds)
            if advice is not None:
                self.events.write("data_wait", step=position.step, advice=advice)
        shown = {
            "loss": totals.loss,
            "top1": totals.top1,
            "lr": learning_rate,
            "clips/s": totals.clips_per_second,
            "data": f"{totals.data_wait_share:.0%}",
            "mem": f"{fields['peak_memory_mib']:.0f} MiB",
        }
        self._update_seconds = time.perf_counter() - told_at
        return shown, totals.stop_reason, totals.save_due

    def _totals(self, batch, outcome: StepOutcome, asked_at: float, wait_seconds: float) -> StepTotals:
        """What the processes tell each other about the step, the stop and the checkpoint in one collective."""
        return StepTotals.agree(
            self.group,
            what=f"step {self.position.step}",
            outcome=outcome,
            num_videos=batch.num_videos,
            num_bad=len(batch.bad),
            num_damaged=len(batch.damaged),
            began_at=asked_at - self._update_seconds,
            wait_seconds=wait_seconds,
            stop_reason=self.stop_reason(),
            save_due=self.saver.due(),
        )

    def _note_bad_videos(self, batch, totals: StepTotals) -> None:
        asked = totals.num_videos + totals.num_bad
        bad, damaged = [], []
        if totals.num_bad or totals.num_damaged:
            for theirs in self.group.gather((batch.bad, batch.damaged), f"bad videos of step {self.position.step}"):
                bad += theirs[0]
                damaged += theirs[1]
        self.state.bad_videos.add(asked, bad, damaged, self.position.epoch)

    # What is not a number

    def _not_finite(self, loader, batch, outcome: StepOutcome, loss: float, norm: float) -> None:
        """Loss scaling leaves the step out and lowers its scale; else the batch is written down, and RUN.ON_NAN acts.

        Raises:
            CheckFailed: training stops.
            _RolledBack: it goes on from the last checkpoint.
        """
        position = self.position
        if self.step.scaler.is_enabled() and self._skipped_in_a_row < MOST_SKIPPED_STEPS:
            self.state.skipped_steps += 1
            self._skipped_in_a_row += 1
            scale = self.step.scaler.get_scale()
            self.events.write("skipped_step", step=position.step, scale=scale, skipped_steps=self.state.skipped_steps)
            return
        mine = {"rank": self.group.rank, "loss": outcome.loss.item(), **loader.origin(batch)}
        origins = self.group.gather(mine, f"batch of step {position.step}")
        self.events.write(
            "not_finite",
            step=position.step,
            epoch=position.epoch,
            epoch_step=position.steps,
            loss=loss,
            grad_norm=norm,
            ranks=origins,
        )
        found = (
            f"the loss is {loss}, the norm of the gradients {norm}, at step {position.step} (epoch {position.epoch})"
        )
        culprit = next((each for each in origins if not math.isfinite(each["loss"])), origins[0])
        videos = ", ".join(culprit["videos"][:4]) + (", ..." if len(culprit["videos"]) > 4 else "")
        tried = ""
        if self.settings.on_nan == "rollback" and self.state.rollbacks == 0:
            self._roll_back(found)
            tried = " (RUN.ON_NAN rollback, but there is no checkpoint to go back to)"
        elif self.state.rollbacks:
            tried = f" again, after {self.state.rollbacks} rollback,"
        last = self.group.broadcast(self.saver.last, "last checkpoint") or "the start"
        advice = "lower SOLVER.BASE_LR, clip the gradients (SOLVER.CLIP_GRAD_L2NORM), or train without AMP"
        raise CheckFailed(
            f"{found}{tried}: videos {videos} on rank {culprit['rank']}; {self.events.path} has all of them, with "
            f"their seeds. The same command goes on from {last}: {advice}"
        )

    def _roll_back(self, found: str) -> None:
        """Go back to the last checkpoint, if there is one, and leave the present batch out from now on."""
        path = self.group.broadcast(self.saver.last, "checkpoint to roll back to")
        if path is None:
            return
        left_out = [self.position.epoch, self.position.samples]
        step = self.position.step
        self.saver.resume(path)
        self._skipped_in_a_row = 0
        self.state.rollbacks += 1
        self.state.left_out.append(left_out)
        self.events.write("rollback", step=step, path=str(path), epoch=left_out[0], samples=left_out[1])
        logger.warning("%s; back to %s, and on without this batch (RUN.ON_NAN rollback)", found, path)
        raise _RolledBack

    # The end of an epoch, and of the run

    def _finish_epoch(self, validate: Validate | None) -> None:
        settings, position = self.settings, self.position
        number = position.epoch + 1
        last = number == settings.max_epoch
        best = False
        if validate is not None and (last or number % settings.eval_period == 0):
            try:
                best = self._validate(validate)
            except Stopped as stopped:
                self._stop(stopped.reason)
        self.state.position = Position(epoch=number, step=position.step)
        if last:
            self.saver.save_surely("training is complete", is_best=best)
        elif best or number % settings.checkpoint_period == 0:
            self.saver.save(is_best=best)

    def _validate(self, validate: Validate) -> bool:
        """Validate the weights, and their average where there is one; returns whether it is the best so far."""
        epoch = self.position.epoch
        for name, model in [("raw", self.model)] + (
            [("ema", self.state.ema.module)] if self.state.ema is not None else []
        ):
            self._share_buffers(model)
            result = validate(model)
            top1 = result["top1_acc"]
            self.events.write("validation", epoch=epoch, step=self.position.step, weights=name, **result)
            logger.info(
                "validation after epoch %d%s: top-1 %s, top-5 %s, %d videos, %d failed",
                *(epoch + 1, ", averaged weights" if name == "ema" else "", _percent(top1)),
                *(_percent(result["top5_acc"]), result["num_videos"], len(result["failed"])),
            )
        if top1 is None or top1 <= self.state.best_top1:
            return False
        self.state.best_top1 = top1
        return True

    def _share_buffers(self, model: nn.Module) -> None:
        """Batch norm gathers statistics in each process: all validate with the first one's, which checkpoints hold."""
        mine = dict(model.named_buffers())
        if self.group.world_size == 1 or not mine:
            return
        values = {name: buffer.cpu() for name, buffer in mine.items()} if self.group.is_main else None
        shared = self.group.broadcast(values, "statistics to validate with")
        for name, buffer in mine.items():
            buffer.copy_(shared[name])

    def _stop(self, reason: str) -> None:
        """Save, let everybody finish saving, and leave.

        Raises:
            Stopped: always, but
            NotSaved: where the checkpoint could not be written.
        """
        reasons = self.group.gather(reason, "why to stop")
        reason = next((each for each in reasons if each != OTHER_PROCESS), reason)
        self.saver.save_surely(f"stopped by {reason}")
        self.events.write("stop", reason=reason, step=self.position.step)
        self.group.barrier("stop")
        if self.on_stop is not None:
            self.on_stop()
        message = f"stopped by {reason} after step {self.position.step}; the same command goes on from there"
        raise Stopped(message, reason=reason)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f} %"
