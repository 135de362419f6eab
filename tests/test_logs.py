"""`revvideo logs`: what the ranks have written, followed through restarts."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from submissions import make_submission

from revvideo.launch import logs
from revvideo.launch.logs import LogReader, follow_log

TOOL = Path(__file__).parents[1] / "tools/logs.py"


@pytest.fixture
def fake(fake, monkeypatch):
    monkeypatch.setattr(logs, "FILE_SECONDS", 0.01)
    monkeypatch.setattr(logs, "STATE_SECONDS", 0.05)
    return fake


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


class Follower:
    """Follows a log in a thread; `text` is what came, `notes` what was said of the job."""

    def __init__(self, submission, rank: int = 0, lines: int | None = None):
        self.text, self.notes = "", []
        work = threading.Thread(target=self._follow, args=(submission, rank, lines), daemon=True)
        self.thread = work
        work.start()

    def _follow(self, submission, rank, lines) -> None:
        follow_log(submission, 0, rank, self._write, self.notes.append, lines=lines)

    def _write(self, text: str) -> None:
        self.text += text

    def wait_for(self, condition) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, (self.text, self.notes)
            time.sleep(0.01)

    def wait_for_end(self) -> None:
        self.thread.join(30)
        assert not self.thread.is_alive()


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def row(state: str, job: str = "4", reason: str = "None", nodes: str = "") -> tuple[str, ...]:
    return (job, state, "0", "0", "N/A", reason, nodes)


def test_the_last_lines_of_a_rank(fake, run):
    submission = make_submission(run, "4")
    for rank in (0, 3):
        append(submission.log_file("4", rank), "".join(f"rank {rank} line {n}\n" for n in range(5)) + "no end")
    assert tiny.done(tiny.command("logs", run, "--lines", 2)).out == "rank 0 line 4\nno end"
    assert tiny.done(tiny.command("logs", run, "--rank", 3, "-n", 0)).out.startswith("rank 3 line 0\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rank", 4), "--rank is 4; expected 0 .. 3: the run has 4 processes"),
        (("--rank", -1), "--rank is -1; expected 0 .. 3"),
        (("--lines", -1), "--lines is -1"),
        (("--point", 1), "--point is 1; "),
        ((), "there is no log of rank 0 yet: job 4 is PENDING (BeginTime); it will be /"),
    ],
)
def test_wrong_input(fake, run, words, message):
    make_submission(run, "4")
    outcome = tiny.command("logs", run, *words)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err


def test_a_point_of_a_sweep(fake, run):
    submission = make_submission(run, "3", points=({"SOLVER.BASE_LR": "1"}, {"SOLVER.BASE_LR": "2"}))
    for member in (0, 1):
        append(submission.log_file(f"3_{member}", 0), f"point {member}\n")
    assert tiny.done(tiny.command("logs", run, "--point", 1)).out == "point 1\n"
    assert tiny.done(tiny.command("logs", run / "point1")).out == "point 1\n"
    assert tiny.done(tiny.command("logs", run)).out == "point 0\n"


def test_without_slurm_the_log_is_shown(run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    submission = make_submission(run, "4", "6")
    append(submission.log_file("4", 0), "first\n")
    assert tiny.done(tiny.command("logs", run)).out == "first\n"


def test_following_goes_through_a_requeue_and_ends_with_the_job(fake, run):
    submission = make_submission(run, "4")
    log = submission.log_file("4", 0)
    fake.know(row("PENDING", reason="Priority"))
    follower = Follower(submission)
    follower.wait_for(lambda: follower.notes == ["job 4 is PENDING (Priority)"])  # the log is not there yet
    append(log, "begins ä\n")
    fake.know(row("RUNNING", nodes="gpu1"))
    follower.wait_for(lambda: follower.text == "begins ä\n" and len(follower.notes) == 2)
    fake.know(row("PENDING", reason="BeginTime"))
    follower.wait_for(lambda: len(follower.notes) == 3)
    append(log, "again\n")
    fake.know(row("RUNNING", nodes="gpu2"))
    follower.wait_for(lambda: len(follower.notes) == 4)
    append(log, "the end")
    fake.know(row("COMPLETED", nodes="gpu2"))
    follower.wait_for_end()
    assert follower.text == "begins ä\nagain\nthe end"
    assert follower.notes == [
        "job 4 is PENDING (Priority)",
        "job 4 is RUNNING on gpu1",
        "job 4 is PENDING (BeginTime)",
        "job 4 is RUNNING on gpu2",
        "job 4 is COMPLETED on gpu2",
    ]


def test_following_goes_on_with_the_next_job_of_a_chain(fake, run):
    submission = make_submission(run, "4", "6")
    append(submission.log_file("4", 1), "old\nfirst\n")
    fake.know(row("RUNNING", nodes="gpu1"), row("PENDING", "6", reason="Dependency"))
    follower = Follower(submission, rank=1, lines=1)
    follower.wait_for(lambda: follower.text == "first\n")
    append(submission.log_file("4", 1), "last of the first\n")
    fake.know(row("COMPLETED", nodes="gpu1"), row("RUNNING", "6", nodes="gpu1"))
    follower.wait_for(lambda: "job 6 is RUNNING on gpu1" in follower.notes)
    append(submission.log_file("6", 1), "second\n")
    fake.know(row("COMPLETED", nodes="gpu1"), row("FAILED", "6", nodes="gpu1"))
    follower.wait_for_end()
    assert follower.text == "first\nlast of the first\nsecond\n"


def test_following_survives_a_controller_that_is_silent_for_a_while(fake, run):
    submission = make_submission(run, "4")
    fake.know(row("RUNNING", nodes="gpu1"))
    follower = Follower(submission)
    follower.wait_for(lambda: follower.notes)
    squeue = fake.folder / "squeue"
    working = squeue.read_text(encoding="utf-8")
    (fake.folder / "new").write_text("#!/bin/sh\necho Unable to contact slurm controller >&2\nexit 1\n")
    (fake.folder / "new").chmod(0o755)
    os.replace(fake.folder / "new", squeue)
    follower.wait_for(lambda: any("Unable to contact" in note for note in follower.notes))
    squeue.write_text(working, encoding="utf-8")
    fake.know(row("COMPLETED"))
    follower.wait_for_end()


def test_following_a_job_that_is_over_shows_its_log(fake, run):
    submission = make_submission(run, "1")
    append(submission.log_file("1", 0), "all\n")
    outcome = tiny.done(tiny.command("logs", run, "--follow"))
    assert (outcome.out, outcome.err) == ("all\n", "revvideo: job 1 is COMPLETED on 127.0.0.1\n")


def test_a_file_that_is_written_anew_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "log"
    reader = LogReader(path)
    assert list(reader.read()) == []
    path.write_text("a long first text\n")
    assert "".join(reader.read()) == "a long first text\n"
    path.write_text("short\n")
    assert "".join(reader.read()) == "short\n"


def test_half_a_character_waits_for_its_other_half(tmp_path):
    path = tmp_path / "log"
    reader = LogReader(path)
    path.write_bytes("ä".encode()[:1])
    assert "".join(reader.read()) == ""
    path.write_bytes("ä".encode())
    assert "".join(reader.read()) == "ä"


def test_a_reader_of_the_output_may_leave(fake, run):
    submission = make_submission(run, "4")
    append(submission.log_file("4", 0), "line\n" * 100_000)
    command = f"{sys.executable} {TOOL} {run} --lines 0 | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("line\n", "", 0)
