"""The same commands without Slurm: a job in the background of this machine, and one in the client's own process."""

import os

import pytest
import tiny
from launched import path_without_slurm, wait_until
from user_commands import QUICK, about, check_refused, command, results, status, submit, submit_words

from revvideo.launch.attempts import read_attempts

TWO_TASKS = ("--cluster", "local", "--tasks-per-node", 2)


@pytest.fixture
def environ(tmp_path) -> dict[str, str]:
    """The environment of a machine without Slurm."""
    return os.environ | {"PATH": path_without_slurm(tmp_path / "bin")}


def test_a_local_job_of_two_processes(data, tmp_path, environ):
    folder = tmp_path / "run"
    submission = submit(data, folder, *QUICK, *TWO_TASKS, env=environ)
    followed = about("logs", folder, "--follow", "--lines", 0, env=environ)
    assert followed == submission.log_file(submission.jobs[0], 0).read_text()
    assert "evaluating" in followed
    (member,) = status(folder, environ)
    assert (member["state"]["state"], member["state"]["exit_code"], member["failure"]) == ("COMPLETED", 0, "")
    assert member["progress"]["test"]["top1_acc"] == results(folder)["top1_acc"]
    (start,) = read_attempts(submission.folder, submission.jobs)
    assert [(rank.rank, rank.code) for rank in start.ranks] == [(0, 0), (1, 0)]
    assert "nothing to cancel" in about("cancel", folder, env=environ)


def test_a_local_job_is_cancelled(data, tmp_path, environ):
    folder, events = tmp_path / "run", tmp_path / "run/events.jsonl"
    keys = {"SOLVER.MAX_EPOCH": 1000, "TRAIN.CHECKPOINT_PERIOD": 1}
    (job,) = submit(data, folder, *QUICK, *TWO_TASKS, env=environ, keys=keys).jobs
    wait_until(lambda: events.exists() and tiny.events(folder, "checkpoint"), 120)
    assert status(folder, environ)[0]["state"]["state"] == "RUNNING"
    again = command(*submit_words(data, folder, *QUICK, *TWO_TASKS), env=environ)
    check_refused(again, f"was submitted already and its job lives: {job} (RUNNING)")
    assert about("cancel", folder, env=environ).startswith(f"cancelled job {job}, which was RUNNING")
    assert status(folder, environ)[0]["state"]["state"] == "CANCELLED"


def test_in_the_clients_own_process(data, tmp_path, environ):
    folder = tmp_path / "run"
    said = tiny.done(command(*submit_words(data, folder, *QUICK, "--cluster", "debug"), env=environ))
    assert said.out.endswith(f"done in this process: {folder}\n")
    assert (folder / "results.json").exists()
    (member,) = status(folder, environ)
    assert (member["state"]["state"], member["restarts"]) == ("COMPLETED", 0)
