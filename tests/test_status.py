"""`revvideo status`: what it tells of a run, whoever remembers what."""

import json

import pytest
import tiny
from submissions import make_submission, write_attempt, write_diary, write_done, write_event

POINTS = ({"SOLVER.BASE_LR": "1e-3"}, {"SOLVER.BASE_LR": "3e-3"}, {"SOLVER.BASE_LR": "1e-2"})
CRASH = (1, "RuntimeError: out of luck", False)
FOLLOWS = (1, "rank 2 failed", True)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def rows(*words) -> dict[str, str]:
    """First word of each line -> the rest; wrapped lines joined. Only paths are wider than a terminal."""
    found, name = {}, ""
    for line in tiny.done(tiny.command("status", *words)).out.splitlines():
        assert len(line) <= 100 or " " not in line[12:].strip()
        name = line[:12].strip() or name
        found[name] = f"{found[name]} {line[12:].strip()}" if name in found else line[12:].strip()
    return found


def as_json(*words) -> dict:
    return json.loads(tiny.done(tiny.command("status", *words, "--json")).out)


def test_a_running_job_with_its_progress(fake, run):
    submission = make_submission(run, "4")
    fake.know(("4", "RUNNING", "1", "0", "1795279872", "None", "127.0.0.[1-2]"))
    write_attempt(submission, "4", 0, (75,), (75,))
    write_event(run, "stop", reason="SIGUSR2", step=3)
    write_attempt(submission, "4", 1, None, None)
    write_diary(run, 101)
    write_event(run, "validation", epoch=1, weights="raw", top1_acc=30.0, top5_acc=60.0)
    write_event(run, "validation", epoch=2, weights="raw", top1_acc=28.5, top5_acc=61.0)
    found = rows(run)
    assert found["state"].startswith("RUNNING, job 4, on 127.0.0.[1-2], since 20")
    assert found["state"].endswith(", 1 restart")
    assert found["progress"].startswith("epoch 3/4, step 101/200 (50.5%), 0:03:18 left (ends 20")
    assert found["training"] == "loss 2.9000, top-1 25.0, lr 0.001, 40.0 clips/s, waits for data 5%"
    assert found["validation"] == "top-1 28.50, top-5 61.00 after epoch 3; best top-1 30.00 after epoch 2"
    assert "stopped by SIGUSR2, after a checkpoint" in found["starts"]
    assert found["starts"].endswith("job 4: running")
    assert found["log"] == str(submission.log_file("4", 0))


def test_reasons_of_restarts(fake, run):
    submission = make_submission(run, "4")
    fake.know(("4", "PENDING", "6", "0", "1795279894", "BeginTime", ""))
    write_attempt(submission, "4", 0, FOLLOWS, FOLLOWS, CRASH, FOLLOWS)
    write_attempt(submission, "4", 1, FOLLOWS, FOLLOWS, None, FOLLOWS, srun_code=137)
    write_attempt(submission, "4", 2, None, None, None, None)
    write_attempt(submission, "4", 3, (75,), (75,), (75,), (75,))
    write_attempt(submission, "4", 4, FOLLOWS, FOLLOWS, None, None)
    write_attempt(submission, "4", 5, FOLLOWS, FOLLOWS, FOLLOWS, FOLLOWS, srun_code=1)
    write_attempt(submission, "4", 6, srun_code=1)
    (member,) = as_json(run)["members"]
    assert [start["reason"] for start in member["starts"]] == [
        "rank 2 on node1 failed, exit code 1: RuntimeError: out of luck",
        "rank 2 on node1 killed, srun ended with exit code 137; rank 2 failed",
        "killed from outside: requeue, preemption without a signal, lost node, or cancelled",
        "stopped by a signal, after a checkpoint",
        "rank 2 on node1, rank 3 on node1 killed from outside, or lost with the node; the others followed",
        "exit code 1: rank 2 failed",
        "no rank has begun, srun ended with exit code 1",
    ]
    assert (member["restarts"], member["state"]["state"], member["failure"]) == (6, "PENDING", "")
    state = rows(run)["state"]
    assert state.startswith("PENDING (BeginTime), job 4, to start 20")


def test_a_chain_shows_which_job_runs_and_which_waits(fake, run):
    make_submission(run, "1", "4", "6")
    fake.know(
        ("1", "TIMEOUT", "0", "0", "1795279870", "TimeLimit", "127.0.0.1"),
        ("4", "RUNNING", "0", "0", "1795279872", "None", "127.0.0.1"),
        ("6", "PENDING", "0", "0", "N/A", "Dependency", ""),
    )
    found = rows(run)
    assert found["jobs"] == "1 TIMEOUT, 4 RUNNING, 6 PENDING (Dependency)"
    assert found["state"].startswith("RUNNING, job 4, on 127.0.0.1")
    assert "failure" not in found


def test_a_failed_job_shows_the_rank_to_blame(fake, run):
    submission = make_submission(run, "2")
    write_attempt(submission, "2", 0, FOLLOWS, CRASH)
    found = rows(run)
    assert found["state"] == "FAILED (NonZeroExitCode), job 2, on 127.0.0.1, exit code 3"
    assert found["failure"] == "rank 1 on node0 failed, exit code 1: RuntimeError: out of luck"
    assert "starts" not in found  # the same, once more


def test_a_job_that_ends_before_any_rank_begins(fake, run):
    make_submission(run, "2")
    assert rows(run)["failure"] == "no rank has begun (NonZeroExitCode); the log may tell why"


def test_a_sweep_is_a_table_with_a_failed_member(fake, run):
    submission = make_submission(run, "3", points=POINTS)
    fake.know(
        ("3_0", "RUNNING", "2", "0", "1795279870", "None", "127.0.0.1"),
        ("3_1", "FAILED", "0", "256", "1795279870", "NonZeroExitCode", "127.0.0.1"),
        ("3_2", "PENDING", "0", "0", "N/A", "JobArrayTaskLimit", ""),
    )
    write_attempt(submission, "3_1", 0, CRASH)
    write_diary(run / "point0", 51)
    write_event(run / "point0", "validation", epoch=0, weights="raw", top1_acc=12.25, top5_acc=60.0)
    lines = tiny.done(tiny.command("status", run)).out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("point"))
    table = [line.split() for line in lines[first : first + 4]]
    assert [" ".join(words) for words in table] == [
        "point BASE_LR state job restarts epoch left loss top-1 best test",
        "0 1e-3 RUNNING 3_0 2 2/4 0:04:58 2.9500 12.25 12.25 -",
        "1 3e-3 FAILED 3_1 0 0/4 - - - - -",
        "2 1e-2 PENDING 3_2 0 0/4 ? - - - -",
    ]
    failures = " ".join(line.strip() for line in lines[first + 5 :])
    assert failures.startswith("point 1     rank 0 on node0 failed, exit code 1: RuntimeError: out of luck; log ")


def test_one_point_of_a_sweep_by_number_or_folder(fake, run):
    make_submission(run, "3", points=POINTS)
    by_number, by_folder = as_json(run, "--point", "2"), as_json(run / "point2")
    assert [member["number"] for member in by_number["members"]] == [2]
    assert by_number["members"] == by_folder["members"]
    assert rows(run / "point2")["point 2"] == "SOLVER.BASE_LR=1e-2"
    refused = tiny.command("status", run, "--point", "3")
    assert (refused.code, "has the points 0 .. 2" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("ends", "done", "state", "failure"),
    [
        (((0,), (0,)), True, "COMPLETED", ""),
        ((CRASH, FOLLOWS), False, "FAILED", "rank 0 on node0 failed, exit code 1: RuntimeError: out of luck"),
        (((75,), (75,)), False, "UNKNOWN", ""),
        ((None, None), False, "UNKNOWN", ""),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_jobs_that_slurm_has_forgotten_or_that_nobody_can_ask_for(
    fake, run, monkeypatch, ends, done, state, failure, installed
):
    if not installed:
        monkeypatch.setenv("PATH", "/nowhere")
    submission = make_submission(run, "99")
    write_attempt(submission, "99", 0, *ends)
    if done:
        write_done(submission)
    write_diary(run, 5)
    found = as_json(run)
    (member,) = found["members"]
    assert (member["state"]["state"], member["failure"]) == (state, failure)
    assert ("no Slurm here" in found["problem"]) == (not installed)
    assert ("note" in (shown := rows(run))) == (not installed)
    assert shown["progress"].startswith("epoch 1/4, step 5/200")
    if ends == (None, None):
        end = "killed from outside" if installed else "no end is written: it runs, or was killed"
        assert member["starts"][0]["reason"].startswith(end)


def test_a_finished_run_is_complete_though_a_job_of_its_chain_still_waits(fake, run):
    submission = make_submission(run, "1", "6")
    write_attempt(submission, "1", 0, (0,))
    write_done(submission)
    write_event(run, "test", weights="raw", top1_acc=77.5, top5_acc=93.0, num_views=5, num_crops=1, num_videos=20)
    found = rows(run)
    assert found["state"].startswith("COMPLETED")
    assert found["test"] == "top-1 77.50, top-5 93.00, 5 x 1 views, 20 videos"


def test_the_newest_submission_counts(fake, run):
    make_submission(run, "2")
    make_submission(run, "4", number=10)
    make_submission(run, "1", number=9)
    assert as_json(run)["submission"]["jobs"] == ["4"]


def test_a_diary_with_half_a_line_and_numbers_that_are_none(fake, run):
    make_submission(run, "4")
    write_diary(run, 3, loss="nan", top1=None)
    with open(run / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('{"kind": "train_step", "ti')
    assert rows(run)["training"].startswith("loss nan, top-1 -, lr 0.001")


def test_speed_is_that_of_the_last_start(fake, run):
    make_submission(run, "4")
    fake.know(("4", "RUNNING", "1", "0", "1795279872", "None", "127.0.0.1"))
    write_diary(run, 30, seconds_per_step=100)
    write_diary(run, 40, seconds_per_step=1, restart=1)
    (member,) = as_json(run)["members"]
    assert member["progress"]["step"] == 40
    assert member["progress"]["seconds_left"] == pytest.approx(160, rel=1e-3)


def test_a_run_that_was_not_submitted(run):
    write_diary(run, 5)
    found = rows(run)
    assert found["state"].startswith("not submitted")
    assert found["progress"].startswith("epoch 1, step 5")


def test_a_folder_of_no_run_is_refused(tmp_path):
    for folder, expected in ((tmp_path, "not the folder of a submitted run"), (tmp_path / "no", "there is no folder")):
        outcome = tiny.command("status", folder)
        assert (outcome.code, expected in outcome.err, outcome.out) == (2, True, "")
