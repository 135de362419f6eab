"""What goes wrong in a run, and where: at a step, in a part of an evaluation, in one of its processes.

A trouble is installed in the forked process before the run begins (`run`); it changes functions of this process only.
All of it can be pickled, see processes.py.
"""

import dataclasses
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import run_config
import torch

from revvideo import build, jobs
from revvideo.distributed.env import current_process
from revvideo.engine import saving, trainer
from revvideo.exit_codes import run_guarded
from revvideo.jobs import testing, training

Act = Callable[[], object]


def run(data: Path, folder: Path, layers: Sequence[dict], troubles: Sequence["Trouble"] = ()) -> None:
    """Train and evaluate the tiny config with `troubles`, and exit as `run_net` does."""
    for trouble in troubles:
        trouble.install()
    cfg = run_config.config(data, folder, *layers)
    sys.exit(run_guarded(lambda: jobs.run(cfg, on_stop=lambda: note_stop(folder))))


def note_stop(folder: Path) -> None:
    """What each process finds when it is told that the run stops: the names of the checkpoints, one a line."""
    names = sorted(path.name for path in folder.glob("checkpoints/checkpoint*"))
    (folder / f"told{current_process().rank}").write_text("\n".join(names), encoding="utf-8")


def told(folder: Path) -> dict[int, list[str]]:
    """rank -> what it has found in `note_stop`; forgotten afterwards."""
    found = {}
    for path in folder.glob("told*"):
        found[int(path.name.removeprefix("told"))] = path.read_text(encoding="utf-8").splitlines()
        path.unlink()
    return found


class Trouble:
    """Something that is changed in a process before its run begins."""

    def install(self) -> None:
        """Called in every process of the run."""
        raise NotImplementedError


# Where


@dataclasses.dataclass
class AtStep(Trouble):
    """Calls `act` in process `rank` when the batch of (epoch, step of the epoch) is there, at the `visit`-th time."""

    epoch: int
    step: int
    act: Act
    rank: int = 0
    visit: int = 1

    def install(self) -> None:
        def look(batch, epoch, step, parts):
            if (epoch, step) == (self.epoch, self.step):
                self.visit -= 1
                if self.visit == 0:
                    self.act()
            return parts

        if current_process().rank == self.rank:
            _at_every_step(look)


@dataclasses.dataclass
class AtView(Trouble):
    """Calls `act` in process `rank` before the `number`-th batch of views of the evaluation called `kind`...

    Each batch of views takes `seconds` from then on.
    """

    kind: str
    number: int
    act: Act
    rank: int = 0
    seconds: float = 0.0

    def install(self) -> None:
        evaluate, rank, acted = testing.evaluate, current_process().rank, False

        def evaluate_with_trouble(*args, prepare, description, **options):
            def prepare_with_trouble(clips):
                nonlocal count, acted
                count += 1
                if rank == self.rank and count == self.number and not acted:
                    acted = True
                    self.act()
                time.sleep(self.seconds)
                print(f"rank {rank} looks at views {count} of {description}")
                return prepare(clips)

            if not description.startswith(self.kind):
                return evaluate(*args, prepare=prepare, description=description, **options)
            count = 0
            return evaluate(*args, prepare=prepare_with_trouble, description=description, **options)

        testing.evaluate = evaluate_with_trouble


@dataclasses.dataclass
class NotFinite(Trouble):
    """The clips of some steps, (epoch, step of the epoch), are NaN in process `rank`, or in all.

    What the model should have seen is kept in `keep`, a folder.
    """

    steps: Sequence[tuple[int, int]]
    rank: int | None = None
    keep: Path | None = None

    def install(self) -> None:
        rank = current_process().rank

        def spoil(batch, epoch, step, parts):
            if (epoch, step) not in self.steps:
                return parts
            parts = list(parts)
            if self.keep is not None:
                torch.save(parts, self.keep / f"parts{rank}.pt")
            if self.rank in (None, rank):
                parts = [(clips * float("nan"), targets) for clips, targets in parts]
            return parts

        _at_every_step(spoil)


@dataclasses.dataclass
class LossIs(Trouble):
    """The loss of all processes is infinite in some steps of the run, but its gradients are not."""

    steps: Sequence[int]

    def install(self) -> None:
        build_loss = build.build_loss

        def build_spoilt_loss(cfg):
            loss, number = build_loss(cfg), -1

            def spoilt(outputs, targets):
                nonlocal number
                number += 1
                value = loss(outputs, targets)
                return value + float("inf") if number in self.steps else value

            spoilt.takes_probabilities = loss.takes_probabilities
            return spoilt

        build.build_loss = build_spoilt_loss


def _at_every_step(look: Callable) -> None:
    """`look(batch, epoch, step, parts) -> parts` sees what is given to the model."""
    made = build.build_train_input

    def build_train_input(*args, **options):
        prepare = made(*args, **options)
        return lambda batch, epoch, step: look(batch, epoch, step, prepare(batch, epoch, step))

    build.build_train_input = build_train_input


# What


@dataclasses.dataclass
class Send:
    """Sends a signal to this process, or to it and all that it has started, some times, with a pause in between."""

    number: signal.Signals
    to_group: bool = False
    times: int = 1
    pause_seconds: float = 0.0

    def __call__(self) -> None:
        for time_number in range(self.times):
            if time_number:
                time.sleep(self.pause_seconds)
            send = os.killpg if self.to_group else os.kill
            send(os.getpgrp() if self.to_group else os.getpid(), self.number)


@dataclasses.dataclass
class LimitFiles:
    """From now on no file of this process can grow beyond so many bytes (None: any size): write() itself fails."""

    num_bytes: int | None

    def __call__(self) -> None:
        limit = resource.RLIM_INFINITY if self.num_bytes is None else self.num_bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


@dataclasses.dataclass
class FillDisk:
    """From now on this process's descriptor of a file leads to a full disk, or (`full` False) to the file again."""

    path: Path
    full: bool = True

    def __call__(self) -> None:
        link = Path(f"{self.path}.descriptor")  # whose it was
        if self.full:
            number = next(int(each) for each in os.listdir("/proc/self/fd") if _opened(each) == str(self.path))
            link.write_text(str(number), encoding="utf-8")
        target = os.open("/dev/full" if self.full else self.path, os.O_WRONLY | os.O_APPEND)
        os.dup2(target, int(link.read_text(encoding="utf-8")))
        os.close(target)


@dataclasses.dataclass
class Forbid:
    """From now on this process can write nothing new into a folder.

    Root, whom permissions do not stop, becomes another user; what is imported later must not be root's alone.
    """

    folder: Path

    def __call__(self) -> None:
        self.folder.chmod(0o555)
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)


def _opened(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # that of the listing itself
        return ""


# How the run is watched, and made faster


@dataclasses.dataclass
class Impatient(Trouble):
    """Checkpoints that could not be written are tried again at once; the last one of the run `tries` times."""

    tries: int = 2
    on_skips: int = trainer.MOST_SKIPPED_STEPS

    def install(self) -> None:
        saving.FINAL_TRIES, trainer.MOST_SKIPPED_STEPS = self.tries, self.on_skips
        training.Saver = functools.partial(saving.Saver, retry_seconds=0.0)


@dataclasses.dataclass
class KeepWeights(Trouble):
    """The weights that the process has at its end, whatever ends it, are saved as `path`."""

    path: Path

    def install(self) -> None:
        fit = trainer.Trainer.fit

        def fit_and_keep(this, *args, **options):
            try:
                return fit(this, *args, **options)
            finally:
                torch.save(this.model.state_dict(), f"{self.path}{this.group.rank}")

        trainer.Trainer.fit = fit_and_keep


@dataclasses.dataclass
class Accuracies(Trouble):
    """The validations give these accuracies, one after the other."""

    top1: Sequence[float]

    def install(self) -> None:
        evaluate_run, given = training.evaluate_run, iter(self.top1)

        def evaluate(run, model, loader, *args, **options):
            scores = evaluate_run(run, model, loader, *args, **options)
            summary = scores.summary

            def changed(*sizes):
                return summary(*sizes) | {"top1_acc": next(given)}

            scores.summary = changed
            return scores

        training.evaluate_run = evaluate


@dataclasses.dataclass
class AdviceAfter(Trouble):
    """Whether training waits for data is judged by so many steps."""

    steps: int

    def install(self) -> None:
        training.DataWait = functools.partial(training.DataWait, steps=self.steps)


@dataclasses.dataclass
class SlowReading(Trouble):
    """Each training video takes so long."""

    seconds: float

    def install(self) -> None:
        made = build.build_train_loader

        def build_train_loader(*args, **options):
            loader = made(*args, **options)
            loader.dataset.on_read = lambda index: time.sleep(self.seconds)
            return loader

        build.build_train_loader = build_train_loader
