"""A training that is submitted by slurm/submit.py to a local cluster, for tests that interrupt it on its way."""

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import run_config
import tiny
import torch
from slurm_cluster import ENDED, TestCluster

from revvideo.cli.main import main
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.launch.attempts import Attempt, read_attempts
from revvideo.launch.submission import Submission, latest_submission

REPOSITORY = Path(__file__).parents[1]
FAULTS = Path(__file__).parent / "faults"
NODES, TASKS = 2, 2
EPOCHS, STEPS = 6, 18  # 24 videos, 8 a step
MIDDLE = 4  # the second step of the second epoch
RUN = tiny.RANDOM | {"NUM_GPUS": 0, "LOG_PERIOD": 1, "DIST.TIMEOUT_SECONDS": 90, "SOLVER.MAX_EPOCH": EPOCHS}
RUN |= {"TRAIN.EVAL_PERIOD": EPOCHS, "TRAIN.CHECKPOINT_PERIOD": EPOCHS, "RUN.CHECKPOINT_MINUTES": 0.01}
RUN |= {"RUN.DETERMINISTIC": True}
ONE_MACHINE = {"TRAIN.BATCH_SIZE": NODES * tiny.TINY["TRAIN.BATCH_SIZE"]}  # as the nodes have it together
SLOW = 0.15  # seconds that each of the two videos of a step and process takes: time for an event to hit the middle
PATIENCE = 300  # seconds for anything to happen on a busy machine


def write_data(root: Path) -> Path:
    tiny.write_dataset(root)
    return run_config.write_training_set(root)


@dataclass
class InterruptedJob:
    """A submitted run, and what happens to it.

    Attributes:
        cluster: where.
        data, folder: the lists, and the run folder.
        faults: what tests/faults/sitecustomize.py reads.
        event_time: unix seconds of the last event.
    """

    cluster: TestCluster
    data: Path
    folder: Path
    faults: Path
    event_time: float = 0.0

    def submit(self, *options: str, keys: dict | None = None, slow: float = SLOW) -> None:
        """By slurm/submit.py, in a process of its own."""
        self.faults.mkdir(exist_ok=True)
        (self.faults / "slow").write_text(str(slow))
        own = {"DATA.PATH_TO_DATA_DIR": self.data, "OUTPUT_DIR": self.folder}
        words = [sys.executable, REPOSITORY / "slurm/submit.py", "--cfg", "demo/REV_MVIT_DEMO", "--no-check"]
        words += ["--nodes", NODES, "--gpus-per-node", 0, "--tasks-per-node", TASKS, "--mem", "2G", "--time", 10]
        words += ["--env", f"PYTHONPATH={FAULTS}", "--env", f"FAULTS={self.faults}", "--backoff-seconds", 1]
        self.cluster.run(*words, *options, *tiny.overrides(own, RUN, keys or {}), cwd=self.faults)

    # What it is

    @property
    def submission(self) -> Submission:
        return latest_submission(self.folder)

    @property
    def job(self) -> str:
        return self.submission.jobs[0]

    @property
    def state(self) -> str:
        return self.cluster.jobs()[self.job]["JobState"]

    @property
    def starts(self) -> list[Attempt]:
        return read_attempts(self.submission.folder, self.submission.jobs)

    def events(self, kind: str) -> list[dict]:
        return tiny.events(self.folder, kind) if (self.folder / "events.jsonl").exists() else []

    def steps_since(self, moment: float) -> list[dict]:
        return [event for event in self.events("train_step") if event["time"] >= moment]

    def command(self, name: str, *options: str) -> str:
        """What `revvideo NAME RUN` prints."""
        out = io.StringIO()
        with mock.patch.dict(os.environ, self.cluster.variables()), contextlib.redirect_stdout(out):
            assert main([name, str(self.folder), *options]) == 0
        return out.getvalue()

    def status(self) -> dict:
        """Of its only member."""
        return json.loads(self.command("status", "--json"))["members"][0]

    @property
    def reasons(self) -> list[str]:
        """How its starts have ended, as `revvideo status` says it."""
        return [start["reason"] for start in self.status()["starts"]]

    # What happens to it

    def wait(self, what: str, is_so: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Until something is so; fails the test if the job ends before, or it never is."""
        deadline = time.monotonic() + seconds
        while not is_so():
            state = self.state
            if (state in ENDED or time.monotonic() > deadline) and not is_so():
                log = self.cluster.log_of(self.cluster.jobs()[self.job])
                pytest.fail(f"no {what}, but job {self.job} is {state}:\n{log}")
            time.sleep(0.1)

    def wait_for_steps(self, count: int = MIDDLE, since: float = 0.0) -> None:
        """Until so many steps were made after the moment `since`."""
        self.wait(f"step {count}", lambda: len(self.steps_since(since)) >= count)

    @contextlib.contextmanager
    def event(self) -> Iterator[None]:
        """What is done inside happens in the middle of training, now."""
        self.event_time = time.time()
        yield
        assert len(self.events("train_step")) < STEPS, "the event has come too late"

    def signal_rank(self, rank: int, number: signal.Signals) -> None:
        (record,) = (record for record in self.starts[-1].ranks if record.rank == rank)
        os.kill(record.pid, number)

    def raise_in(self, rank: int) -> Path:
        fault = self.faults / f"raise.{rank}"
        fault.touch()
        return fault

    def hurry(self) -> None:
        """Its file system is fast again."""
        (self.faults / "slow").unlink(missing_ok=True)

    def comes_back(self) -> tuple[float, float]:
        """Seconds from the event until all ranks run again, and until they train again."""
        count = len([start for start in self.starts if start.began < self.event_time])
        self.wait(
            "start of all ranks",
            lambda: len(self.starts) > count and len(self.starts[count].ranks) == NODES * TASKS,
        )
        self.hurry()
        began = max(record.began for record in self.starts[count].ranks)
        self.wait_for_steps(1, since=began)
        return began - self.event_time, self.steps_since(began)[0]["time"] - self.event_time

    def finishes(self) -> dict[str, str]:
        self.hurry()
        return self.cluster.wait_for(self.job, "COMPLETED", timeout_seconds=PATIENCE)

    def leaves_nothing(self) -> None:
        self.cluster.wait_until("end of its processes", lambda: self.cluster.step_processes() == [], 30)


def training_of(folder: Path) -> tuple[list[float], dict[str, torch.Tensor], dict]:
    """What a run has come to: losses of all steps, last weights, results of the evaluation."""
    checkpoint = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)
    results = json.loads((folder / "results.json").read_text())
    results = {name: value for name, value in results.items() if name not in ("checkpoint", "wall_seconds")}
    return tiny.losses(folder), checkpoint["model_state"], results


def assert_same_training(folder: Path, other: Path) -> None:
    """Bit for bit."""
    (losses, weights, results), (their_losses, their_weights, their_results) = map(training_of, (folder, other))
    assert len(losses) == STEPS
    assert losses == their_losses
    assert weights.keys() == their_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], their_weights[name])] == []
    assert results == their_results
