"""What may happen to a job on a cluster: it comes back by itself and ends as if nothing had happened, bit for bit.

Each on a real local cluster of two nodes and a spare one, four processes, submitted by slurm/submit.py.
"""

import re
import signal
import time
from pathlib import Path

import pytest
import run_config
from interrupted_job import MIDDLE, NODES, ONE_MACHINE, PATIENCE, RUN, InterruptedJob, assert_same_training, write_data
from processes import run_processes, values
from slurm_cluster import cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    """The run folder of the same training in four processes without Slurm."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    values(run_processes(4, run_config.run, data, folder, (RUN, ONE_MACHINE)))
    return folder


@pytest.fixture(scope="module")
def own_cluster():
    with cluster(nodes=NODES, spare=1) as running:
        yield running


@pytest.fixture(scope="module")
def table(request):
    """Rows of (event, seconds until it runs again, until it trains again, reason), printed at the end."""
    rows: list[tuple[str, float, float, str]] = []
    yield rows
    lines = [f"{name:<28} {runs:>7.1f} {trains:>8.1f}   {reason}" for name, runs, trains, reason in rows]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", f"{'seconds from the event to':<28} {'running':>7} {'training':>8}   status", *lines, sep="\n")


@pytest.fixture
def job(own_cluster, data, tmp_path):
    made = InterruptedJob(own_cluster, data, tmp_path / "run", tmp_path / "faults")
    yield made
    made.leaves_nothing()


@pytest.fixture
def came_back(job, table, record_testsuite_property):
    """Call it when an event has happened: waits until the job trains again, and notes how long that took."""

    def note(name: str) -> str:
        position = len(job.starts) - 1
        runs, trains = job.comes_back()
        reason = job.reasons[position]
        table.append((name, runs, trains, reason))
        record_testsuite_property(name, f"running {runs:.1f} s, training {trains:.1f} s")
        return reason

    return note


STOPPED = "stopped by SIGUSR2, after a checkpoint"


def ends_as_uninterrupted(job: InterruptedJob, uninterrupted: Path, restarts: int) -> None:
    job.finishes()
    assert_same_training(job.folder, uninterrupted)
    status = job.status()
    assert (status["state"]["state"], status["restarts"]) == ("COMPLETED", restarts)
    assert status["starts"][-1]["reason"] == "finished"
    assert len(status["starts"]) == restarts + 1


def test_usr2_while_training_and_while_evaluating(job, came_back, uninterrupted):
    job.submit()
    job.wait_for_steps()
    with job.event():
        job.cluster.run("scancel", "--signal=USR2", job.job)
    assert came_back("scancel --signal=USR2") == STOPPED
    steps = [event["step"] for event in job.events("train_step")]
    assert steps == list(range(len(steps)))  # none of them twice
    (job.faults / "slow").write_text("2")
    job.wait("end of training", lambda: job.events("validation"))
    job.wait("weights to evaluate", lambda: "evaluating" in job.submission.log_file(job.job, 0).read_text())
    job.event_time = time.time()
    job.cluster.run("scancel", "--signal=USR2", job.job)
    job.wait("stop", lambda: len(job.events("stop")) == 2)
    job.hurry()
    ends_as_uninterrupted(job, uninterrupted, restarts=2)
    assert job.reasons[:2] == [STOPPED, STOPPED]
    assert len(job.events("test")) == 1


def test_usr2_in_the_first_second_and_two_in_a_row(job, uninterrupted):
    job.submit()
    job.wait("task", lambda: any("submitit.core._submit" in each.command for each in job.cluster.step_processes()))
    job.cluster.run("scancel", "--signal=USR2", job.job)
    job.wait("stop", lambda: len(job.events("stop")) == 1)
    first = len(job.events("train_step"))
    assert first <= 1
    job.wait_for_steps(first + MIDDLE)
    with job.event():
        for _ in range(2):
            job.cluster.run("scancel", "--signal=USR2", job.job)
    job.wait("stop", lambda: len(job.events("stop")) == 2)
    ends_as_uninterrupted(job, uninterrupted, restarts=2)
    assert job.reasons[:2] == [STOPPED, STOPPED]


def test_the_time_limit(job, came_back, uninterrupted):
    job.submit("--time", "1", "--signal-seconds", "20", slow=1.5)
    job.wait_for_steps(1)
    job.wait("signal", lambda: job.events("stop"))
    with job.event():
        job.event_time = job.events("stop")[0]["time"]
    assert came_back("time limit") == STOPPED
    job.finishes()  # on a busy machine after more of them
    ends_as_uninterrupted(job, uninterrupted, restarts=len(job.events("stop")))


def test_preemption(job, came_back, uninterrupted, tmp_path):
    job.submit()
    job.wait_for_steps()
    asked = ["--partition=urgent", "--nodes=3", "--exclusive", "--mem=100", "--output=urgent"]
    with job.event():
        urgent = job.cluster.sbatch(*asked, "--wrap", "sleep 1", cwd=tmp_path)
    assert came_back("preemption") == STOPPED
    assert job.cluster.jobs()[urgent]["JobState"] == "COMPLETED"
    ends_as_uninterrupted(job, uninterrupted, restarts=1)


def test_a_requeue_without_a_warning(job, came_back, uninterrupted):
    job.submit()
    job.wait_for_steps(2 * MIDDLE)
    with job.event():
        job.cluster.run("scontrol", "requeue", job.job)
    assert came_back("scontrol requeue").startswith("killed from outside: requeue")
    assert job.events("resume")[0]["step"] > 0
    ends_as_uninterrupted(job, uninterrupted, restarts=1)


def test_a_lost_node(job, came_back, uninterrupted):
    job.submit("--max-restarts", "0")  # it is no crash
    job.wait_for_steps()
    with job.event():
        job.cluster.kill_node("127.0.0.2")
    reason = came_back("node lost")
    assert job.cluster.jobs()[job.job]["NodeList"] == "127.0.0.[1,3]"
    assert "rank 2 on 127.0.0.2, rank 3 on 127.0.0.2" in reason
    ends_as_uninterrupted(job, uninterrupted, restarts=1)
    job.cluster.start_node("127.0.0.2")
    job.cluster.wait_until("idle nodes", job.cluster.has_idle_nodes, 60)


def test_one_rank_killed(job, came_back, uninterrupted):
    job.submit(keys={"DATA_LOADER.NUM_WORKERS": 1})
    job.wait_for_steps()
    with job.event():
        job.signal_rank(3, signal.SIGKILL)
    reason = came_back("SIGKILL of a rank")
    assert "rank 3 on 127.0.0.2 killed, srun ended with exit code 137" in reason
    ends_as_uninterrupted(job, uninterrupted, restarts=1)


def test_one_rank_raises_once(job, came_back, uninterrupted):
    job.submit()
    job.wait_for_steps()
    with job.event():
        fault = job.raise_in(2)
        job.wait("crash", lambda: job.starts[-1].first_error)
        fault.unlink()
    reason = came_back("a rank raises")
    assert reason == "rank 2 on 127.0.0.2 failed, exit code 1: RuntimeError: the device is lost"
    ends_as_uninterrupted(job, uninterrupted, restarts=1)


def test_one_rank_raises_at_every_start(job):
    job.submit("--max-restarts", "1")
    job.raise_in(2)
    ended = job.cluster.wait_for(job.job, "FAILED", timeout_seconds=PATIENCE)
    assert (ended["ExitCode"], ended["Restarts"]) == ("1:0", "1")
    error = "rank 2 on 127.0.0.2: RuntimeError: the device is lost"
    log = job.submission.log_file(job.job, 0).read_text()
    end = log[log.rindex(f"revvideo: job {job.job} has crashed 2 times and is not started again") :]
    assert end.count(error) == 2
    assert str(job.submission.log_file(job.job, 2)) in end
    failure = "rank 2 on 127.0.0.2 failed, exit code 1: RuntimeError: the device is lost"
    assert job.reasons == [failure, failure]
    assert job.status()["failure"] == failure


def test_one_rank_hangs(job, came_back, uninterrupted):
    job.submit(keys={"DIST.TIMEOUT_SECONDS": 20})
    job.wait_for_steps()
    with job.event():
        job.signal_rank(1, signal.SIGSTOP)
    reason = came_back("a rank hangs (timeout 20 s)")
    assert re.search(r"\brank 1 (\(|on )", reason)  # by another rank, or killed
    assert not re.match(r"rank [023] .* failed", reason)  # they only follow
    ends_as_uninterrupted(job, uninterrupted, restarts=1)


def test_cancel_leaves_nothing(job):
    job.submit(keys={"DATA_LOADER.NUM_WORKERS": 1})
    job.wait_for_steps()
    job.event_time = time.time()
    told = job.command("cancel")
    assert told.startswith(f"cancelled job {job.job}, which was RUNNING on 127.0.0.[1-2]")
    job.cluster.wait_for(job.job, "CANCELLED")
    job.leaves_nothing()
    assert job.status()["state"]["state"] == "CANCELLED"
    assert job.command("cancel") == f"nothing to cancel: job {job.job} is CANCELLED\n"
