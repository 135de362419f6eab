"""A task of a submitted job, called as submitit calls it: what it leaves for submitit, for us and for Slurm."""

import os
import pickle
import signal
import sys
import threading
from pathlib import Path

import pytest
import run_config
import tiny
from processes import Result, run_processes
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission

from revvideo import jobs
from revvideo.config import dump_config
from revvideo.errors import CheckFailed, InputError, NotSaved, RankFailed, Stopped
from revvideo.jobs import submitted
from revvideo.jobs.submitted import SubmittedJob, describe, identify
from revvideo.launch.attempts import RankRecord, attempt_folder, read_attempt, write_srun_end
from revvideo.launch.resources import Resources
from revvideo.launch.signal_delay import signal_delay_warning
from revvideo.launch.slurm_queue import COLUMNS
from revvideo.launch.submission import Member, Submission

# Slurm ends all processes of a job that is requeued, scontrol among them.
SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
kill -TERM $$
exit {code}
"""


def submit(run_folder: Path, *layers: dict, cluster: str = "slurm") -> Submission:
    """A submission of job 17, as the launcher leaves it; one crash is retried."""
    cfg = run_config.config(run_folder.parent / "data", run_folder, *layers)
    folder = run_folder / "launch/001"
    submission = Submission(folder, cluster, (Member(str(run_folder)),), Resources(max_restarts=1), ("17",))
    submission.jobs_folder.mkdir(parents=True)
    submission.save()
    submission.config_file(0).write_text(dump_config(cfg))
    delayed = DelayedSubmission(SubmittedJob(folder, 0))
    delayed.set_timeout(60, 1000)
    delayed.dump(submission.jobs_folder / "17_submitted.pkl")
    answer(submission, 0)
    know(submission, "RUNNING")
    return submission


def answer(submission: Submission, code: int) -> None:
    """scontrol exits with this code from now on."""
    file = submission.folder / "bin/scontrol"
    file.parent.mkdir(exist_ok=True)
    file.write_text(SCONTROL.format(calls=submission.folder / "calls", code=code))
    file.chmod(0o755)


def know(submission: Submission, state: str) -> None:
    """squeue shows the job in this state from now on."""
    values = {"JobArrayID": "17", "State": state}
    row = "".join(f"{values.get(name, ''):<{width}}" for name, width in COLUMNS.items())
    file = submission.folder / "bin/squeue"
    file.write_text(f"#!/bin/sh\necho '{row}'\n")
    file.chmod(0o755)


def calls(submission: Submission) -> list[str]:
    file = submission.folder / "calls"
    return file.read_text().splitlines() if file.exists() else []


def task(folder: Path, restart: int, ends: dict[int, BaseException] | None, early_signal: int | None) -> None:
    """One rank, as srun starts it.

    Args:
        folder: of the submission.
        restart: of the job.
        ends: what the run of a rank raises; None: the run is a real one.
        early_signal: the rank to which submitit's signal comes before anything else.
    """
    rank = os.environ["RANK"]
    os.environ |= {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(restart)}
    os.environ |= {"SLURM_PROCID": rank, "SLURM_NTASKS": os.environ["WORLD_SIZE"], "SLURMD_NODENAME": "node7"}
    os.environ["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # env --block-signal=USR2
    if early_signal == int(rank):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)  # other threads do not hold it back here

    def run(cfg, **options) -> None:
        if int(rank) in ends:
            raise ends[int(rank)]

    if ends is not None:
        jobs.run = run
    process_job(folder / "jobs")


def start(submission: Submission, restart: int = 0, ends=None, early_signal=None, count: int = 2) -> list[Result]:
    return run_processes(count, task, submission.folder, restart, ends, early_signal, timeout_seconds=90)


def codes(results: list[Result]) -> list[int]:
    return [result.exitcode for result in results]


def records(submission: Submission, restart: int = 0) -> list[RankRecord]:
    return list(read_attempt(attempt_folder(submission.folder, "17", restart)).ranks)


def outcomes(submission: Submission) -> dict[int, tuple[str, object]]:
    """Rank -> the result that it leaves for submitit's client."""
    files = submission.jobs_folder.glob("17_*_result.pkl")
    return {int(file.name.split("_")[1]): pickle.loads(file.read_bytes()) for file in files}


STOP = {rank: Stopped("stopped by SIGUSR2 after step 3; the same command goes on", reason="SIGUSR2") for rank in (0, 1)}


@pytest.fixture
def submission(tmp_path) -> Submission:
    return submit(tmp_path / "run")


def test_a_signal_before_anybody_listens_stops_all_and_the_job_comes_back(tmp_path):
    """It waits until the run listens; then all save the same step, rank 0 requeues, nobody leaves a result."""
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    run_config.write_training_set(data, 8)
    submission = submit(folder, tiny.TRAIN_ONLY, {"DIST.TIMEOUT_SECONDS": 30})
    results = start(submission, early_signal=1)
    assert codes(results) == [255, 0], results[0].output  # submitit's exit(-1), and ours
    assert [record.code for record in records(submission)] == [75, 75]
    assert records(submission)[0].node == "node7"
    assert calls(submission) == ["requeue 17"]
    assert outcomes(submission) == {}
    stop = tiny.events(folder, "stop")[-1]
    assert stop["reason"] == "SIGUSR2"
    assert not submission.done_file(0).exists()
    delayed = DelayedSubmission.load(submission.jobs_folder / "17_submitted.pkl")
    assert delayed.function == SubmittedJob(submission.folder, 0)

    results = start(submission, restart=1)
    assert codes(results) == [0, 0], results[0].output
    assert len(tiny.losses(folder)) == 2
    assert tiny.events(folder, "resume")[-1]["step"] == stop["step"]
    assert outcomes(submission) == {rank: ("success", str(folder)) for rank in (0, 1)}
    assert submission.done_file(0).exists()

    results = start(submission, restart=2)
    assert codes(results) == [0, 0]
    assert "nothing is left to do" in results[0].output
    assert len(tiny.events(folder, "start")) == 2
    assert [record.code for record in records(submission, 2)] == [0, 0]


def test_a_crash_leaves_no_result_while_it_is_retried(submission):
    ends = {0: RankFailed("rank 1 failed after 'step 3'"), 1: ValueError("boom\nin two lines")}
    results = start(submission, ends=ends)
    assert codes(results) == [1, 1]
    assert outcomes(submission) == {}
    first, second = records(submission)
    assert (first.code, first.error, first.follows) == (1, "rank 1 failed after 'step 3'", True)
    assert (second.code, second.error, second.follows) == (1, "ValueError: boom in two lines", False)
    assert "Traceback" in results[1].output
    assert "Traceback" not in results[0].output

    write_srun_end(attempt_folder(submission.folder, "17", 0), 1)
    assert codes(start(submission, restart=1, ends=ends)) == [1, 1]
    assert {rank: kind for rank, (kind, _) in outcomes(submission).items()} == {0: "error", 1: "error"}
    assert "ValueError: boom in two lines" in outcomes(submission)[1][1]
    assert calls(submission) == []


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("there is no list"), 2), (CheckFailed("the loss is not finite"), 3)]
)
def test_what_would_come_again_is_final_at_once(submission, error, code):
    results = start(submission, ends={0: error}, count=1)
    assert codes(results) == [1]
    (record,) = records(submission)
    assert (record.code, record.error) == (code, str(error))
    assert str(error) in outcomes(submission)[0][1]
    assert results[0].output.count("revvideo: ") == 1
    assert "submission.py" not in outcomes(submission)[0][1]


def test_a_config_that_cannot_be_read_is_wrong_input(submission):
    submission.config_file(0).write_text("NO_SUCH_KEY: 1\n")
    start(submission, ends={}, count=1)
    assert "NO_SUCH_KEY" in records(submission)[0].error
    assert records(submission)[0].code == 2


def test_a_requeue_that_fails_is_a_crash(submission):
    answer(submission, 1)
    results = start(submission, ends={0: Stopped("stopped", reason="SIGUSR2"), 1: Stopped("stopped")})
    assert codes(results) == [1, 0]
    first, second = records(submission)
    assert (first.code, second.code) == (1, 75)
    assert "requeue" in first.error
    assert outcomes(submission) == {}


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING"])
def test_a_job_that_is_cancelled_or_queued_again_while_it_saves_is_left_so(submission, state):
    """Slurm would requeue also what was cancelled."""
    know(submission, state)
    assert codes(start(submission, ends={0: Stopped("stopped"), 1: Stopped("stopped")})) == [75, 0]
    assert [record.code for record in records(submission)] == [75, 75]
    assert calls(submission) == []
    assert outcomes(submission) == {}


def test_a_job_that_is_stopped_again_and_again_at_the_same_place_has_ended(submission, monkeypatch):
    monkeypatch.setattr(submitted, "STOPS_IN_PLACE", 3)
    further = {rank: Stopped("stopped by SIGUSR2 after step 2", reason="SIGUSR2") for rank in (0, 1)}
    for restart, ends in enumerate([STOP, further, STOP, STOP]):
        start(submission, restart, ends)
        write_srun_end(attempt_folder(submission.folder, "17", restart), 255)
        assert len(calls(submission)) == restart + 1
        assert outcomes(submission) == {}
    start(submission, 4, STOP)
    assert len(calls(submission)) == 4
    assert [record.code for record in records(submission, 4)] == [3, 75]
    assert "stopped 3 times in a row without getting further" in records(submission, 4)[0].error
    assert "raise --time" in outcomes(submission)[0][1]


def test_a_done_file_that_cannot_be_written_is_a_crash(submission):
    (submission.folder / "done").write_text("a file stands in its path")
    assert codes(start(submission, ends={}, count=1)) == [1]
    assert records(submission)[0].code == 1


def test_in_this_process_the_exit_code_is_that_of_run_net(tmp_path):
    submission = submit(tmp_path / "run", cluster="debug")
    (result,) = run_processes(1, debug, submission.folder)
    assert result.exitcode == 2
    assert "revvideo: error: there is no list" in result.output


def debug(folder: Path) -> None:
    def run(cfg) -> None:
        raise InputError("there is no list")

    jobs.run = run
    SubmittedJob(folder, 0)()


def test_who_it_is(tmp_path):
    slurm = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "19"}
    assert identify(tmp_path, 0, slurm | {"SLURM_RESTART_COUNT": "3"}) == ("19", 3)
    assert identify(tmp_path, 0, slurm | {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}) == ("17_2", 0)
    assert identify(tmp_path, 0, {"SLURM_JOB_ID": "19"}) == (f"debug-{os.getpid()}", 0)
    local = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "4711"}
    for restart in range(3):
        assert identify(tmp_path, 1, local | {"SLURM_JOB_ID": "1"}) == ("4711", restart)
        folder = attempt_folder(tmp_path, "4711", restart)
        folder.mkdir(parents=True)
        for rank in (0, 1):
            (folder / f"{rank}.json").write_text(f'{{"rank": {rank}, "host": "", "node": "", "pid": 1, "began": 1.0}}')


def test_errors_are_told_in_one_line():
    assert describe(KeyError("x")) == "KeyError: 'x'"
    assert describe(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert describe(NotSaved("the disk\nis full")) == "the disk is full"


def test_a_signal_that_comes_too_late_for_the_checkpoints_is_warned_of(tmp_path):
    file = tmp_path / "events.jsonl"
    assert signal_delay_warning(file, 60) is None
    lines = ['{"kind": "checkpoint", "seconds": 3.0}', '{"kind": "checkpoint"}', '{"kind": "train_step", "step": 1}']
    file.write_text("\n".join(lines) + "\n")
    assert signal_delay_warning(file, 60) is None
    file.write_text(file.read_text() + '{"kind": "checkpoint", "seconds": 41.5}\n')
    assert "42 s" in signal_delay_warning(file, 60)


def test_it_is_pickled_without_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import cloudpickle; from revvideo.jobs.submitted import SubmittedJob; import revvideo.launch.epilogue\n"
        "job = SubmittedJob('x', 1); assert cloudpickle.loads(cloudpickle.dumps(job)) == job"
    )
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
