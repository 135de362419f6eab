"""Submitting: what lies in the run folder, what is refused, what runs; test_submit_slurm.py has the real Slurm."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launched import (
    HERE,
    Reporting,
    everything,
    path_without_slurm,
    reports,
    run_config,
    submit_run,
    sweep,
    wait_until,
)

from revvideo.config import load_config
from revvideo.errors import InputError
from revvideo.launch import local_executor, slurm_queue
from revvideo.launch import submit as submit_module
from revvideo.launch.job_state import JobState
from revvideo.launch.local_jobs import local_processes
from revvideo.launch.resources import Resources
from revvideo.launch.submission import latest_submission
from revvideo.launch.submit import submit

TWO_TASKS = Resources(tasks_per_node=2, minutes=5)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    """This process finds no Slurm, also where it is installed."""
    monkeypatch.setenv("PATH", path_without_slurm(tmp_path / "bin"))


# In this process: what every cluster has in common


def test_what_lies_in_the_run_folder(tmp_path, no_slurm):
    run = tmp_path / "a b" / "run"
    made = submit_run(run, command=["revvideo", "submit"], cfg_name="demo/REV_MVIT_DEMO")
    assert made.folder == run / "launch/001"
    assert latest_submission(run) == made
    assert (made.command, made.cfg_name, made.cluster) == (("revvideo", "submit"), "demo/REV_MVIT_DEMO", "debug")
    assert load_config(made.config_file(0)) == run_config(run)
    assert (made.code_folder / "revvideo/launch/submit.py").is_file()
    assert {path.name for path in (run / "launch").iterdir()} == {"001"}  # the lock is gone
    assert set(reports(made.folder)) == {"0.0"}
    assert submit_run(run).folder == run / "launch/002"
    assert len(list((run / "launch").iterdir())) == 2


def test_debug_runs_each_point_of_a_sweep_here(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("A", "0")  # so that it is restored
    run = tmp_path / "run"
    made = submit(sweep(run), Resources(env={"A": "1"}), run_folder=run, cluster="debug", make_job=Reporting)
    found = reports(made.folder)
    assert set(found) == {"0.0", "1.0", "2.0"}
    assert found["2.0"]["environ"]["A"] == "1"
    assert found["2.0"]["environ"]["CUDA_VISIBLE_DEVICES"] == "1"
    assert "RANK" not in found["2.0"]["environ"]
    assert [member.values["SOLVER.BASE_LR"] for member in latest_submission(run).members] == ["0.1", "0.2", "0.3"]


def test_a_dry_run_leaves_nothing(tmp_path, no_slurm, capsys):
    run = tmp_path / "run"
    made = submit_run(run, TWO_TASKS, "local", dry_run=True)
    assert made.jobs == ()
    assert str(run / "launch/001/code") in capsys.readouterr().out
    assert not run.exists()


@pytest.mark.parametrize(
    ("resources", "more", "message"),
    [
        (Resources(), {"cluster": "slrum"}, "--cluster slrum: expected one of slurm, local, debug"),
        (Resources(), {"cluster": "slurm"}, "no Slurm here: sbatch.*--cluster local"),
        (Resources(nodes=2), {"cluster": "local"}, "--nodes 2"),
        (TWO_TASKS, {"cluster": "debug"}, "one process, not in 2"),
        (Resources(), {"chain": 2}, "--chain need Slurm"),
        (Resources(), {"after": "3", "cluster": "local"}, "--after and --chain"),
        (Resources(), {"chain": 0}, "--chain 0"),
    ],
)
def test_what_cannot_be_submitted_leaves_nothing(tmp_path, no_slurm, resources, more, message):
    with pytest.raises(InputError, match=message):
        submit_run(tmp_path / "run", resources, **more)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("UNKNOWN", "does not know this job"),
        ("FAILED", "is FAILED and will not succeed"),
        ("CANCELLED", "is CANCELLED"),
    ],
)
def test_nothing_waits_for_a_job_that_will_not_succeed(tmp_path, monkeypatch, state, message):
    monkeypatch.setattr(submit_module, "check_slurm", lambda: None)
    monkeypatch.setattr(slurm_queue, "job_states", lambda jobs: {job: JobState(job, state) for job in jobs})
    with pytest.raises(InputError, match=f"--after 3: .*{message}"):
        submit_run(tmp_path / "run", cluster="slurm", after="3")
    assert not (tmp_path / "run").exists()


def test_a_sweep_does_not_run_all_at_once_on_this_machine(tmp_path):
    with pytest.raises(InputError, match="3 points would run all at once"):
        submit(sweep(tmp_path), Resources(), run_folder=tmp_path, cluster="local", make_job=Reporting)
    assert everything(tmp_path) == []


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("here already")
    for folder in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(InputError, match=r"cannot be written .*choose another OUTPUT_DIR"):
            submit_run(folder)
    with pytest.raises(InputError, match="replace %"):
        submit_run(tmp_path / "50%")
    assert everything(tmp_path) == ["file"]


def test_what_fails_on_the_way_leaves_no_half_of_it(tmp_path, monkeypatch):
    def full(folder):
        folder.mkdir()
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    (tmp_path / "kept").write_text("")
    monkeypatch.setattr(submit_module, "copy_code", full)
    with pytest.raises(InputError, match="No space left on device"):
        submit_run(tmp_path)
    assert everything(tmp_path) == ["kept"]


def lock(run: Path, host: str, pid: int) -> Path:
    (run / "launch").mkdir(parents=True)
    path = run / "launch/lock"
    path.write_text(json.dumps({"host": host, "pid": pid}))
    return path


@pytest.mark.parametrize("host", [socket.gethostname(), "other"])
def test_one_submission_at_a_time(tmp_path, host):
    path = lock(tmp_path, host, os.getpid())
    before = path.read_text()
    with pytest.raises(InputError, match=f"lock {path}: .*{os.getpid()}"):
        submit_run(tmp_path)
    assert everything(tmp_path) == ["launch", "launch/lock"]
    assert path.read_text() == before


def test_the_lock_of_a_dead_process_is_nobodys(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock(tmp_path, socket.gethostname(), dead.pid)
    assert submit_run(tmp_path).folder.is_dir()
    assert {path.name for path in (tmp_path / "launch").iterdir()} == {"001"}


def test_of_two_that_find_a_dead_lock_one_gets_it(tmp_path, monkeypatch):
    """The other has taken it between our look and our rename: it keeps it."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    path, faster = lock(tmp_path, socket.gethostname(), dead.pid), json.dumps({"host": "other", "pid": 1})

    def may_live(owner: str) -> bool:
        path.write_text(faster)
        return False

    monkeypatch.setattr("revvideo.launch.lock._may_live", may_live)
    with pytest.raises(InputError, match="another submission"):
        submit_run(tmp_path)
    assert path.read_text() == faster
    assert everything(tmp_path) == ["launch", "launch/lock"]


def test_a_run_that_lives_is_not_submitted_again(tmp_path, monkeypatch):
    """Neither by the folder of its sweep nor by its own."""
    made = submit(sweep(tmp_path), Resources(), run_folder=tmp_path, cluster="debug", make_job=Reporting)
    record = made.folder / "submission.json"
    record.write_text(record.read_text().replace('"debug"', '"slurm"').replace(made.jobs[0], "17"))
    asked = []

    def job_states(ids):
        asked.extend(ids)
        return {job: JobState(job, "PENDING" if job == "17_1" else "COMPLETED") for job in ids}

    monkeypatch.setattr(slurm_queue, "job_states", job_states)
    with pytest.raises(InputError, match=rf"its job lives: 17_1 \(PENDING\).*revvideo cancel {tmp_path}"):
        submit_run(tmp_path)
    assert set(asked) == {"17_0", "17_1", "17_2"}
    with pytest.raises(InputError, match=rf"lives: 17_1 \(PENDING\).*revvideo cancel {tmp_path}/0.2"):
        submit_run(tmp_path / "0.2")
    assert submit_run(tmp_path / "0.1").jobs  # its point has ended
    assert submit_run(tmp_path / "other").jobs
    assert {path.name for path in (tmp_path / "launch").iterdir()} == {"001"}


def test_a_point_that_runs_alone_keeps_its_sweep_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(submit_module, "refuse_if_alive", lambda folder: seen.append(folder))
    seen = []
    submit(sweep(tmp_path), Resources(), run_folder=tmp_path, cluster="debug", make_job=Reporting)
    assert seen == [tmp_path, *(tmp_path / rate for rate in ("0.1", "0.2", "0.3"))]


def test_submitting_needs_no_torch():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'torchcodec']))\n"
    words = [sys.executable, "-c", blocked + "import revvideo.launch.submit, revvideo.launch.prologue"]
    subprocess.run(words, cwd=HERE.parent, check=True)


# On this machine, in the background

CLIENT = """
import functools, sys
from pathlib import Path
from launched import Reporting, run_config
from revvideo.launch.resources import Resources
from revvideo.launch.submit import submit
run = Path(sys.argv[1])
made = submit([(run_config(run), {})], Resources(tasks_per_node=2, minutes=5, setup=("export A=1",)), run_folder=run,
    cluster="local", make_job=functools.partial(Reporting, waits=True))
print(made.jobs[0])
sys.stdin.read()
"""


def test_a_local_job_outlives_its_client_and_its_terminal(tmp_path, no_slurm):
    """Ctrl-C, the end of the terminal and a closed pipe reach the client's session; the job has another."""
    run = tmp_path / "run 1"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", CLIENT, run], cwd=HERE.parent, **pipes) as client:
        job = client.stdout.readline().strip()
        folder = run / "launch/001"
        try:
            assert latest_submission(run).jobs == (job,)
            wait_until(lambda: len(reports(folder)) == 2)
            with pytest.raises(InputError, match=rf"its job lives: {job} \(RUNNING\)"):
                submit_run(run, TWO_TASKS, "local")
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
                os.killpg(client.pid, number)
            assert client.stdout.read() == ""  # nobody else holds the pipe open
            client.wait()
            assert len(local_processes(latest_submission(run), job)) == 3
        finally:
            (folder / "go").touch()
        found = reports(folder)
    wait_until(lambda: not local_processes(latest_submission(run), job))
    assert [(found[name]["rank"], found[name]["world_size"]) for name in ("0.0", "0.1")] == [(0, 2), (1, 2)]
    assert found["0.0"]["master"] == found["0.1"]["master"]
    assert found["0.0"]["session"] != client.pid
    assert found["0.0"]["code"] == str(folder / "code/revvideo/__init__.py")  # not the client's working directory
    assert found["0.0"]["cwd"] == str(HERE.parent)
    assert found["0.0"]["environ"]["A"] == "1"
    assert found["0.0"]["blocks_usr2"] == found["0.1"]["blocks_usr2"]
    assert {path.name for path in (folder / "jobs").glob("*_log.*")} == {f"{job}_0_log.out", f"{job}_1_log.out"}


def test_a_local_job_that_cannot_start_says_so(tmp_path, monkeypatch):
    def submit_command(*args):
        raise OSError("no more processes")

    monkeypatch.setattr("submitit.LocalExecutor._submit_command", submit_command)
    with pytest.raises(InputError, match="could not be started on this machine: OSError: no more processes"):
        submit_run(tmp_path / "run", TWO_TASKS, "local")
    assert not (tmp_path / "run").exists()


def test_a_local_job_takes_the_gpus_that_are_ours(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,MIG-1/2,6")
    assert local_executor._gpu_lines(2) == ["export CUDA_VISIBLE_DEVICES=4,MIG-1/2"]
    assert local_executor._gpu_lines(0) == []
    with pytest.raises(InputError, match="at most 3"):
        local_executor._gpu_lines(4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local_executor._gpu_lines(2) == []
