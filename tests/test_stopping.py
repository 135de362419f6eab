"""Signals that stop a run: all processes save the same step and exit with 75; the same command goes on from there."""

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
import tiny
import torch
from forked import run_forked
from processes import run_processes
from troubles import AtStep, AtView, Send, run, told

from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.engine.events import last_per_step, read_events
from revvideo.engine.stopping import StopSignals

NUM_EPOCHS, STEPS_AN_EPOCH = 3, tiny.NUM_TRAIN // 4
NUM_STEPS = NUM_EPOCHS * STEPS_AN_EPOCH
# Views go through the model one by one: 6 in a validation, 12 in the test.
KEYS = tiny.RANDOM | {"SOLVER.MAX_EPOCH": NUM_EPOCHS, "TEST.BATCH_SIZE": 1, "DIST.TIMEOUT_SECONDS": 20}
WORKERS = {"DATA_LOADER.NUM_WORKERS": 2}
TERM, USR1, USR2 = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2


def start(data, folder, *troubles, keys=(), count=1) -> list:
    return run_processes(count, run, data, folder, (KEYS, *keys), troubles, timeout_seconds=60)


def codes(results: list) -> list[int]:
    return [result.exitcode for result in results]


def check_stopped(results: list, folder, reason: str, step: int) -> None:
    """All processes have stopped after so many steps, with the checkpoint of that step before anybody was told."""
    assert codes(results) == [75] * len(results), results[0].output
    stop = tiny.events(folder, "stop")[-1]
    assert (stop["reason"], stop.get("step", NUM_STEPS)) == (reason, step)
    path = latest_checkpoint(folder / "checkpoints")
    assert torch.load(path, weights_only=True)["position"]["step"] == step
    found = told(folder)
    assert sorted(found) == list(range(len(results)))
    assert all(path.name in names for names in found.values())
    for result in results:
        assert f"stopped by {reason}" in result.output.splitlines()[-1]
        assert "Traceback" not in result.output


def check_equal(folder, straight) -> None:
    """Losses, validations, results, predictions and weights are those of the uninterrupted run."""
    for kind, fields in (("train_step", ["loss", "lr"]), ("validation", ["top1_acc", "num_videos"])):
        got, want = (
            [[event["step"], *(event[name] for name in fields)] for event in last(each, kind)]
            for each in (folder, straight)
        )
        assert got == want
    assert len(tiny.losses(folder)) == NUM_STEPS
    results = [json.loads((each / "results.json").read_text()) for each in (folder, straight)]
    for each in results:
        del each["checkpoint"], each["wall_seconds"]
    assert results[0] == results[1]
    got, want = (np.load(each / "predictions.npz")["scores"] for each in (folder, straight))
    assert np.array_equal(got, want)
    got, want = (
        torch.load(latest_checkpoint(each / "checkpoints"), weights_only=True)["model_state"]
        for each in (folder, straight)
    )
    assert all(torch.equal(got[name], want[name]) for name in want)


def last(folder, kind: str) -> list[dict]:
    return [event for event in last_per_step(read_events(folder / "events.jsonl")) if event["kind"] == kind]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """number of processes -> folder of a run without any signal."""
    folders = {count: tmp_path_factory.mktemp("straight") / str(count) for count in (1, 2)}
    for count, folder in folders.items():
        assert codes(start(data, folder, count=count)) == [0] * count
        assert len(last(folder, "validation")) == NUM_EPOCHS
    return folders


# While it trains


@pytest.mark.parametrize("number", [TERM, USR1, USR2, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_stops_the_run_and_not_its_workers(data, tmp_path, number):
    stop = AtStep(1, 0, Send(number, to_group=True))
    check_stopped(start(data, tmp_path, stop, keys=(WORKERS,)), tmp_path, number.name, STEPS_AN_EPOCH + 1)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_process_stops_both_after_the_same_step(data, straight, tmp_path, rank):
    stop = AtStep(1, 1, Send(USR2), rank=rank)  # the last step of an epoch: its validation is still to come
    results = start(data, tmp_path, stop, count=2)
    check_stopped(results, tmp_path, "SIGUSR2", 2 * STEPS_AN_EPOCH)
    assert len(tiny.events(tmp_path, "validation")) == 1
    assert codes(start(data, tmp_path, count=2)) == [0, 0]
    check_equal(tmp_path, straight[2])


@pytest.mark.parametrize(("first", "second"), [(TERM, TERM), (USR1, USR2)])
def test_a_second_signal_ends_at_once(data, tmp_path, first, second):
    """More than a second after the first one; no checkpoint is written."""
    ends = AtStep(1, 0, SendBoth(first, second))
    (result,) = start(data, tmp_path, ends)
    assert result.exitcode == -second, result.output
    assert not tiny.events(tmp_path, "stop")
    assert len(tiny.events(tmp_path, "checkpoint")) == 1  # that of the epoch before
    assert not told(tmp_path)


class SendBoth:
    """Two signals; what comes after the second one must never be reached."""

    def __init__(self, first: signal.Signals, second: signal.Signals):
        self.first, self.second = first, second

    def __call__(self) -> None:
        os.kill(os.getpid(), self.first)
        time.sleep(1.2)
        os.kill(os.getpid(), self.second)
        raise AssertionError("the second signal has not ended this process")


def test_a_second_signal_ends_a_process_in_c_code():
    """As in a collective: no handler of Python's runs before it comes back."""

    def work():
        with StopSignals():
            send_later(0.2, 1.2)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # without Python's lock, a minute

    begun = time.monotonic()
    assert run_forked(work) == 128 + TERM
    assert time.monotonic() - begun < 10


def send_later(*pauses_seconds: float) -> None:
    """A child sends this process SIGTERM after each pause."""
    parent = os.getpid()
    if os.fork() == 0:
        for seconds in pauses_seconds:
            time.sleep(seconds)
            os.kill(parent, TERM)
        os._exit(0)


def test_handlers_and_threads_are_as_before():
    for body in ((), (KeyError,)):
        before = [signal.getsignal(number) for number in (TERM, USR1, USR2)]
        threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
        with contextlib.suppress(KeyError), StopSignals() as stop:
            os.kill(os.getpid(), USR1)
            os.kill(os.getpid(), TERM)
            assert stop.reason == "SIGUSR1"
            for error in body:
                raise error
        assert [signal.getsignal(number) for number in (TERM, USR1, USR2)] == before
        assert threading.active_count() == threads
        assert len(os.listdir("/dev/fd")) == descriptors
        assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_a_launcher_holds_back_comes_when_somebody_listens():
    """As `env --block-signal=USR2` does; afterwards it is held back again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {USR2})
    try:
        signal.pthread_kill(threading.main_thread().ident, USR2)  # pytest-xdist's own threads do not hold it back
        with StopSignals((USR2,)) as stop:
            assert stop.reason == "SIGUSR2"
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {USR2}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_second_signal_of_a_scheduler_means_nothing():
    def work():
        with StopSignals((TERM,), end_at_second=False) as stop:
            send_later(0.1, 1.2)
            deadline = time.monotonic() + 2.5
            while time.monotonic() < deadline:
                time.sleep(0.1)
            assert stop.reason == "SIGTERM"

    assert run_forked(work) == 0


@pytest.mark.slow
def test_a_second_signal_ends_a_process_that_waits_for_another_one(data, tmp_path):
    """The other one then sees that it is gone."""
    waits, sleeps = AtStep(1, 0, partial(send_later, 1.0, 1.2)), AtStep(1, 0, partial(time.sleep, 20.0), rank=1)
    first, second = start(data, tmp_path, waits, sleeps, count=2)
    assert first.exitcode in (-TERM, 128 + TERM), first.output
    assert first.seconds < 15
    assert second.exitcode == 1
    assert not tiny.events(tmp_path, "stop")


def test_the_same_signal_from_two_senders_is_one(data, tmp_path):
    """Slurm signals all processes of a job, and a launcher passes the signal on to those that it has started."""
    stop = AtStep(0, 0, Send(TERM, times=3, pause_seconds=0.2))
    check_stopped(start(data, tmp_path, stop), tmp_path, "SIGTERM", 1)


# While it evaluates


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_during_a_validation(data, straight, tmp_path, count):
    """The next start makes the validation from its beginning; no step is made again."""
    stop = AtView("validate", 1, Send(TERM), rank=count - 1, seconds=0.05)
    results = start(data, tmp_path, stop, count=count)
    check_stopped(results, tmp_path, "SIGTERM", STEPS_AN_EPOCH)
    assert not tiny.events(tmp_path, "validation")
    assert views_seen(results[-1]) == 1

    assert codes(start(data, tmp_path, count=count)) == [0] * count
    assert [event["step"] for event in tiny.events(tmp_path, "train_step")] == list(range(NUM_STEPS))
    assert len(tiny.events(tmp_path, "validation")) == NUM_EPOCHS
    check_equal(tmp_path, straight[count])


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stop_during_the_test(data, straight, tmp_path, count):
    """Each process ends within two videos or a few seconds; the next start does the others and trains nothing."""
    seconds = {1: 0.05, 2: 1.0}[count]  # of a view; the other process learns it within a second or two
    stop = AtView("test", 2, Send(USR1), rank=count - 1, seconds=seconds)
    results = start(data, tmp_path, stop, count=count)
    check_stopped(results, tmp_path, "SIGUSR1", NUM_STEPS)
    assert not (tmp_path / "results.json").exists()
    assert views_seen(results[-1]) == 2
    assert views_seen(results[0]) < 2 * tiny.NUM_TEST // count

    seen = sum(map(views_seen, results))
    results = start(data, tmp_path, AtView("test", 0, Send(USR1)), count=count)
    assert codes(results) == [0] * count
    assert seen + sum(map(views_seen, results)) == 2 * tiny.NUM_TEST  # whole videos, none twice
    assert [event["step"] for event in tiny.events(tmp_path, "train_step")] == list(range(NUM_STEPS))
    check_equal(tmp_path, straight[count])


def views_seen(result) -> int:
    """Views that went through the model of a process in the evaluation that `AtView` watches."""
    return result.output.count("looks at views")
