"""One job on a real cluster: submitted, stopped in the middle, queued again, finished as if nothing had happened."""

import run_config
import tiny
from processes import run_processes, values
from user_commands import QUICK, RUN, results, status, submit

TASKS = 2
LONG = {"SOLVER.MAX_EPOCH": 40}  # of one step: long enough to be stopped on the way
ONE_MACHINE = {"TRAIN.BATCH_SIZE": TASKS * tiny.TINY["TRAIN.BATCH_SIZE"]}  # as two machines have it together
STOP_AT = 5


def steps_done(folder) -> int:
    return len(tiny.events(folder, "train_step")) if (folder / "events.jsonl").exists() else 0


def test_a_job_is_stopped_comes_back_and_finishes_bit_for_bit(slurm, data, tmp_path):
    folder, other = tmp_path / "run", tmp_path / "forked"
    (job,) = submit(data, folder, *QUICK, "--nodes", TASKS, keys=LONG, env=slurm.environ).jobs
    slurm.wait_until("step to be stopped at", lambda: steps_done(folder) >= STOP_AT, 60)
    slurm.run("scancel", "--signal=USR2", job)  # as Slurm does before the time limit, and where it preempts
    slurm.wait_for(job, "PENDING")
    assert STOP_AT <= steps_done(folder) < LONG["SOLVER.MAX_EPOCH"]
    values(run_processes(TASKS, run_config.run, data, other, (RUN, LONG, ONE_MACHINE)))  # while Slurm waits
    slurm.wait_for(job, "COMPLETED", timeout_seconds=120)
    assert [event["reason"] for event in tiny.events(folder, "stop")] == ["SIGUSR2"]
    assert len(tiny.events(folder, "train_step")) == LONG["SOLVER.MAX_EPOCH"]  # none of them twice
    assert tiny.losses(folder) == tiny.losses(other)
    assert results(folder) == results(other)
    (member,) = status(folder, slurm.environ)
    assert (member["state"]["state"], member["restarts"]) == ("COMPLETED", 1)
    assert [start["reason"] for start in member["starts"]] == ["stopped by SIGUSR2, after a checkpoint", "finished"]
