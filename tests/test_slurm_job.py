"""Submission to finished evaluation on a real local cluster, all of it by the commands that a user types."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import run_config
import submitit
import tiny
import torch
from processes import run_processes, values
from user_commands import (
    QUICK,
    REPOSITORY,
    RUN,
    about,
    check_refused,
    command,
    everything,
    results,
    status,
    submit,
    submit_words,
)

from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.launch.attempts import read_attempts
from revvideo.launch.submission import latest_submission

pytestmark = pytest.mark.slurm

FOUR_TASKS = ("--nodes", 2, "--tasks-per-node", 2)
ONE_MACHINE = {"TRAIN.BATCH_SIZE": 2 * tiny.TINY["TRAIN.BATCH_SIZE"]}  # as two machines have it together
ENDED_SECONDS = 180  # on a busy machine


@pytest.fixture(scope="module")
def forked(data, tmp_path_factory) -> Path:
    """The run folder of the same training by torchrun's variables, in four processes without Slurm."""
    folder = tmp_path_factory.mktemp("forked") / "run"
    values(run_processes(4, run_config.run, data, folder, (RUN, ONE_MACHINE), timeout_seconds=120))
    return folder


@pytest.fixture(scope="module")
def whole(slurm, data, tmp_path_factory) -> tuple[Path, tiny.Outcome]:
    """The run folder of a job of four ranks that has ended, and what its submission has said."""
    folder = tmp_path_factory.mktemp("whole") / "a run"
    said = tiny.done(command(*submit_words(data, folder, *FOUR_TASKS), env=slurm.environ, cwd=folder.parent))
    slurm.wait_for(latest_submission(folder).jobs[0], "COMPLETED", timeout_seconds=ENDED_SECONDS)
    return folder, said


@pytest.fixture
def blocked(tmp_path) -> Path:
    """A folder for PYTHONPATH with which torch cannot be imported."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    (folder / "torch.py").write_text('raise ImportError("torch is not for this machine")\n')
    return folder


def test_a_submission_says_what_it_has_found_and_how_to_go_on(whole):
    folder, said = whole
    (job,) = latest_submission(folder).jobs
    lines = said.out.splitlines()
    assert lines[0] == f"run folder: {folder}"
    assert lines[1].startswith("batch: 8 clips a step = 4 videos a machine")
    assert [line.partition(":")[0] for line in lines[2:4]] == ["train", "test"]
    assert lines[4].startswith("memory: ")
    assert "2 clips at a time" in lines[4]
    assert lines[5] == f"submitted job {job} (2 nodes x 2 processes, at most 0:10:00)"
    log = lines[6].removeprefix("log of rank 0: ")
    assert "checkpoint after step" in Path(log).read_text()
    assert lines[-1] == f"cancel: revvideo cancel '{folder}'"


def test_the_job_trains_and_evaluates_as_torchrun_does_bit_for_bit(whole, forked):
    folder, _ = whole
    assert tiny.losses(folder) == tiny.losses(forked)
    assert len(set(tiny.losses(folder))) == RUN["SOLVER.MAX_EPOCH"]
    mine, theirs = (
        torch.load(latest_checkpoint(run / "checkpoints"), weights_only=True)["model_state"] for run in (folder, forked)
    )
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert results(folder) == results(forked)


def test_the_run_folder_tells_what_ran_where_and_how_each_rank_has_ended(whole):
    folder, _ = whole
    submission = latest_submission(folder)
    cfg = run_config.load_config(folder / "config.yaml")
    assert (cfg.NUM_SHARDS, cfg.DIST.NUM_PROCESSES, cfg.NUM_GPUS, cfg.TRAIN.AUTO_RESUME) == (2, 2, 0, True)
    assert Path(cfg.OUTPUT_DIR) == folder
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["launcher"], environment["world_size"], environment["num_machines"]) == ("srun", 4, 2)
    found = environment["variables"]
    assert (found["SLURM_JOB_ID"], found["OMP_NUM_THREADS"], found["MASTER_ADDR"]) == (
        submission.jobs[0],
        "1",
        "127.0.0.1",
    )
    (start,) = read_attempts(submission.folder, submission.jobs)
    assert [(rank.rank, rank.node, rank.code) for rank in start.ranks] == [
        *((0, "127.0.0.1", 0), (1, "127.0.0.1", 0), (2, "127.0.0.2", 0), (3, "127.0.0.2", 0)),
    ]
    assert start.srun_code == 0
    assert submission.done_file(0).exists()


def test_status_and_logs_of_what_has_ended(whole, slurm):
    folder, _ = whole
    (member,) = status(folder, slurm.environ)
    assert (member["state"]["state"], member["restarts"], member["failure"]) == ("COMPLETED", 0, "")
    assert member["progress"]["step"] == member["progress"]["num_steps"] == len(tiny.losses(folder))
    assert member["progress"]["train"]["loss"] == tiny.losses(folder)[-1]
    test = results(folder)
    assert member["progress"]["test"]["top1_acc"] == test["top1_acc"]
    text = about("status", folder, env=slurm.environ)
    assert "COMPLETED" in text
    assert f"test        top-1 {test['top1_acc']:.2f}, top-5 {test['top5_acc']:.2f}" in text
    submission = latest_submission(folder)
    for rank in (0, 3):
        log = submission.log_file(submission.jobs[0], rank).read_text()
        assert about("logs", folder, "--rank", rank, "--lines", 0, env=slurm.environ) == log
        assert about("logs", folder, "--rank", rank, "--follow", env=slurm.environ).endswith(log[-200:])
    assert "nothing to cancel" in about("cancel", folder, env=slurm.environ)


def test_slurm_takes_what_a_dry_run_prints(slurm, data, tmp_path):
    jobs, folder = slurm.jobs(), tmp_path / "run"
    said = tiny.done(command(*submit_words(data, folder, *FOUR_TASKS, "--dry-run"), env=slurm.environ))
    assert said.out.startswith("#!/bin/bash\n")
    assert "memory: " in said.err
    script = tmp_path / "job.sbatch"
    script.write_text(said.out)
    slurm.run("sbatch", "--test-only", script)
    assert everything(tmp_path) == [script]
    assert slurm.jobs() == jobs


def test_where_torch_cannot_be_imported_a_job_is_submitted_that_runs(slurm, data, tmp_path, blocked):
    """sbatch hands PYTHONPATH on: --env takes it away from the job."""
    folder = tmp_path / "run"
    environ = slurm.environ | {"PYTHONPATH": str(blocked)}
    said = tiny.done(command(*submit_words(data, folder, "--env", "PYTHONPATH="), env=environ))
    assert "memory: not planned (ImportError: torch is not for this machine)\n" in said.out
    slurm.wait_for(latest_submission(folder).jobs[0], "COMPLETED", timeout_seconds=ENDED_SECONDS)
    assert (folder / "results.json").exists()


def test_a_sweep_finishes_and_a_point_that_fails_is_shown_so(slurm, data, tmp_path):
    folder = tmp_path / "run"
    sweep = "MODEL.NUM_CLASSES=6,7,8,2"  # labels are 0 .. 5
    submission = submit(data, folder, *QUICK, "--sweep", sweep, env=slurm.environ)
    # A client that follows the failing one comes to an end by itself.
    followed = about("logs", folder, "--point", 3, "--follow", env=slurm.environ)
    job = submission.jobs[0]
    assert f"job {job}_3 has ended with exit code 2 (wrong input)" in followed
    for point in range(3):
        slurm.wait_for(f"{job}_{point}", "COMPLETED", timeout_seconds=ENDED_SECONDS)
    members = status(folder, slurm.environ)
    assert [member["state"]["state"] for member in members] == ["COMPLETED"] * 3 + ["FAILED"]
    assert [(member["state"]["exit_code"], member["restarts"]) for member in members] == [(0, 0)] * 3 + [(2, 0)]
    assert "expected 0..1 (MODEL.NUM_CLASSES is 2)" in members[3]["failure"]
    text = about("status", folder, env=slurm.environ)
    rows = [line.split()[:4] for line in text.splitlines() if line[:1].isdecimal()]
    assert rows == [
        [str(point), str(classes), state, f"{job}_{point}"]
        for point, (classes, state) in enumerate(zip((6, 7, 8, 2), ["COMPLETED"] * 3 + ["FAILED"]))
    ]
    for point, member in enumerate(members):
        assert Path(member["run_folder"], "results.json").exists() == (point < 3)


def test_submitits_own_client_hears_of_a_crash_that_is_not_retried(slurm, data, tmp_path, blocked, monkeypatch):
    folder = tmp_path / "run"
    words = (*QUICK, "--max-restarts", 0, "--env", f"PYTHONPATH={blocked}")
    submission = submit(data, folder, *words, env=slurm.environ)
    (job,) = submission.jobs
    assert slurm.wait_for(job, "FAILED")["ExitCode"] == "1:0"
    for name, value in slurm.variables().items():
        monkeypatch.setenv(name, value)
    error = submitit.SlurmJob(submission.jobs_folder, job).exception()
    assert "ImportError: torch is not for this machine (exit code 1)" in str(error)
    (member,) = status(folder, slurm.environ)
    assert member["state"]["state"] == "FAILED"
    assert "failed, exit code 1: ImportError: torch is not for this machine" in member["failure"]
    log = about("logs", folder, "--follow", env=slurm.environ)
    assert f"job {job} has crashed once and is not started again (max_restarts 0)" in log


def test_a_chain_goes_on_until_all_is_done_and_then_ends_at_once(slurm, data, tmp_path):
    folder = tmp_path / "run"
    submission = submit(data, folder, *QUICK, "--chain", 2, env=slurm.environ)
    for job in submission.jobs:
        assert slurm.wait_for(job, "COMPLETED", timeout_seconds=ENDED_SECONDS)["ExitCode"] == "0:0"
    first, second = submission.jobs
    assert "nothing is left to do" in submission.log_file(second, 0).read_text()
    assert len(tiny.events(folder, "start")) == 1
    starts = read_attempts(submission.folder, submission.jobs)
    assert [(start.job, start.code, start.srun_code) for start in starts] == [(first, 0, 0), (second, 0, 0)]
    (member,) = status(folder, slurm.environ)
    assert (member["state"]["state"], member["restarts"]) == ("COMPLETED", 0)
    assert [job["state"] for job in member["jobs"]] == ["COMPLETED"] * 2


REFUSED = {  # options, keys, part of the message
    "partition": ([*QUICK, "--partition", "nosuch"], {}, "invalid partition specified: nosuch"),
    "GPUs": (
        [*QUICK, "--gpus-per-node", 3, "--tasks-per-node", 3],
        {"TRAIN.BATCH_SIZE": "12"},
        "Requested node configuration is not available",
    ),
    "config": (["--cfg", "nosuch.yaml"], {}, "config nosuch.yaml: no such file"),
    "run folder": ([], {"OUTPUT_DIR": "{tmp}/file/run"}, "{tmp}/file is a file"),
    "lists": ([], {"DATA.PATH_TO_DATA_DIR": "{tmp}/nosuch"}, "{tmp}/nosuch/train.csv"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_input_is_one_message_and_nothing_is_submitted(slurm, data, tmp_path, what):
    words, keys, message = REFUSED[what]
    keys = {key: value.format(tmp=tmp_path) for key, value in keys.items()}
    (tmp_path / "file").touch()
    jobs = slurm.jobs()
    check_refused(
        command(*submit_words(data, tmp_path / "run", *words, keys=keys), env=slurm.environ, cwd=tmp_path),
        message.format(tmp=tmp_path),
    )
    assert slurm.jobs() == jobs
    assert everything(tmp_path) == [tmp_path / "file"]


def test_no_slurm_on_path(slurm, data, tmp_path):
    environ = slurm.environ | {"PATH": str(Path(sys.executable).parent)}
    check_refused(command(*submit_words(data, tmp_path / "run"), env=environ), "no Slurm here: sbatch, srun, scontrol")
    assert everything(tmp_path) == []


def test_a_job_after_one_that_fails_is_cancelled_and_until_then_has_its_run_folder_alone(slurm, data, tmp_path):
    folder = tmp_path / "run"
    before = slurm.sbatch("--hold", "--mem=100", "--wrap=exit 3", "--output=/dev/null", cwd=tmp_path)
    (job,) = submit(data, folder, *QUICK, "--after", before, env=slurm.environ).jobs
    assert "PENDING (Dependency)" in about("status", folder, env=slurm.environ)
    jobs, files = list(slurm.jobs()), everything(tmp_path)
    again = command(*submit_words(data, folder), env=slurm.environ)
    check_refused(again, f"was submitted already and its job lives: {job} (PENDING); wait for its end, end it by")
    assert (list(slurm.jobs()), everything(tmp_path)) == (jobs, files)
    slurm.run("scontrol", "release", before)
    slurm.wait_for(job, "CANCELLED")
    assert "CANCELLED (DependencyNeverSatisfied)" in about("status", folder, env=slurm.environ)
    assert "nothing to cancel" in about("cancel", folder, env=slurm.environ)
    assert not (folder / "events.jsonl").exists()
    # It is nobody's any more.
    (later,) = submit(data, folder, *QUICK, "--max-restarts", 0, "--nodes", 2, env=slurm.environ).jobs
    assert "cancelled job" in about("cancel", folder, env=slurm.environ)
    slurm.wait_for(later, "CANCELLED")


@pytest.mark.parametrize("inside", ["a step of a job", "torchrun"])
def test_submitting_from_inside(slurm, data, tmp_path, inside):
    """What is around the submission has no part in the job."""
    folder = tmp_path / "run"
    words = submit_words(data, folder, *QUICK, "--nodes", 2)
    if inside == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1]
        tiny.done(command(*torchrun, *words, env=slurm.environ))
    else:
        line = shlex.join(["srun", "--mem-per-cpu=1000", sys.executable, *words])
        outer = slurm.sbatch("--mem=1000", "--gpus-per-node=1", "--wrap", line, cwd=tmp_path)
        slurm.wait_for(outer, "COMPLETED")
    submission = latest_submission(folder)
    ended = slurm.wait_for(submission.jobs[0], "COMPLETED", timeout_seconds=ENDED_SECONDS)
    assert (ended["NumNodes"], ended["MinMemoryNode"]) == ("2", "1G")
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["launcher"], environment["world_size"]) == ("srun", 2)
    assert "CUDA_VISIBLE_DEVICES" not in environment["variables"]
    assert (folder / "results.json").exists()


def test_a_requeued_job_runs_the_code_that_was_submitted(slurm, data, tmp_path):
    """Its checkout, from which it was submitted, is another one by then."""
    checkout, folder = tmp_path / "checkout", tmp_path / "run"
    for name in ("revvideo", "configs", "slurm"):
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = submit_words(data, folder, *QUICK, keys={"SOLVER.MAX_EPOCH": 40}, repository=checkout)
    tiny.done(command(*words, env=slurm.environ, cwd=checkout))
    (job,) = latest_submission(folder).jobs
    slurm.wait_until("third step", lambda: num_steps(folder) >= 3, ENDED_SECONDS)
    for file in [*checkout.rglob("*.py"), *checkout.rglob("*.yaml")]:
        file.write_text('raise RuntimeError("edited")\n')
    slurm.run("scancel", "--signal=USR2", job)
    ended = slurm.wait_for(job, "COMPLETED", timeout_seconds=ENDED_SECONDS)
    assert ended["Restarts"] == "1"
    assert [event["reason"] for event in tiny.events(folder, "stop")] == ["SIGUSR2"]
    assert num_steps(folder) == len(tiny.losses(folder)) == 80
    assert "edited" not in about("logs", folder, "--lines", 0, env=slurm.environ)


def num_steps(folder: Path) -> int:
    return len(tiny.events(folder, "train_step")) if (folder / "events.jsonl").exists() else 0


def test_a_checkpoint_is_evaluated(slurm, data, tmp_path, whole):
    trained, folder = whole[0], tmp_path / "run"
    checkpoint = latest_checkpoint(trained / "checkpoints")
    keys = {"TEST.CHECKPOINT_FILE_PATH": checkpoint}
    (job,) = submit(data, folder, *QUICK, "--test-only", env=slurm.environ, keys=keys).jobs
    slurm.wait_for(job, "COMPLETED", timeout_seconds=ENDED_SECONDS)
    assert results(folder) == results(trained)
    assert tiny.events(folder, "train_step") == []
    assert f"test        top-1 {results(trained)['top1_acc']:.2f}" in about("status", folder, env=slurm.environ)
