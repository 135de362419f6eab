"""Runs of the tiny config in one or more processes, as `run_net` makes them, with something happening on the way.

Top-level functions, so that they can be the work of `processes.run_processes`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import tiny
import torch._inductor  # noqa: F401 - the first training imports it, for 2 s: once here instead of in every fork
from videos import write_video

from revvideo import jobs
from revvideo.config import load_config
from revvideo.exit_codes import run_guarded
from revvideo.jobs import running

NUM_VIDEOS = 24  # divides by 4 and 6: the batch of 2 and of 3 processes with mixup
# Sixty steps of 4 clips: 6 an epoch. No validation, no evaluation.
SIXTY_STEPS = tiny.RANDOM | tiny.TRAIN_ONLY | {"SOLVER.MAX_EPOCH": 10, "TRAIN.CHECKPOINT_PERIOD": 1000}


def write_training_set(root: Path, num_videos: int = NUM_VIDEOS) -> Path:
    """A list of training videos of 32 x 48 pixels."""
    rows = []
    for number in range(num_videos):
        write_video(root / f"{number}.mp4", 16 + number % 5, size=(tiny.HEIGHT, tiny.WIDTH), seed=number)
        rows.append((f"{number}.mp4", number % tiny.NUM_CLASSES))
    tiny.write_list(root / "train.csv", rows)
    return root


def config(data: Path, folder: Path, *layers: dict):
    """The tiny config on `data` in the run folder `folder`, on the CPU."""
    own = {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder, "NUM_GPUS": 0, "LOG_PERIOD": 100}
    return load_config("demo/REV_MVIT_DEMO", tiny.overrides(own, *layers))


def run(data: Path, folder: Path, layers: tuple[dict, ...] = (), during: Callable[[dict], None] | None = None) -> None:
    """Train and evaluate, and exit as `run_net` does; `during` sees each event that the main process writes."""
    if during is not None:
        opened = running.open_run

        def open_run(*args, **kwargs):
            events = opened(*args, **kwargs)
            events.listeners = [*events.listeners, during]
            return events

        running.open_run = open_run  # in this forked process only
    sys.exit(run_guarded(lambda: jobs.run(config(data, folder, *layers))))


class SignalAt:
    """At the first `kind` event with `step` at least `step`, this process sends itself a signal."""

    def __init__(self, step: int, number: signal.Signals, kind: str = "train_step"):
        self.step, self.number, self.kind = step, number, kind

    def __call__(self, event: dict) -> None:
        if event["kind"] == self.kind and event["step"] >= self.step:
            self.step = sys.maxsize
            os.kill(os.getpid(), self.number)
