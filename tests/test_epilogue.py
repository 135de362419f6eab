"""The end of a batch script: what is put back into the queue, after which wait, and what stands in the log."""

import signal
import time
from types import SimpleNamespace

import pytest

from revvideo.errors import InputError
from revvideo.launch import epilogue, slurm_queue
from revvideo.launch.attempts import (
    Attempt,
    RankRecord,
    attempt_folder,
    is_crash,
    read_attempt,
    write_beginning,
    write_end,
    write_srun_end,
)
from revvideo.launch.job_state import JobState
from revvideo.launch.resources import Resources
from revvideo.launch.retries import backoff_seconds, slurm_job
from revvideo.launch.submission import Member, Submission

SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
[ "$1" = show ] && echo "AuthInfo                = socket=/run/munge.socket,cred_expire=5" && exit
exit {code}
"""
LOST = "rank 1 (node2, process 4711) has not answered for 4 s"
# (rank, exit code, error, whether it follows); no code: killed
CRASH = [(0, 1, "rank 1 failed", True), (1, 1, "ValueError: boom", False)]
KILLED = [(0, 1, LOST, True), (1, None, "", False)]
ALL_KILLED = [(0, None, "", False), (1, None, "", False)]
WRONG = [(0, 2, "there is no list", False), (1, 2, "there is no list", False)]
MIXED = [(0, 1, "rank 1 failed", True), (1, 2, "bad value", False)]
STOPPED = [(0, 75, "stopped by SIGUSR2", False), (1, 75, "stopped by SIGUSR2", False)]
DONE = [(0, 0, "", False), (1, 0, "", False)]


class Job:
    """A job of a submission, whose starts end as the test says; `end` is what its batch script does then."""

    def __init__(self, tmp_path, monkeypatch, capfd):
        folder = tmp_path / "run/launch/001"
        folder.mkdir(parents=True)
        resources = Resources(max_restarts=2, backoff_seconds=10)
        self.submission = Submission(folder, "slurm", (Member(str(tmp_path / "run")),), resources, ("17",))
        self.submission.save()
        self.id, self.state = "17", "RUNNING"
        self._monkeypatch, self._capfd, self._calls = monkeypatch, capfd, tmp_path / "calls"
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
        (tmp_path / "bin").mkdir()
        self._scontrol = tmp_path / "bin/scontrol"
        self.answer(0)
        monkeypatch.setattr(slurm_queue, "job_states", lambda jobs: {jobs[0]: JobState(jobs[0], self.state)})
        monkeypatch.setenv("SLURM_JOB_ID", "17")

    def answer(self, code: int) -> None:
        """scontrol exits with this code from now on, when it is to change something."""
        self._scontrol.write_text(SCONTROL.format(calls=self._calls, code=code))
        self._scontrol.chmod(0o755)

    def start(self, restart: int, ranks: list[tuple]) -> None:
        """What the ranks of one start write down."""
        for rank, code, error, follows in ranks:
            folder = attempt_folder(self.submission.folder, self.id, restart)
            record = write_beginning(folder, rank, f"node{rank}")
            if code is not None:
                write_end(folder, record, code, error, follows=follows)

    def end(self, restart: int, ranks: list[tuple], srun_code: int = 1) -> tuple[int, str, list[str]]:
        """A start and its epilogue: exit code, what is printed, the calls of scontrol that change something."""
        self.start(restart, ranks)
        self._monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        self._calls.write_text("")
        code = epilogue.main([str(self.submission.folder), str(srun_code)])
        calls = [line for line in self._calls.read_text().splitlines() if not line.startswith("show")]
        return code, self._capfd.readouterr().out, calls


@pytest.fixture
def job(tmp_path, monkeypatch, capfd):
    before = signal.getsignal(signal.SIGTERM)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    yield Job(tmp_path, monkeypatch, capfd)
    signal.signal(signal.SIGTERM, before)


def test_a_good_end_is_left_alone(job):
    assert job.end(0, DONE, srun_code=0) == (0, "", [])


def test_work_that_is_done_counts_whatever_ended_later(job):
    job.submission.done_file(0).parent.mkdir()
    job.submission.done_file(0).touch()
    assert job.end(0, DONE, srun_code=139) == (0, "", [])


@pytest.mark.parametrize("ranks", [CRASH, KILLED, ALL_KILLED, []])
def test_crashes_are_retried_with_doubled_waits_until_none_is_left(job, ranks):
    for restart, seconds in ((0, 10), (1, 20)):
        code, text, calls = job.end(restart, ranks)
        assert code == 1
        assert calls == ["requeue 17", f"update JobId=17 StartTime=now+{seconds}"]
        assert f"crashed, {restart + 1} of 3 times" in text
    code, text, calls = job.end(2, ranks)
    assert (code, calls) == (1, [])
    first, *starts, last = text.splitlines()
    assert first.startswith("revvideo: job 17 has crashed 3 times")
    assert sum(line.startswith("  start ") for line in starts) == 3
    assert "goes on from the last checkpoint" in last


def test_the_rank_to_blame_is_the_first_that_failed_by_itself(job):
    text = job.end(0, CRASH)[1]
    assert "rank 1 on node1: ValueError: boom" in text
    assert str(job.submission.log_file("17", 1)) in text
    assert LOST in job.end(1, KILLED)[1]


def test_of_several_the_one_that_failed_first_is_to_blame():
    ended = {0: 30.0, 1: 20.0, 2: 10.0}
    ranks = [RankRecord(rank, "h", "", 1, 1.0, end, 1, follows=rank == 2) for rank, end in ended.items()]
    assert Attempt("17", 0, tuple(ranks)).first_error.rank == 1


@pytest.mark.parametrize(
    ("codes", "srun_code", "code"), [((0, 75), 1, 75), ((75, None), 137, 75), ((0, 0), 0, 0), ((None, 75), None, 75)]
)
def test_a_start_in_which_a_rank_was_stopped_is_stopped_and_a_good_one_no_crash(codes, srun_code, code):
    ranks = tuple(RankRecord(rank, "h", "", 1, 1.0, 2.0, each) for rank, each in enumerate(codes))
    attempt = Attempt("17", 0, ranks, srun_code)
    assert attempt.code == code
    assert not is_crash(attempt)


@pytest.mark.parametrize("ranks", [WRONG, MIXED])
def test_what_would_come_again_is_not_retried(job, ranks):
    code, text, calls = job.end(0, ranks)
    assert (code, calls) == (2, [])
    assert ranks[1][2] in text


def test_a_stop_is_requeued_by_rank_0_unless_it_could_not(job):
    job.state = "COMPLETING"
    assert job.end(0, STOPPED, srun_code=255) == (75, "", [])
    job.state = "RUNNING"
    assert job.end(1, [*STOPPED[1:], (0, None, "", False)], srun_code=137) == (75, "", ["requeue 17"])


def test_a_job_that_is_cancelled_after_a_crash_is_left_so(job):
    job.state = "COMPLETING"
    assert job.end(0, CRASH)[2] == []


def test_stops_requeues_and_lost_nodes_are_no_crashes(job):
    job.state = "COMPLETING"
    job.end(0, STOPPED, srun_code=255)
    job.start(1, ALL_KILLED)  # scontrol requeue: nothing of the job is left
    job.start(2, KILLED)  # with the batch script: its node is lost
    job.state = "RUNNING"
    assert "crashed, 1 of 3" in job.end(3, CRASH)[1]
    assert "crashed, 2 of 3" in job.end(4, CRASH)[1]


def test_an_element_of_an_array_is_put_back_alone(job, monkeypatch):
    """SLURM_JOB_ID of the last element is the id of the array."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    job.id = "17_2"
    assert job.end(0, CRASH)[2] == ["requeue 17_2", "update JobId=17_2 StartTime=now+10"]


def test_no_start_is_moved_to_before_the_end_of_slurms_own_wait(job, monkeypatch):
    monkeypatch.setattr(epilogue, "backoff_seconds", lambda resources, crashes: 6)  # cred_expire=5 and 1
    assert job.end(0, CRASH)[2] == ["requeue 17"]


def test_the_sigterm_of_a_requeue_does_not_end_it(job):
    job.end(0, CRASH)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_ranks_that_are_killed_without_a_word_are_told_with_the_signal(job):
    text = job.end(0, ALL_KILLED, srun_code=137)[1]
    assert "killed: rank 0, 1; srun ended with 137 (SIGKILL: out of memory?)" in text
    assert str(job.submission.log_file("17", 0)) in text
    assert "srun ended with 138 (SIGUSR1)" in job.end(1, ALL_KILLED, srun_code=138)[1]
    assert "srun ended with 1\n" in job.end(2, ALL_KILLED)[1]


def test_slurm_is_asked_again_until_it_can_be_reached(job, monkeypatch):
    job.answer(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a cancel in between ends it
        job.answer(int(len(pauses) < 3))

    # Not in `time` itself: subprocess sleeps, too.
    monkeypatch.setattr(epilogue, "time", SimpleNamespace(**vars(time) | {"sleep": pause}))
    assert job.end(0, CRASH)[2] == ["requeue 17"] * 4 + ["update JobId=17 StartTime=now+10"]
    assert pauses == list(epilogue.PAUSES_SECONDS[:3])


def test_what_slurm_refuses_is_told(job, monkeypatch):
    monkeypatch.setattr(epilogue, "PAUSES_SECONDS", ())
    job.answer(1)
    with pytest.raises(InputError, match="requeue"):
        job.end(0, CRASH)


def test_wrong_arguments(job, monkeypatch):
    for arguments in ([], [str(job.submission.folder), "x"]):
        with pytest.raises(InputError, match="expected"):
            epilogue.main(arguments)
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(InputError, match="SLURM_JOB_ID"):
        epilogue.main([str(job.submission.folder), "1"])


def test_waits_grow_up_to_an_hour():
    waits = [backoff_seconds(Resources(backoff_seconds=30), crashes) for crashes in range(1, 12)]
    assert waits[:4] == [30, 60, 120, 240]
    assert waits[-1] == max(waits) == 3600
    assert backoff_seconds(Resources(backoff_seconds=0), 5) == 0


def test_a_broken_restart_count_is_told():
    assert slurm_job({}) is None
    with pytest.raises(InputError, match="SLURM_RESTART_COUNT"):
        slurm_job({"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "x"})


def test_an_attempt_without_ranks_can_be_read(tmp_path):
    folder = attempt_folder(tmp_path, "17", 0)
    assert read_attempt(folder) is None
    write_srun_end(folder, 127)
    attempt = read_attempt(folder)
    assert is_crash(attempt)
    assert attempt.began == attempt.srun_ended
