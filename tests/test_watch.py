"""Rank 1 raises, is killed, hangs; rank 0 dies: every process is gone in time, and the cause is first in the log."""

import contextlib
import ctypes
import os
import re
import signal
import time

import pytest
import torch
from processes import Result, run_processes
from torch import nn

from revvideo.distributed.env import current_process
from revvideo.distributed.group import open_group
from revvideo.distributed.verdict import Beat, behind_verdict, silent_verdict
from revvideo.distributed.watch import Pace
from revvideo.exit_codes import run_guarded

MORE_SECONDS = 10.0  # that the processes may take beyond the timeout
# Waiting at the pace of a real run would take minutes; test_at_the_pace_of_a_real_run does it.
FAST = Pace(
    beat_seconds=0.25,
    look_seconds=0.05,
    grace_seconds=1.0,
    silent_seconds=1.25,
    settle_seconds=0.5,
    search_seconds=2.5,
    leave_seconds=0.5,
    guard_seconds=3.5,
)
FAST_MORE_SECONDS = 6.0
STEPS = 200
RANK_1 = r"rank 1 \(\S+, process \d+\)"


@contextlib.contextmanager
def opened(timeout_seconds: float, pace: Pace = FAST):
    device = torch.device("cpu")
    with open_group(current_process(), device, timeout_seconds=timeout_seconds, pace=pace) as group:
        yield group


def misbehave(what: str) -> None:
    if what == "raise":
        raise ValueError("no good\nat all")
    if what == "raise like a collective":
        raise RuntimeError("connection to the database lost")
    if what == "exit":
        raise SystemExit(3)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "hang":
        time.sleep(600)
    if what == "hang in native code":
        ctypes.CDLL(None).sleep(600)
    if what == "hang with the GIL":
        ctypes.PyDLL(None).sleep(600)


def train(what: str, who: int, where: str, timeout_seconds: float, pace: Pace) -> int:
    """A little training of ours in which one process misbehaves in step 3."""
    place = current_process()

    def work() -> None:
        with opened(timeout_seconds, pace) as group:
            replica = group.replicate(nn.Linear(4, 4), deterministic=True)
            for step in range(STEPS):
                if (step, group.rank, where) == (3, who, "before the forward"):
                    misbehave(what)
                out = replica(torch.ones(2, 4))
                if (step, group.rank, where) == (3, who, "before the backward"):
                    misbehave(what)
                out.sum().backward()
                if (step, group.rank, where) == (3, who, "before the end of the step"):
                    misbehave(what)
                group.any(False, f"step {step}")
                time.sleep(0.02)

    return run_guarded(work, prefix=f"[rank {place.rank}] ")


def misbehaving(
    what: str,
    *,
    who: int = 1,
    where: str = "before the forward",
    count: int = 2,
    timeout_seconds: float = 1.0,
    within_seconds: float | None = None,
    pace: Pace = FAST,
) -> tuple[list[Result], list[str]]:
    """The results and the lines of the common log, when all are gone in time (timeout and a bit more, if not given)."""
    if within_seconds is None:
        within_seconds = timeout_seconds + (FAST_MORE_SECONDS if pace == FAST else MORE_SECONDS)
    arguments = (what, who, where, timeout_seconds, pace)
    results = run_processes(count, train, *arguments, timeout_seconds=within_seconds, one_log=True)
    for result in results:
        assert result.exitcode != 0 or result.value not in (0, None), result  # an exit code that train has returned
    return results, results[0].output.splitlines()


def assert_told_by_others(results: list[Result], lines: list[str], pattern: str, *, who: int = 1) -> None:
    """The cause is in the first line; each of the other processes ended by itself with one line that tells it."""
    ours = [line for line in lines if line.startswith(("ERROR", "[rank ", "Timeout"))]  # torch, too, tells a lost store
    assert re.search(pattern, ours[0]), "\n".join(lines)
    for result in results:
        if result.rank != who:
            assert (result.exitcode, result.value) == (0, 1), "\n".join(lines)
            (told,) = [line for line in lines if line.startswith(f"[rank {result.rank}]")]
            assert re.search(pattern, told), told


def assert_raised(results: list[Result], lines: list[str]) -> None:
    assert_told_by_others(results, lines, f"{RANK_1} failed after 'step 2': ValueError: no good$")
    assert lines[0].startswith("ERROR ")
    assert results[1].value == 1
    assert "[rank 1] ValueError: no good" in lines


def assert_killed(results: list[Result], lines: list[str]) -> None:
    assert results[1].exitcode == -signal.SIGKILL
    assert_told_by_others(results, lines, f"{RANK_1} has not answered for \\d+ s: it was killed or its machine is lost")


def assert_hung(results: list[Result], lines: list[str]) -> None:
    pattern = f"{RANK_1} did not come to 'gradients after step 2' within \\d s; its last was 'step 2', \\d+ s ago"
    assert_told_by_others(results, lines, pattern)
    assert results[1].exitcode == 1
    text = "\n".join(lines)
    assert re.search(rf"ERROR {pattern}\nThis process has not ended by itself within \d s after that", text)
    assert re.search(r'File ".*test_watch.py", line \d+, in misbehave\n +(time.sleep|ctypes.CDLL)', text)


def test_rank_1_raises():
    assert_raised(*misbehaving("raise", count=3, timeout_seconds=30.0, within_seconds=FAST_MORE_SECONDS))


IN_A_STEP = pytest.param("before the backward", marks=pytest.mark.slow)


@pytest.mark.parametrize("where", ["before the forward", IN_A_STEP, "before the end of the step"])
def test_rank_1_is_killed(where):
    assert_killed(*misbehaving("kill", where=where, timeout_seconds=30.0, within_seconds=FAST_MORE_SECONDS))


@pytest.mark.parametrize("what", ["hang", "hang in native code"])
def test_rank_1_hangs(what):
    assert_hung(*misbehaving(what, count=3))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["raise", "kill", "hang"])
def test_at_the_pace_of_a_real_run(what):
    check = {"raise": assert_raised, "kill": assert_killed, "hang": assert_hung}[what]
    check(*misbehaving(what, count=3, timeout_seconds=2.0, pace=Pace()))


def test_an_error_that_only_looks_like_one_of_a_collective_is_its_own_cause():
    results, lines = misbehaving("raise like a collective", timeout_seconds=30.0, within_seconds=FAST_MORE_SECONDS)
    assert_told_by_others(results, lines, f"{RANK_1} .*RuntimeError: connection to the database lost$")


def test_an_exit_is_told():
    results, lines = misbehaving("exit", timeout_seconds=30.0, within_seconds=FAST_MORE_SECONDS)
    assert_told_by_others(results, lines, f"{RANK_1} failed after 'step 2': SystemExit: 3$")
    assert results[1].exitcode == 3


def test_rank_1_hangs_and_holds_the_gil():
    results, lines = misbehaving("hang with the GIL")
    assert_told_by_others(results, lines, f"{RANK_1} (has not answered|did not come)")
    assert results[1].exitcode == 1
    assert any(re.search(r"in misbehave", line) for line in lines), "no stack of the hanging process"


@pytest.mark.slow
def test_a_stopped_process_counts_as_dead():
    with pytest.raises(pytest.fail.Exception) as caught:
        misbehaving("stop", within_seconds=5.0)  # nothing in it runs: its launcher has to kill it
    assert "ranks [1] of 2 still ran" in str(caught.value)
    assert re.search(f"rank 0] revvideo: error: {RANK_1} (has not answered|did not come)", str(caught.value))


def test_rank_0_which_holds_the_store_is_killed():
    results, lines = misbehaving("kill", who=0, count=3, timeout_seconds=30.0, within_seconds=FAST_MORE_SECONDS)
    assert results[0].exitcode == -signal.SIGKILL
    assert_told_by_others(results, lines, r"rank 0 \(\S+, process \d+\) is gone, and with it the store", who=0)


def test_rank_0_which_holds_the_store_raises():
    results, lines = misbehaving("raise", who=0, count=3, timeout_seconds=30.0, within_seconds=FAST_MORE_SECONDS)
    assert_told_by_others(results, lines, r"rank 0 \(\S+, process \d+\) failed after 'step 2': ValueError", who=0)


def write_while_another_fails(seconds: float) -> str:
    """Rank 0 writes something that takes longer than the grace, while rank 1 fails."""
    written = "no"

    def work() -> None:
        nonlocal written
        with opened(30.0) as group:
            group.barrier("start")
            if group.rank == 1:
                misbehave("raise")
            with group.uninterrupted():
                time.sleep(seconds)
                written = "yes"
            group.barrier("end")

    return f"{run_guarded(work)} {written}"


def test_what_is_being_written_is_finished():
    first, second = run_processes(2, write_while_another_fails, 2.5)
    assert (first.value, second.value) == ("1 yes", "1 no")
    assert "ValueError: no good" in first.output


def late_failure() -> int:
    def work() -> None:
        with opened(30.0) as group:
            group.barrier("last")
            if group.rank == 1:
                time.sleep(0.5)
                misbehave("raise")

    return run_guarded(work)


def test_a_failure_after_the_last_collective_fails_all():
    results = run_processes(2, late_failure)
    assert [result.value for result in results] == [1, 1]
    assert all("ValueError: no good" in result.output for result in results)


NAMES = [f"rank {rank} (host, process {rank})" for rank in range(8)]


def test_a_verdict_names_who_is_behind():
    assert behind_verdict(NAMES, "step 12", {}, 20) is None
    verdict = behind_verdict(NAMES, "step 12", {1: Beat(number=4, what="step 11", seconds=23.4)}, 20)
    assert verdict == (
        "rank 1 (host, process 1) did not come to 'step 12' within 20 s; its last was 'step 11', 23 s ago"
    )
    ended = behind_verdict(NAMES, "step 12", {3: Beat(number=4, what="step 11", done=True)}, 20)
    assert ended == "rank 3 (host, process 3) has ended after 'step 11'"


def test_a_verdict_on_many_stays_short():
    silent = {rank: (Beat(what="step 11"), 4.4) for rank in (7, 1, 2, 3, 5, 6)}
    verdict = silent_verdict(NAMES, silent)
    assert verdict.startswith("rank 1 (host, process 1) has not answered for 4 s: it was killed")
    assert verdict.endswith("So with 2 more")
    assert "rank 6" not in verdict
    assert silent_verdict(NAMES, {}) is None


def test_a_beat_survives_its_way_through_the_store():
    beat = Beat(3, 12, "scores of ‘it’", 1.5, True)
    assert Beat.from_json(beat.to_json().encode()) == beat
