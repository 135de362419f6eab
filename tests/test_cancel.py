"""`revvideo cancel`, and jobs on this machine without Slurm."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import submitit
import tiny
from submissions import make_submission, write_attempt, write_done

from revvideo.launch import local_jobs
from revvideo.launch.job_state import JobState
from revvideo.launch.local_jobs import local_processes, local_state
from revvideo.launch.submission import latest_submission

POINTS = ({"SOLVER.BASE_LR": "1"}, {"SOLVER.BASE_LR": "2"}, {"SOLVER.BASE_LR": "3"})
CHAIN = (
    ("1", "COMPLETED", "0", "0", "1795279879", "None", "127.0.0.1"),
    ("4", "RUNNING", "0", "0", "1795279872", "None", "127.0.0.[1-2]"),
    ("6", "PENDING", "0", "0", "N/A", "Dependency", ""),
    ("7", "PENDING", "0", "0", "N/A", "Dependency", ""),
)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def cancel(*words) -> list[str]:
    return tiny.done(tiny.command("cancel", *words)).out.splitlines()


def test_of_a_chain_what_waits_is_cancelled_before_what_runs(fake, run):
    make_submission(run, "1", "4", "6", "7")
    fake.know(*CHAIN)
    assert cancel(run) == [
        "cancelled job 4, which was RUNNING on 127.0.0.[1-2]",
        "cancelled job 6, which was PENDING (Dependency)",
        "cancelled job 7, which was PENDING (Dependency)",
    ]
    assert fake.calls == ["scancel 6 7", "scancel 4"]


def test_only_living_points_of_a_sweep_are_cancelled(fake, run):
    make_submission(run, "3", points=POINTS)
    assert cancel(run) == [
        "cancelled job 3_1, which was RUNNING on 127.0.0.1",
        "cancelled job 3_2, which was PENDING (JobArrayTaskLimit)",
    ]
    assert fake.calls == ["scancel 3_2", "scancel 3_1"]


def test_one_point_of_a_sweep(fake, run):
    make_submission(run, "3", points=POINTS)
    assert cancel(run, "--point", 1) == ["cancelled job 3_1, which was RUNNING on 127.0.0.1"]
    assert cancel(run / "point2") == ["cancelled job 3_2, which was PENDING (JobArrayTaskLimit)"]
    assert fake.calls == ["scancel 3_1", "scancel 3_2"]


def test_nothing_alive_is_said(fake, run):
    make_submission(run, "1", "99")
    assert cancel(run) == ["nothing to cancel: job 1 is COMPLETED", "nothing to cancel: job 99 is not known any more"]
    assert not any("scancel" in call for call in fake.calls)


def test_without_slurm_nothing_is_said_to_be_cancelled(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    make_submission(run, "4")
    outcome = tiny.command("cancel", run)
    assert (outcome.code, outcome.out, "no Slurm here" in outcome.err) == (2, "", True)


def test_a_job_of_this_machine_lives_and_is_cancelled_with_its_ranks(run):
    folder = make_submission(run, cluster="local", nodes=1).jobs_folder
    executor = submitit.LocalExecutor(folder)
    executor.update_parameters(tasks_per_node=2, timeout_min=5, stderr_to_stdout=True)
    started = executor.submit(time.sleep, 120)
    submission = dataclasses.replace(latest_submission(run), jobs=(started.job_id,))
    submission.save()
    other = make_submission(run.parent, started.job_id, cluster="local", nodes=1)
    pids = wait_for_processes(submission, started.job_id, 3)
    assert pids[0] == int(started.job_id)
    assert local_state(submission, started.job_id).state == "RUNNING"
    assert local_processes(other, started.job_id) == []  # the same id, but of another submission
    assert cancel(run)[0].startswith(f"cancelled job {started.job_id}, which was RUNNING on ")
    started._process.wait(10)
    assert local_processes(submission, started.job_id) == []
    assert cancel(run) == [f"nothing to cancel: job {started.job_id} is FAILED"]


def test_ranks_that_have_lost_their_controller_are_cancelled(run):
    submission = make_submission(run, "1", cluster="local")
    words = ["-c", "import time; time.sleep(120)", local_jobs.TASK, str(submission.jobs_folder)]
    with subprocess.Popen([sys.executable, *words]) as orphan:
        wait_for_processes(submission, "1", 1)
        assert local_state(submission, "1").state == "RUNNING"
        cancel(run)
        assert orphan.wait(10) == -signal.SIGKILL


def wait_for_processes(submission, job: str, count: int) -> list[int]:
    deadline = time.monotonic() + 30
    while len(pids := local_processes(submission, job)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return pids


@pytest.mark.parametrize(
    ("ends", "state", "code"),
    [
        (((0,), (0,)), "COMPLETED", 0),
        (((1, "boom"), (1, "rank 0 failed", True)), "FAILED", 1),
        (((2, "wrong"), (2, "wrong")), "FAILED", 2),
        (((75,), (75,)), "CANCELLED", 75),
        ((None, None), "CANCELLED", None),
        ((None, (0,)), "CANCELLED", None),
    ],
)
def test_the_end_of_a_local_job_is_what_its_ranks_have_written(run, ends, state, code):
    submission = make_submission(run, "1", cluster="local")
    write_attempt(submission, "1", 0, *ends)
    found = local_state(submission, "1")
    assert (found.state, found.exit_code, found.start_time > 1e9) == (state, code, True)


def test_a_local_job_of_another_machine_is_unknown_here(run, monkeypatch):
    submission = make_submission(run, "1", cluster="local")
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    write_attempt(submission, "1", 0, None)
    monkeypatch.undo()
    assert local_state(submission, "1").reason == "it was started on elsewhere: ask there"
    assert cancel(run) == ["nothing to cancel: job 1 is not known any more (it was started on elsewhere: ask there)"]
    assert "UNKNOWN: it was started on elsewhere: ask there" in tiny.command("status", run).out


def test_a_debug_job_is_this_process_until_it_has_ended(run):
    submission = make_submission(run, job := f"debug-{os.getpid()}", cluster="debug")
    write_attempt(submission, job, 0, None)
    assert local_state(submission, job).state == "RUNNING"
    assert cancel(run) == [f"process {os.getpid()} runs in the terminal it was started from: press Ctrl-C there"]
    write_attempt(submission, job, 0, (0,))
    write_done(submission)
    assert local_state(submission, job) == JobState(
        job, "COMPLETED", "", nodes=os.uname().nodename, exit_code=0, start_time=local_state(submission, job).start_time
    )
    assert "state       COMPLETED" in tiny.command("status", run).out


def test_a_process_that_has_got_the_id_of_an_ended_one_is_not_taken_for_it(run, monkeypatch):
    submission = make_submission(run, "debug-1", cluster="debug")
    monkeypatch.setattr("time.time", lambda: 1e9)  # long before this process, which now has the id
    write_attempt(submission, "debug-1", 0, None)
    monkeypatch.undo()
    assert local_state(submission, "debug-1").state == "CANCELLED"
