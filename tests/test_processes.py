"""The forked processes of the tests: what they return, write and end with comes back, and none of them is left over."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import run_processes, values

from revvideo.distributed.env import current_process


def describe(suffix: str) -> tuple:
    process = current_process()
    print(f"out {suffix}")
    print(f"err {suffix}", file=sys.stderr)
    subprocess.run(["echo", f"child {suffix}"], check=True)
    return process.rank, process.world_size, os.environ.get("EXTRA"), os.getpid(), torch.ones(2) * process.rank


def end(ways: list[str]) -> str:
    way = ways[current_process().rank]
    if way == "raise":
        raise ValueError("no good")
    if way == "exit":
        raise SystemExit(75)
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "hang":
        print("hanging", flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    return way


def leave_child_behind() -> int:
    return subprocess.Popen(["sleep", "600"]).pid


def runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_each_process_has_its_rank_and_gives_back_what_it_returns(capfd):
    results = run_processes(3, describe, "mark", environ={"EXTRA": "more"})
    found = values(results)
    assert [(rank, world, extra) for rank, world, extra, _, _ in found] == [(rank, 3, "more") for rank in range(3)]
    assert len({pid for *_, pid, _ in found} | {os.getpid()}) == 4
    assert all(torch.equal(tensor, torch.full((2,), float(rank))) for rank, (*_, tensor) in enumerate(found))
    assert all(set(result.output.split("\n")) == {"out mark", "err mark", "child mark", ""} for result in results)
    assert capfd.readouterr() == ("", "")
    assert "RANK" not in os.environ


def test_the_ways_to_end():
    results = run_processes(4, end, ["raise", "exit", "kill", "return"])
    assert [result.exitcode for result in results] == [1, 75, -signal.SIGKILL, 0]
    assert [result.value for result in results] == [None, None, None, "return"]
    assert "ValueError: no good" in results[0].output
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 0 ended with 1.*no good"):
        values(results)


def test_one_that_hangs_is_killed_and_told():
    begun = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"(?s)killed after 1 s: ranks \[1\] of 2.*hanging"):
        run_processes(2, end, ["return", "hang"], timeout_seconds=1)
    assert time.monotonic() - begun < 5


def test_what_a_process_leaves_running_is_killed():
    (left,) = values(run_processes(1, leave_child_behind))
    deadline = time.monotonic() + 5
    while runs(left) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(left)
