"""What the launcher reads from Slurm's commands, and tells them."""

import time

import pytest
from fake_slurm import FINISHED, NEVER, REQUEUED, RUNNING, WAITING

from revvideo.errors import InputError
from revvideo.launch import slurm_queue
from revvideo.launch.slurm_queue import JobState, is_alive, job_states

NEVER_SATISFIED = ("7", "DependencyNeverSatisfied")


def test_states_are_those_of_squeue(fake):
    states = job_states(["1", "2", "3_1", "4", "5", "3_2"])
    assert states["1"] == JobState("1", "COMPLETED", "", "127.0.0.1", 1, 0, 1795279879)
    assert states["2"] == JobState("2", "FAILED", "NonZeroExitCode", "127.0.0.1", 0, 3, 1795279870)
    assert states["3_1"] == JobState("3_1", "RUNNING", "", "127.0.0.1", 0, None, 1795279870)
    assert states["3_2"] == JobState("3_2", "PENDING", "JobArrayTaskLimit")
    assert states["4"] == JobState("4", "PENDING", "BeginTime", "", 1, None, 1795279894)
    assert states["5"] == JobState("5", "PENDING", "DependencyNeverSatisfied")
    assert [is_alive(states[job]) for job in ("1", "2", "3_1", "4", "5")] == [False, False, True, True, True]
    assert fake.calls == []  # nothing was missing: accounting is not asked


def test_a_job_killed_by_a_signal_has_the_code_of_a_shell(fake):
    assert job_states(["3_0"])["3_0"].exit_code == 128 + 15


def test_an_array_as_a_whole_lives_as_long_as_any_of_its_elements(fake):
    assert job_states(["3"])["3"].state == "RUNNING"


@pytest.mark.parametrize("ids", [["99"], ["98", "99"], ["3_7"]])
def test_a_forgotten_job_without_accounting_is_unknown(fake, ids):
    for job, state in job_states(ids).items():
        assert state == JobState(job, "UNKNOWN")
        assert not is_alive(state)


def test_a_forgotten_job_is_asked_of_accounting(fake):
    header = "JobID|State|ExitCode|NodeList|Start\n"
    rows = (
        "17|NODE_FAIL|0:0|gpu[1-2]|1795279870\n17|COMPLETED|0:0|gpu[3-4]|1795279899\n"
        "18|CANCELLED by 1000|0:15|gpu3|1795279870\n19_[0-2,5%2]|CANCELLED by 0|0:0|None assigned|Unknown\n"
    )
    fake.answer(sacct=(header + rows, "", 0))
    states = job_states(["1", "17", "18", "19_1", "19_5", "19_4"])
    assert states["1"].state == "COMPLETED"
    assert states["17"] == JobState("17", "COMPLETED", "", "gpu[3-4]", 0, 0, 1795279899)  # the newest start counts
    assert states["18"] == JobState("18", "CANCELLED", "by 1000", "gpu3", 0, 128 + 15, 1795279870)
    assert states["19_1"] == JobState("19_1", "CANCELLED", "by 0", exit_code=0)
    assert states["19_5"].state == "CANCELLED"
    assert states["19_4"].state == "UNKNOWN"
    assert fake.calls == ["sacct -X -P -j 17,18,19 -o JobID,State,ExitCode,NodeList,Start"]


def test_what_the_controller_knows_of_an_array_wins_over_accounting(fake):
    """Accounting is asked for the whole array, and lags behind."""
    rows = "3_1|COMPLETED|0:0|gpu1|1795279870\n3_[7-11:2]|FAILED|1:0|gpu1|1795279870\n"
    fake.answer(sacct=("JobID|State|ExitCode|NodeList|Start\n" + rows, "", 0))
    states = job_states(["3_1", "3_7", "3_8", "3_11"])
    assert [state.state for state in states.values()] == ["RUNNING", "FAILED", "UNKNOWN", "FAILED"]


def test_the_wait_of_a_requeued_job_is_that_of_the_cluster_or_slurms_own(fake):
    for line, seconds in (("AuthInfo = socket=/s,cred_expire=5", 6), ("AuthInfo = (null)", 121)):
        fake.answer(scontrol=(f"AuthAltTypes = (null)\n{line}\nAuthType = auth/munge\n", "", 0))
        assert slurm_queue.shortest_wait() == seconds


@pytest.mark.parametrize(
    ("state", "reason", "leaves"),
    [
        ("RUNNING", "None", False),
        ("COMPLETING", "None", True),  # cancelled
        ("PENDING", "BeginTime", True),
        ("COMPLETING", "TimeLimit", False),  # a slow checkpoint: it may still come back
    ],
)
def test_who_must_not_requeue_a_job(fake, state, reason, leaves):
    fake.know(("4", state, "0", "0", "1795279872", reason, "127.0.0.1"))
    assert slurm_queue.is_leaving("4") is leaves
    assert not slurm_queue.is_leaving("99")
    (fake.folder / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert not slurm_queue.is_leaving("4")


def test_nothing_asked_is_nothing_answered(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert job_states([]) == {}
    slurm_queue.cancel([])


def test_commands_change_jobs(fake):
    slurm_queue.requeue("17_2")
    slurm_queue.delay_start("17", 30)
    slurm_queue.cancel(["17", "18"])
    assert fake.calls == ["scontrol requeue 17_2", "scontrol update JobId=17 StartTime=now+30", "scancel 17 18"]


def test_what_slurm_refuses_is_one_message(fake):
    fake.answer(scontrol=("", "Invalid job id specified for job 99\n", 1))
    with pytest.raises(InputError, match=r"^Slurm refuses scontrol requeue 99: Invalid job id specified for job 99$"):
        slurm_queue.requeue("99")


def test_cancelling_a_forgotten_job_is_no_error(fake):
    fake.answer(scancel=("", "scancel: error: Kill job error on job id 99: Invalid job id specified\n", 1))
    slurm_queue.cancel(["99"])
    assert fake.calls == ["scancel 99"]


def test_without_slurm_the_message_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="no Slurm here: squeue is not on PATH"):
        job_states(["1"])


def test_a_controller_that_is_silent_is_an_error(fake, monkeypatch):
    monkeypatch.setattr(slurm_queue, "COMMAND_SECONDS", 0.5)
    (fake.folder / "squeue").write_text("#!/bin/sh\nexec sleep 20\n", encoding="utf-8")
    with pytest.raises(InputError, match="Slurm does not answer: squeue"):
        job_states(["1"])


def test_of_a_chain_what_runs_counts_else_the_next_else_the_last():
    def state(row):
        return JobState(row[0], row[1])

    unknown = JobState("99")
    assert slurm_queue.newest([state(FINISHED), state(RUNNING), state(WAITING)]).job == "4"
    assert slurm_queue.newest([state(FINISHED), state(REQUEUED), state(NEVER)]).job == "4"
    assert slurm_queue.newest([state(FINISHED), unknown]).job == "1"
    assert slurm_queue.newest([unknown]).state == "UNKNOWN"
    cancelled = JobState("5", "CANCELLED")  # it never ran
    assert slurm_queue.newest([JobState("4", "CANCELLED", nodes="gpu1"), cancelled]).job == "4"
    assert slurm_queue.newest([unknown, cancelled]).job == "5"


def test_what_a_cancelled_job_had_waited_for_is_no_reason(fake):
    rows = [(job, "CANCELLED", "0", "0", "1", reason, "") for job, reason in (("6", "Dependency"), NEVER_SATISFIED)]
    fake.know(*rows)
    assert [state.reason for state in job_states(["6", "7"]).values()] == ["", "DependencyNeverSatisfied"]


def wait_until(condition, timeout_seconds: float = 60) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slurm
def test_real_slurm_answers_as_the_commands_above(slurm, tmp_path, monkeypatch):
    """A job that fails, an array of which one element waits, a job that waits for ever; then all are cancelled."""
    for name, value in slurm.variables().items():
        monkeypatch.setenv(name, value)
    done = slurm.sbatch("--mem=100", "--wrap", "exit 3", cwd=tmp_path)
    array = slurm.sbatch("--mem=100", "--array=0-2%2", "--wrap", "sleep 60", cwd=tmp_path)
    never = slurm.sbatch("--mem=100", f"--dependency=afterok:{done}", "--wrap", "true", cwd=tmp_path)
    ids = [done, f"{array}_0", f"{array}_2", never]
    wait_until(lambda: [job_states(ids)[job].state for job in ids] == ["FAILED", "RUNNING", "PENDING", "PENDING"])
    states = job_states(ids)
    assert states[done].exit_code == 3
    assert states[f"{array}_0"].nodes
    assert states[f"{array}_0"].start_time > 1e9
    slurm_queue.requeue(f"{array}_0")
    slurm_queue.delay_start(f"{array}_0", 300)
    assert (state := job_states(ids)[f"{array}_0"]).restarts == 1
    assert is_alive(state)
    slurm_queue.cancel([array, never])
    wait_until(lambda: not any(map(is_alive, job_states(ids).values())))
    with pytest.raises(InputError, match="Slurm refuses scontrol requeue 9999: Invalid job id specified"):
        slurm_queue.requeue("9999")
    slurm_queue.cancel(["9999"])
