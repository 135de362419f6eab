"""The batch script of a job: what sbatch is given, and what bash makes of it. A stand-in for sbatch and srun is enough;
test_submit.py has the real ones."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from revvideo.errors import InputError
from revvideo.launch.batch_script import (
    check_script,
    check_slurm,
    environment_lines,
    make_executor,
    refusal,
    script_text,
    task_python,
)
from revvideo.launch.clean_environment import clean_environment
from revvideo.launch.resources import Resources
from revvideo.launch.snapshot import PACKAGE
from revvideo.launch.submission import Member, Submission

TWO_NODES = Resources(nodes=2, tasks_per_node=2)
ALL = Resources(
    **{"nodes": 16, "gpus_per_node": 8, "tasks_per_node": 8, "cpus_per_task": 12, "mem_gib": 1.5, "minutes": 4320},
    **{"partition": "gpu", "account": "vision", "qos": "high", "constraint": "h100", "exclude": "gpu[01-02]"},
    **{"comment": "two words", "job_name": "k400", "signal_seconds": 300},
)


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder of commands that stand first on PATH, Slurm's among them: they write what they get to NAME.txt."""
    folder = tmp_path / "bin"
    folder.mkdir()
    bodies = {
        "sbatch": 'eval "script=\\${$#}"; cat "$script" >"$0.txt"; env -0 >"$0.env"; echo Submitted batch job 17',
        "srun": 'printf "%s\\n" "$@" >"$0.txt"; env -0 >"$0.env"; exit ${SRUN_EXIT:-0}',
        **dict.fromkeys(("scontrol", "squeue", "scancel"), "exit 1"),
    }
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def environ_of(file: Path) -> dict[str, str]:
    return dict(each.split("=", 1) for each in file.read_text().split("\0") if each)


def submission(folder: Path, resources: Resources, num_members: int = 1) -> Submission:
    members = tuple(Member(str(folder / str(number))) for number in range(num_members))
    return Submission(folder / "launch/001", "slurm", members, resources)


def sbatch_options(text: str) -> dict[str, str]:
    """--KEY=VALUE of the #SBATCH lines, without their quotes."""
    lines = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("#SBATCH ")]
    return {name.removeprefix("--"): value for name, _, value in (line.partition("=") for line in lines)}


def options(folder: Path, resources: Resources, **more) -> dict[str, str]:
    return sbatch_options(script_text(make_executor(submission(folder, resources), **more), 1))


def test_what_is_asked_for(tmp_path, commands):
    asked = options(tmp_path, ALL)
    assert asked.pop("output") == str(tmp_path / "launch/001/jobs/%j_0_log.out")
    assert asked == {
        **{"nodes": "16", "gpus-per-node": "8", "ntasks-per-node": "8", "cpus-per-task": "12", "mem": "1536M"},
        **{"time": "4320", "partition": "gpu", "account": "vision", "qos": "high", "constraint": "h100"},
        **{"exclude": "gpu[01-02]", "comment": "two words", "job-name": "k400", "signal": "USR2@300"},
        **{"open-mode": "append", "requeue": ""},
    }


def test_what_is_not_asked_for_is_left_to_the_cluster(tmp_path, commands):
    """No memory, partition or GPUs of zero, no wckey that a site does not have; no second file for errors."""
    assert set(options(tmp_path, TWO_NODES)) == {
        *("nodes", "ntasks-per-node", "cpus-per-task", "time", "job-name", "signal", "open-mode", "requeue", "output"),
    }


def test_the_signal_is_the_one_that_the_job_listens_to(tmp_path, commands, monkeypatch):
    """submitit has read SUBMITIT_PREEMPT_SIGNAL when it was imported."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    monkeypatch.setattr(SlurmJobEnvironment, "USR_SIG", "USR1")
    assert options(tmp_path, TWO_NODES)["signal"] == "USR2@120"


def test_a_dependency_that_fails_ends_the_job(tmp_path, commands):
    asked = options(tmp_path, TWO_NODES, dependency="afterok:5", all_or_none=True)
    assert (asked["dependency"], asked["kill-on-invalid-dep"]) == ("afterok:5", "yes")
    assert "kill-on-invalid-dep" not in options(tmp_path, TWO_NODES, dependency="afterany:5")


@pytest.mark.parametrize("num_members", [1, 3])
def test_the_text_is_what_submitit_submits(tmp_path, commands, num_members):
    """Fails when a new submitit makes its script in another way."""
    executor = make_executor(submission(tmp_path, ALL, num_members), "afterany:3")
    text = script_text(executor, num_members)
    jobs = executor.submit_array([dict] * num_members)
    assert (commands / "sbatch.txt").read_text() == text
    assert [job.job_id for job in jobs] == (["17"] if num_members == 1 else ["17_0", "17_1", "17_2"])
    assert sbatch_options(text).get("array") == (None if num_members == 1 else "0-2%3")
    assert script_text(executor, num_members) == text


def test_what_srun_starts(tmp_path, commands):
    """Words that other parts of the launcher, and the starter, rely on."""
    text = script_text(make_executor(submission(tmp_path, ALL)), 1)
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    words = shlex.split(line)
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=12", "--unbuffered"} <= set(words)
    assert words[words.index("--output") + 1] == str(tmp_path / "launch/001/jobs/%j_%t_log.out")
    assert "--error" not in words
    start = tmp_path / "launch/001/code/revvideo/launch/start.py"
    jobs = str(tmp_path / "launch/001/jobs")
    assert words[-7:] == [sys.executable, "-u", str(start), "-u", "-m", "submitit.core._submit", jobs]
    assert words[words.index(sys.executable) - 1] == "$block"
    assert "block=$(env --block-signal=USR2 true 2>/dev/null && echo env --block-signal=USR2)" in text.splitlines()


def test_the_starter_is_where_the_script_looks_for_it(tmp_path):
    start = shlex.split(task_python(submission(tmp_path, TWO_NODES)))[-1]
    assert (PACKAGE.parent / Path(start).relative_to(tmp_path / "launch/001/code")).is_file()


def run_lines(folder: Path, resources: Resources, **variables: str) -> dict[str, str]:
    """The environment that the lines of the script make of `variables`."""
    script = "\n".join([*environment_lines(submission(folder, resources)), "env -0"])
    environ = {"PATH": os.environ["PATH"]} | variables
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(each.split("=", 1) for each in done.stdout.split("\0") if each)


def test_values_of_variables_are_not_read_by_the_shell(tmp_path):
    values = {"QUOTE": 'it\'s "$HOME" `id` \\', "LINES_": "one\ntwo; exit 3", "EMPTY": "", "OMP_NUM_THREADS": "4"}
    found = run_lines(tmp_path / "a b", Resources(env=values))
    assert {name: found[name] for name in values} == values


def test_an_outer_launcher_leaves_nothing(tmp_path):
    outer = {"RANK": "3", "MASTER_ADDR": "x", "MASTER_PORT": "1", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "1"}
    found = run_lines(tmp_path, TWO_NODES, **outer, KEPT="1")
    assert not set(outer) & set(found)
    assert found["KEPT"] == "1"


def test_the_snapshot_comes_before_every_other_code(tmp_path):
    code = str(submission(tmp_path, TWO_NODES).code_folder)
    assert run_lines(tmp_path, TWO_NODES)["PYTHONPATH"] == code
    assert run_lines(tmp_path, TWO_NODES, PYTHONPATH="/a:/b")["PYTHONPATH"] == f"{code}:/a:/b"
    loads_module = dataclasses.replace(TWO_NODES, setup=("export PYTHONPATH=/module",))
    assert run_lines(tmp_path, loads_module)["PYTHONPATH"] == f"{code}:/module"
    assert run_lines(tmp_path, Resources(env={"PYTHONPATH": "/mine"}))["PYTHONPATH"] == f"{code}:/mine"


def test_setup_comes_first_and_its_options_end_with_it(tmp_path):
    setup = ("set -eu", "export A=setup B=setup")
    found = run_lines(tmp_path, Resources(setup=setup, env={"B": "env"}, interface="ib0"))
    assert (found["A"], found["B"]) == ("setup", "env")
    assert found["NCCL_SOCKET_IFNAME"] == found["GLOO_SOCKET_IFNAME"] == "ib0"


def run_script(folder: Path, commands: Path, prologue: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a whole script; its modules are a stand-in that notes its arguments and behaves as `prologue` says."""
    made = submission(folder, Resources(setup=("set -eu",)))
    start = made.code_folder / "revvideo/launch/start.py"
    start.parent.mkdir(parents=True)
    noted = commands / "epilogue.json"
    start.write_text(
        f"import json, sys\nif 'revvideo.launch.prologue' in sys.argv:\n    {prologue}\n"
        f"else:\n    json.dump(sys.argv[1:], open({str(noted)!r}, 'w'))\n    sys.exit(5)\n"
    )
    text = script_text(make_executor(made), 1)
    return subprocess.run(["bash", "-c", text], env=os.environ | variables, capture_output=True, text=True)


def test_the_tasks_get_the_meeting_point_and_the_epilogue_their_exit_code(tmp_path, commands):
    done = run_script(tmp_path, commands, "print(\"export MASTER_ADDR='a b' MASTER_PORT=1\")", SRUN_EXIT="7")
    environ = environ_of(commands / "srun.env")
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("a b", "1")
    assert (environ["SUBMITIT_EXECUTOR"], environ["SLURM_EXPORT_ENV"]) == ("slurm", "ALL")
    folder = str(tmp_path / "launch/001")
    assert json.loads((commands / "epilogue.json").read_text()) == ["-m", "revvideo.launch.epilogue", folder, "7"]
    assert done.returncode == 5


def test_without_a_meeting_point_nothing_starts(tmp_path, commands):
    done = run_script(tmp_path, commands, "sys.exit('nobody resolves gpu01')")
    assert done.returncode == 1
    assert "nobody resolves gpu01" in done.stderr
    assert not (commands / "srun.txt").exists()


def test_sbatch_sees_nothing_of_an_outer_job(tmp_path, commands, monkeypatch):
    outer = {
        **{"SLURM_JOB_ID": "5", "SLURM_MEM_PER_CPU": "100", "SLURMD_NODENAME": "gpu01", "SRUN_CPUS_PER_TASK": "1"},
        **{"RANK": "1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "SUBMITIT_EXECUTOR": "local"},
        **{"CUDA_VISIBLE_DEVICES": "3", "PMIX_RANK": "1"},
    }
    kept = {"SLURM_CONF": "/etc/own.conf", "SBATCH_ACCOUNT": "vision", "MY_RANK": "1", "NCCL_DEBUG": "INFO"}
    for name, value in (outer | kept).items():
        monkeypatch.setenv(name, value)
    check_script("#!/bin/bash\n")
    seen = environ_of(commands / "sbatch.env")
    assert not set(outer) & set(seen)
    assert {name: seen[name] for name in kept} == kept
    with clean_environment(keep=["CUDA_VISIBLE_DEVICES"]):
        assert "RANK" not in os.environ
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert {name: os.environ[name] for name in outer} == outer


def test_what_is_asked_for_wins_over_the_variables_of_sbatch(tmp_path, commands, monkeypatch):
    """sbatch itself would put them above the lines of the script."""
    for name in ("PARTITION", "ACCOUNT", "TIMELIMIT", "NO_REQUEUE", "SIGNAL", "MEM_PER_CPU", "RESERVATION"):
        monkeypatch.setenv(f"SBATCH_{name}", "x")
    check_script(script_text(make_executor(submission(tmp_path, Resources(partition="gpu", mem_gib=1))), 1))
    seen = environ_of(commands / "sbatch.env")
    assert {name for name in seen if name.startswith("SBATCH_")} == {"SBATCH_ACCOUNT", "SBATCH_RESERVATION"}
    assert os.environ["SBATCH_PARTITION"] == "x"


def test_a_refusal_is_slurms_reason_in_one_line(tmp_path, commands):
    (commands / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: No such thing' >&2\necho >&2\nexit 1\n")
    text = script_text(make_executor(submission(tmp_path, ALL)), 1)
    with pytest.raises(
        InputError, match=r"Slurm refuses the job: No such thing \(asked for: .*--partition=gpu"
    ) as error:
        check_script(text)
    assert "nothing was submitted" in str(error.value)
    assert "\n" not in str(error.value)
    assert "--gpus-per-node=8" in str(error.value)
    assert "which is 96 cores a node)" in str(error.value)
    assert "were cancelled: 17, 18" in str(refusal("no", text, cancelled=["17", "18"]))


def test_without_slurm_it_says_what_is_missing(commands, monkeypatch):
    check_slurm()
    (commands / "srun").unlink()
    monkeypatch.setenv("PATH", str(commands))
    with pytest.raises(InputError, match=r"no Slurm here: srun not on PATH.*--cluster local"):
        check_slurm()
