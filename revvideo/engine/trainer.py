"""The training loop: epochs, steps, validation, checkpoints, events. It knows modules and loaders, never a config."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from revvideo.distributed.group import Group
from revvideo.engine.bad_videos import BadVideos
from revvideo.engine.checkpoint import checkpoint_name, checkpoint_state, load_checkpoint, load_model_state
from revvideo.engine.checkpoint_folder import CheckpointFolder
from revvideo.engine.data_wait import DataWait
from revvideo.engine.ema import ModelEma
from revvideo.engine.events import EventLog
from revvideo.engine.freezing import FrozenParts
from revvideo.engine.optimizer import load_optimizer_state
from revvideo.engine.peak_memory import peak_memory_mib
from revvideo.engine.progress import Progress
from revvideo.engine.random_state import random_state, set_random_state
from revvideo.engine.step_totals import OTHER_PROCESS, StepTotals
from revvideo.engine.train_step import StepOutcome, TrainStep
from revvideo.errors import CheckFailed, NotSaved, Stopped

logger = logging.getLogger(__name__)

MOST_SKIPPED_STEPS = 100  # in a row: a loss scale that finds no finite gradients in so many steps finds none
FINAL_SAVE_TRIES = 5

Validate = Callable[[nn.Module], dict]


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """When to do what.

    Attributes:
        max_epoch: number of epochs.
        learning_rate: fractional epoch -> learning rate; asked before every step.
        eval_period, checkpoint_period: in epochs; the last epoch always counts.
        checkpoint_minutes: a checkpoint is written when the last one is so old; 0: only after epochs.
        retry_seconds: a checkpoint that could not be written is tried again after so long.
        log_period: in steps, where progress is written as lines.
        on_nan: "stop", or "rollback": once, to the last checkpoint, and then without the batch that did it.
        max_bad_fraction: training stops when more than this share of the videos asked for could not be read.
        min_videos_judged: ... but not before so many were asked for.
        seed: RNG_SEED, for what a checkpoint of another number of processes does not hold.
    """

    max_epoch: int
    learning_rate: Callable[[float], float]
    eval_period: int = 1
    checkpoint_period: int = 1
    checkpoint_minutes: float = 0.0
    retry_seconds: float = 60.0
    log_period: int = 10
    on_nan: str = "stop"
    max_bad_fraction: float = 0.05
    min_videos_judged: int = 100
    seed: int = 0


@dataclasses.dataclass
class Position:
    """How far training is.

    Attributes:
        epoch: the epoch in progress, from 0.
        samples: videos of it that were trained on, in all processes.
        steps: steps of it that were made.
        step: steps since the start of training.
    """

    epoch: int = 0
    samples: int = 0
    steps: int = 0
    step: int = 0


class _RolledBack(Exception):
    """The trainer is at an earlier position; the loader has to follow."""


class Trainer:
    """Trains a model in a run folder, alone or as one of several processes that all call the same methods.

    Args:
        step: model, optimizer and loss.
        settings: when to do what.
        prepare: `(batch, epoch, step) -> parts`: pairs of float clips `(B, C, T, H, W)` on the device, normalised and
            mixed, and class numbers `(B,)` or weights `(B, K)`; together the batch.
        checkpoints: where to; None: no checkpoints.
        config_text: the resolved config, kept in the checkpoints.
        events: the diary.
        group: the processes of the run; None: this one alone.
        ema: average of the weights, validated beside them; the best checkpoint is then judged by it.
        frozen: parts of the model that are not trained.
        data_wait: gives advice when training waits for its batches.
        stop_reason: asked at every step; where it gives a reason, in any process, all of them save and stop.
        on_stop: called in every process after that checkpoint, before `Stopped` is raised.
        notes: further plain values for the checkpoints, such as class names and the version of the code.

    Attributes:
        position: how far it is.
        best_top1: highest validation accuracy so far in percent, -1 before the first.
    """

    def __init__(
        self,
        step: TrainStep,
        settings: TrainSettings,
        *,
        prepare: Callable[[object, int, int], Iterable[tuple[Tensor, Tensor]]],
        checkpoints: CheckpointFolder | None,
        config_text: str,
        events: EventLog,
        group: Group | None = None,
        ema: ModelEma | None = None,
        frozen: FrozenParts | None = None,
        data_wait: DataWait | None = None,
        stop_reason: Callable[[], str | None] = lambda: None,
        on_stop: Callable[[], None] | None = None,
        notes: dict | None = None,
    ):
        self.step, self.settings, self.prepare = step, settings, prepare
        self.checkpoints, self.config_text, self.events = checkpoints, config_text, events
        self.group = Group() if group is None else group
        self.ema, self.frozen = ema, frozen
        self.stop_reason, self.on_stop, self.notes = stop_reason, on_stop, dict(notes or {})
        self.position, self.best_top1 = Position(), -1.0
        self.bad_videos = BadVideos(
            events, max_fraction=settings.max_bad_fraction, min_judged=settings.min_videos_judged
        )
        self.data_wait = DataWait(logger) if data_wait is None else data_wait
        self.rollbacks, self.skipped_steps = 0, 0
        self._loader_state: dict = {}  # whose samples they are
        self.left_out: list[list[int]] = []  # [epoch, samples before it] of batches that gave no finite loss
        self._skipped_in_a_row = 0
        self._last_checkpoint: Path | None = None  # of this course of training; others may lie in the folder
        self._saved_at = time.monotonic()
        self._retry_at: float | None = None

    @property
    def model(self) -> nn.Module:
        """The model, without a wrapper."""
        return self.step.model

    def fit(self, loader, *, validate: Validate | None = None) -> None:
        """Train from `position` to the end.

        Args:
            loader: a `TrainLoader`, or one like it: `set_epoch(epoch, samples)`, batches, `len`, `samples_per_step`,
                `batches_per_epoch`, `origin(batch)`.
            validate: evaluates a model and returns the figures of `VideoScores.summary`; in all processes the same.

        Raises:
            CheckFailed: a loss is not finite, too many videos cannot be read, or inputs cannot be rebuilt.
            NotSaved: the checkpoint at the end or at a stop could not be written.
            Stopped: `stop_reason` gave one; a checkpoint is written.
        """
        self._loader_state = loader.state_dict()
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
                if [position.epoch, position.samples] in self.left_out:
                    self._advance(loader)
                    continue
                fields, reason, save_due = self._step(loader, batch, asked_at, wait_seconds)
                self._advance(loader)
                progress.update(**fields)
                if reason is not None:
                    self._stop(reason)
                if save_due:
                    self.save()
                asked_at = time.perf_counter()

    def _advance(self, loader) -> None:
        self.position.samples += loader.samples_per_step
        self.position.steps += 1
        self.position.step += 1

    def _step(self, loader, batch, asked_at: float, wait_seconds: float) -> tuple[dict, str | None, bool]:
        """One step; returns what to show, why to stop (or None), and whether a checkpoint is due."""
        position = self.position
        done_epochs = position.epoch + position.samples / loader.samples_per_step / loader.batches_per_epoch
        learning_rate = self.settings.learning_rate(done_epochs)
        parts = self.prepare(batch, position.epoch, position.steps)
        outcome = self.step.forward_backward(parts, step=position.step)
        totals = self._totals(batch, outcome, asked_at, wait_seconds)
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
            "train_step", step=position.step, epoch=position.epoch, **fields, bad_videos=self.bad_videos.bad
        )
        finite = math.isfinite(totals.loss) and math.isfinite(norm)
        if not finite:
            self._not_finite(loader, batch, outcome, totals.loss, norm)
        self.step.update(learning_rate, finite=finite)
        if finite:
            self._skipped_in_a_row = 0
            if self.ema is not None:
                self.ema.update(self.model)
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
        return shown, totals.stop_reason, totals.save_due

    def _totals(self, batch, outcome: StepOutcome, asked_at: float, wait_seconds: float) -> StepTotals:
        """What the processes tell each other about the step, the stop and the checkpoint in one collective."""
        now = time.monotonic()
        return StepTotals.agree(
            self.group,
            what=f"step {self.position.step}",
            outcome=outcome,
            num_videos=batch.num_videos,
            num_bad=len(batch.bad),
            num_damaged=len(batch.damaged),
            began_at=asked_at,
            wait_seconds=wait_seconds,
            stop_reason=self.stop_reason(),
            save_due=self.group.is_main and self._save_due(now),
        )

    def _save_due(self, now: float) -> bool:
        if self.checkpoints is None:
            return False
        if self._retry_at is not None:
            return now >= self._retry_at
        minutes = self.settings.checkpoint_minutes
        return bool(minutes) and now - self._saved_at >= 60.0 * minutes

    def _note_bad_videos(self, batch, totals: StepTotals) -> None:
        asked = totals.num_videos + totals.num_bad
        bad, damaged = [], []
        if totals.num_bad or totals.num_damaged:
            for theirs in self.group.gather((batch.bad, batch.damaged), f"bad videos of step {self.position.step}"):
                bad += theirs[0]
                damaged += theirs[1]
        self.bad_videos.add(asked, bad, damaged, self.position.epoch)

    # What is not a number

    def _not_finite(self, loader, batch, outcome: StepOutcome, loss: float, norm: float) -> None:
        """Loss scaling leaves the step out and lowers its scale; else the batch is written down, and RUN.ON_NAN acts.

        Raises:
            CheckFailed: training stops.
            _RolledBack: it goes on from the last checkpoint.
        """
        position = self.position
        if self.step.scaler.is_enabled() and self._skipped_in_a_row < MOST_SKIPPED_STEPS:
            self.skipped_steps += 1
            self._skipped_in_a_row += 1
            scale = self.step.scaler.get_scale()
            self.events.write("skipped_step", step=position.step, scale=scale, skipped_steps=self.skipped_steps)
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
        if self.settings.on_nan == "rollback" and self.rollbacks == 0:
            self._roll_back(loader, found)
            tried = " (RUN.ON_NAN rollback, but there is no checkpoint to go back to)"
        elif self.rollbacks:
            tried = f" again, after {self.rollbacks} rollback,"
        advice = "lower SOLVER.BASE_LR, clip the gradients (SOLVER.CLIP_GRAD_L2NORM), or train without AMP"
        raise CheckFailed(
            f"{found}{tried}: videos {videos} on rank {culprit['rank']}; {self.events.path} has all of them, with "
            f"their seeds. The weights are those of the step before; {advice}"
        )

    def _roll_back(self, loader, found: str) -> None:
        """Go back to the last checkpoint, if there is one, and leave the present batch out from now on."""
        path = self.group.broadcast(self._last_checkpoint, "checkpoint to roll back to")
        if path is None:
            return
        left_out = [self.position.epoch, self.position.samples]
        step = self.position.step
        self.resume(path, loader)
        self.rollbacks += 1
        self.left_out.append(left_out)
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
        self.position = Position(epoch=number, step=position.step)
        if last or best or number % settings.checkpoint_period == 0:
            path = self._save_surely("training is complete") if last else self.save()
            if best and path is not None:
                self.checkpoints.mark_best(path)

    def _validate(self, validate: Validate) -> bool:
        """Validate the weights, and their average where there is one; returns whether it is the best so far."""
        epoch = self.position.epoch
        for name, model in [("raw", self.model)] + ([("ema", self.ema.module)] if self.ema is not None else []):
            result = validate(model)
            top1 = result["top1_acc"]
            self.events.write("validation", epoch=epoch, step=self.position.step, weights=name, **result)
            logger.info(
                "validation after epoch %d%s: top-1 %s, top-5 %s, %d videos, %d failed",
                *(epoch + 1, ", averaged weights" if name == "ema" else "", _percent(top1)),
                *(_percent(result["top5_acc"]), result["num_videos"], len(result["failed"])),
            )
        if top1 is None or top1 <= self.best_top1:
            return False
        self.best_top1 = top1
        return True

    def _stop(self, reason: str) -> None:
        """Save, let everybody finish saving, and leave.

        Raises:
            Stopped: always, but
            NotSaved: where the checkpoint could not be written.
        """
        reasons = self.group.gather(reason, "why to stop")
        reason = next((each for each in reasons if each != OTHER_PROCESS), reason)
        self._save_surely(f"stopped by {reason}")
        self.events.write("stop", reason=reason, step=self.position.step)
        self.group.barrier("stop")
        if self.on_stop is not None:
            self.on_stop()
        message = f"stopped by {reason} after step {self.position.step}; the same command goes on from there"
        raise Stopped(message, reason=reason)

    # Checkpoints

    def _save_surely(self, why: str) -> Path | None:
        """`save`, before the process ends; returns the file, in the first process.

        Raises:
            NotSaved: it could not be written, in all processes.
        """
        path = self.save(final=True)
        if self.checkpoints is not None and not self.group.any(path is not None, "checkpoint written"):
            last = self.group.broadcast(self._last_checkpoint, "last checkpoint")
            begins = "the start" if last is None else str(last)
            raise NotSaved(
                f"{why}, but no checkpoint could be written to {self.checkpoints.folder} in {FINAL_SAVE_TRIES} tries "
                f"({self.events.path} has the reasons); with room on the disk the same command goes on from {begins}"
            )
        return path

    def save(self, *, final: bool = False) -> Path | None:
        """Write a checkpoint of the present position; all processes call it, the first one writes.

        A write that fails is told, noted and tried again later; `final`: now, several times.

        Returns:
            The file, in the first process; None where it was not written.
        """
        if self.checkpoints is None:
            return None
        states = self.group.gather(random_state(), f"random states of step {self.position.step}")
        if not self.group.is_main:
            return None
        position = self.position
        state = checkpoint_state(
            epoch=position.epoch - 1,
            model=self.model,
            optimizer=self.step.optimizer,
            cfg=self.config_text,
            scaler=self.step.scaler if self.step.scaler.is_enabled() else None,
            position=dataclasses.asdict(position),
            loader=self._loader_state | {"epoch": position.epoch, "samples": position.samples},
            random_states=states,
            best_top1=self.best_top1,
            counters={
                "rollbacks": self.rollbacks,
                "skipped_steps": self.skipped_steps,
                "left_out": self.left_out,
                "bad_videos": self.bad_videos.state_dict(),
            },
            **({"ema_state": self.ema.state_dict()} if self.ema is not None else {}),
            **self.notes,
        )
        path = self._write(checkpoint_name(position.epoch - 1, position.steps), state, tries=FINAL_SAVE_TRIES * final)
        now = time.monotonic()
        if path is None:
            self._retry_at = now + self.settings.retry_seconds
            return None
        self._saved_at, self._retry_at, self._last_checkpoint = now, None, path
        self.events.write("checkpoint", epoch=state["epoch"], step=position.step, path=str(path))
        return path

    def _write(self, name: str, state: dict, *, tries: int) -> Path | None:
        with self.group.uninterrupted():
            path = self.checkpoints.save(name, state)
            for number in range(1, tries):
                if path is not None:
                    break
                time.sleep(2.0 ** (number - 2))  # 0.5 s to 4 s
                path = self.checkpoints.save(name, state)
        return path

    def resume(self, path: Path, loader) -> None:
        """Continue exactly where a checkpoint of this run was written; in all processes.

        Raises:
            InputError: the checkpoint is of another model or optimizer, or of another order of the loader's samples.
        """
        state = load_checkpoint(path)
        if state.get("loader", {}).get("samples"):  # at the start of an epoch the list may be another one
            loader.load_state_dict(state["loader"])
        self.load(state, source=str(path))
        self.best_top1 = state.get("best_top1", -1.0)
        counters = state.get("counters", {})
        self.rollbacks = counters.get("rollbacks", 0)
        self.skipped_steps = counters.get("skipped_steps", 0)
        self.left_out = [list(each) for each in counters.get("left_out", [])]
        if "bad_videos" in counters:
            self.bad_videos.load_state_dict(counters["bad_videos"])
        self._set_random_state(state.get("random_states"), path)
        self._last_checkpoint, self._skipped_in_a_row = path, 0
        position = self.position
        self.events.write("resume", path=str(path), epoch=state["epoch"], step=position.step)
        where = f"{position.steps} steps of epoch {position.epoch + 1}" if position.steps else f"epoch {position.epoch}"
        logger.info("resumed after %s from %s", where, path)

    def _set_random_state(self, states: Sequence[dict] | None, path: Path) -> None:
        rank, world_size = self.group.rank, self.group.world_size
        if states is not None and len(states) == world_size:
            set_random_state(states[rank])
            return
        key = np.random.SeedSequence([self.settings.seed, self.position.step, rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        saved = "no process" if states is None else f"{len(states)} process{'es' if len(states) > 1 else ''}"
        logger.warning(
            "%s holds the random state of %s, and this run has %d: it goes on at the same sample, but is not bit-equal",
            *(path, saved, world_size),
        )

    def restart_average(self) -> None:
        """Begin the average of the weights (EMA) anew, with the weights as they are."""
        if self.ema is not None:
            load_model_state(self.ema.module, self.model.state_dict(), source="the model")

    def load(self, state: dict, *, source: str, with_progress: bool = True) -> None:
        """Take the weights of a checkpoint and, unless `with_progress` is off, its optimizer, scaler and position."""
        load_model_state(self.model, state["model_state"], source=source)
        self.restart_average()
        if self.ema is not None and "ema_state" in state:
            load_model_state(self.ema.module, state["ema_state"], source=f"{source}, averaged weights")
        elif self.ema is not None:
            logger.warning("%s holds no average of the weights (EMA.ENABLE): it starts from these", source)
        if with_progress and "optimizer_state" not in state:
            logger.warning("%s holds no optimizer state: only its weights are taken", source)
        elif with_progress:
            load_optimizer_state(self.step.optimizer, state["optimizer_state"], source=source)
            if self.step.scaler.is_enabled() and "scaler_state" in state:
                self.step.scaler.load_state_dict(state["scaler_state"])
            self.position = Position(**state["position"]) if "position" in state else Position(epoch=state["epoch"] + 1)


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f} %"
