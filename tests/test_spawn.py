"""Processes that one process starts: they know their place, end with it, and their end becomes its exit code."""

import json
import logging
import os
import signal
import time

import pytest
import spawned

from revvideo.distributed.env import current_process, environment_of, machine_processes
from revvideo.distributed.spawn import spawn


def places(count: int):
    return machine_processes(num_processes=count, num_machines=1, machine=0, init_method="")


def write_place(folder: str) -> int:
    found = {
        "place": environment_of(current_process()),
        "threads": os.environ["OMP_NUM_THREADS"],
        "group": os.getpgrp(),
    }
    with open(os.path.join(folder, os.environ["RANK"]), "w") as file:
        json.dump(found | {"pid": os.getpid()}, file)
    return 0


@pytest.mark.parametrize("threads", [None, "7"])
def test_every_child_knows_its_place_and_its_share_of_the_cores(tmp_path, monkeypatch, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr("revvideo.distributed.spawn._num_cores", lambda: 7)
    processes = places(2)
    before = dict(os.environ)
    assert spawn(write_place, (str(tmp_path),), processes) == 0
    assert dict(os.environ) == before
    for process in processes:
        found = json.loads((tmp_path / str(process.rank)).read_text())
        assert found["place"] == environment_of(process)
        assert found["threads"] == (threads or "3")
        assert found["group"] == found["pid"]


def test_the_environment_is_there_before_the_work_is_imported(tmp_path, monkeypatch):
    """torch reads OMP_NUM_THREADS when it is loaded."""
    module = tmp_path / "reads_at_import.py"
    module.write_text("import os\nFOUND = [os.environ.get('RANK'), os.environ.get('OMP_NUM_THREADS')]\n"
                      "def work():\n    return 0 if FOUND == ['0', '5'] else 9\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("revvideo.distributed.spawn._num_cores", lambda: 5)
    import reads_at_import

    assert spawn(reads_at_import.work, (), places(1)) == 0


KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("codes", "exit_code", "said"),
    [
        ([0, 0], 0, []),
        ([75, 75], 75, []),
        ([0, 75], 75, []),
        ([0, 2], 2, []),  # wrong input: the child has said what
        ([2, 2], 2, []),
        ([3, 0], 3, []),
        ([0, 1], 1, ["rank 1 ended with exit code 1"]),
        ([75, 1], 1, ["rank 1 ended with exit code 1"]),
        ([75, KILLED], 1, ["rank 1 was killed by SIGKILL"]),
    ],
)
def test_the_exit_code_of_all(codes, exit_code, said, caplog):
    caplog.set_level(logging.INFO)
    assert spawn(spawned.end_with, (json.dumps(codes),), places(2)) == exit_code
    assert sorted(record.message for record in caplog.records) == said


def test_a_failure_is_told_at_once_and_the_others_get_their_time(caplog):
    began = time.monotonic()
    told_at = []

    class Clock(logging.Handler):
        def emit(self, record):
            told_at.append((record.getMessage(), time.monotonic() - began))

    logging.getLogger("revvideo.distributed.spawn").addHandler(clock := Clock())
    try:
        assert spawn(spawned.end_with, (json.dumps([None, KILLED]),), places(2), grace_seconds=1.5) == 1
    finally:
        logging.getLogger("revvideo.distributed.spawn").removeHandler(clock)
    (first, first_at), (second, second_at) = told_at
    assert first == "rank 1 was killed by SIGKILL"
    assert second == "not ended within 1.5 s after that, killed: rank 0"
    assert 1.4 < second_at - first_at < 5
    assert time.monotonic() - began < 20


def test_the_code_that_says_why_wins():
    """Rank 1 has ended first, with 1, because rank 0 was about to end with 3."""
    assert spawn(spawned.fail_after_another, ("",), places(2)) == 3


def test_work_that_raises_is_a_crash(capfd):
    assert spawn(spawned.end_with, ("no json",), places(1)) == 1
    assert "JSONDecodeError" in capfd.readouterr().err


def test_arguments_that_cannot_be_sent_start_nothing(monkeypatch):
    with pytest.raises(Exception, match="pickle"):
        spawn(spawned.end_with, (lambda: 0,), places(2))
    assert "RANK" not in os.environ


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_passed_on_once(tmp_path, name):
    """To the whole group, as `timeout` sends it: the children are not in it."""
    parent = spawned.start_parent(tmp_path, "wait_for_signals", str(tmp_path), "75")
    spawned.ready_pids(tmp_path)
    os.killpg(parent.pid, signal.Signals[name])
    assert parent.wait(20) == 75, parent.stderr.read()
    assert [json.loads((tmp_path / f"seen{rank}").read_text()) for rank in range(2)] == [[name]] * 2


def test_ctrl_c_lets_the_children_write_a_checkpoint(tmp_path):
    parent = spawned.start_parent(tmp_path, "wait_for_signals", str(tmp_path), "75")
    for pid in [parent.pid, *spawned.ready_pids(tmp_path)]:
        os.kill(pid, signal.SIGINT)  # to the children too: they ignore it
    assert parent.wait(20) == 75
    assert "interrupted: the processes are told to stop" in parent.stderr.read()
    assert json.loads((tmp_path / "seen0").read_text()) == ["SIGTERM"]


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_second_signal_kills(tmp_path, name, exit_code):
    parent = spawned.start_parent(tmp_path, "ignore_signals", str(tmp_path))
    pids = spawned.ready_pids(tmp_path)
    parent.send_signal(signal.Signals[name])
    time.sleep(0.5)
    parent.send_signal(signal.Signals[name])  # the same one once more, as `timeout` sends it
    time.sleep(0.8)
    assert parent.poll() is None
    parent.send_signal(signal.Signals[name])
    assert parent.wait(5) == exit_code
    assert f"second signal, {name}: all processes are killed" in parent.stderr.read()
    assert not any(map(spawned.is_running, pids))


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_the_children_start_is_no_crash(tmp_path, name, exit_code):
    parent = spawned.start_parent(tmp_path, "get_ready", str(tmp_path))
    spawned.ready_pids(tmp_path)
    parent.send_signal(signal.Signals[name])
    assert parent.wait(20) == exit_code
    assert parent.stderr.read().count("was ended by SIGTERM, without a checkpoint") == 2


def test_children_end_with_their_parent(tmp_path):
    parent = spawned.start_parent(tmp_path, "ignore_signals", str(tmp_path))
    pids = spawned.ready_pids(tmp_path)
    assert all(map(spawned.is_running, pids))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(spawned.is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert parent.stderr.read().count("the process that started this one is gone") == 2


def test_the_handlers_are_back_afterwards():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    assert spawn(spawned.end_with, ("[0]",), places(1)) == 0
    assert [signal.getsignal(number) for number in numbers] == before
