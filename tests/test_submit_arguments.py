"""The command line of `revvideo submit`: what is handed on to be submitted, and what is refused, without Slurm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from submitting import catch_submissions, submit_words

from revvideo.cli.submit import announcement
from revvideo.errors import InputError
from revvideo.launch.arguments import OPTIONS
from revvideo.launch.parse import parse_memory, parse_minutes
from revvideo.launch.resources import Resources
from revvideo.launch.submission import Member, Submission

REPOSITORY = Path(__file__).resolve().parents[1]
KINETICS = "Kinetics/REV_MVIT_B_16x4_CONV"


@pytest.fixture
def caught(monkeypatch):
    return catch_submissions(monkeypatch)


def refused(outcome: tiny.Outcome, *parts: str) -> None:
    """One message, with all of `parts`, and exit code 2."""
    assert outcome.code == 2, outcome.err
    (message,) = [line for line in outcome.err.splitlines() if line.startswith("revvideo: error: ")]
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in message


# Values


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:00", 90),
        ("0:30", 1),
        ("72:00:00", 4320),
        ("1:30:20", 91),
        ("3-0", 4320),
        ("3-12:30", 5070),
        ("3-00:00:01", 4321),
    ],
)
def test_times_as_slurm_writes_them(text, minutes):
    assert parse_minutes(text, "--time") == minutes


@pytest.mark.parametrize("text", ["", "0", "0:00", "1h", "-5", "1:2:3:4", "1-2:3:4:5", "UNLIMITED", "3-"])
def test_other_times_are_refused(text):
    with pytest.raises(InputError, match=r"--time is .*; expected a time limit"):
        parse_minutes(text, "--time")


@pytest.mark.parametrize(
    ("text", "gib"), [("64G", 64), ("64GiB", 64), ("64gb", 64), ("2048", 2), ("512M", 0.5), ("1.5T", 1536)]
)
def test_memory(text, gib):
    assert parse_memory(text, "--mem") == gib


@pytest.mark.parametrize("text", ["", "0", "-1G", "64X", "G", "inf", "1e3"])
def test_other_memory_is_refused(text):
    with pytest.raises(InputError, match=r"--mem is .*; expected the memory of a node"):
        parse_memory(text, "--mem")


# What is handed on


def test_the_command_of_the_readme(caught):
    words = ["--nodes", 16, "--gpus-per-node", 8, "--partition", "gpu", "--time", "72:00:00", "--no-check"]
    outcome = tiny.done(tiny.command("submit", "--cfg", f"configs/{KINETICS}.yaml", *words))
    resources, cfg = caught.resources, caught.cfg
    assert (resources.nodes, resources.gpus_per_node, resources.tasks_per_node) == (16, 8, 8)
    assert (resources.minutes, resources.partition) == (4320, "gpu")
    assert (cfg.NUM_SHARDS, cfg.NUM_GPUS, cfg.TRAIN.AUTO_RESUME) == (16, 8, True)
    assert Path(cfg.OUTPUT_DIR) == caught.options["run_folder"] == Path.cwd() / "runs/REV_MVIT_B_16x4_CONV"
    assert "512 clips a step" in outcome.out
    assert "in each of 128 processes (one a GPU)" in outcome.out
    assert caught.options["cfg_name"] == f"configs/{KINETICS}.yaml"
    for line in ("submitted job 17", "revvideo status", "revvideo logs", "revvideo cancel", "17_0_log.out"):
        assert line in outcome.out


def test_every_option_arrives(caught, tmp_path):
    texts = {
        "nodes": ("2", 2),
        "gpus_per_node": ("0", 0),
        "tasks_per_node": ("2", 2),
        "cpus_per_task": ("3", 3),
        "mem_gib": ("4G", 4),
        "minutes": ("10", 10),
        "signal_seconds": ("45", 45),
        "max_restarts": ("0", 0),
        "backoff_seconds": ("7", 7),
        "interface": ("eth0", "eth0"),
        "comment": ("two words", "two words"),
    }
    words = [word for option in OPTIONS for word in (option.flag, texts.get(option.field, ("some",))[0])]
    lists = ["--setup", "module load cuda", "--setup", "ulimit -n 4096", "--env", "A=1", "--env", "B=x=y z"]
    tiny.done(submit_words(tmp_path / "run", *words, *lists))
    for option in OPTIONS:
        assert getattr(caught.resources, option.field) == texts.get(option.field, ("", "some"))[1]
    assert caught.resources.setup == ("module load cuda", "ulimit -n 4096")
    assert caught.resources.env == {"A": "1", "B": "x=y z", "OMP_NUM_THREADS": "3"}
    assert (caught.cfg.NUM_SHARDS, caught.cfg.DIST.NUM_PROCESSES, caught.cfg.NUM_GPUS) == (2, 2, 0)


def test_the_config_says_what_nothing_else_does(caught, tmp_path):
    tiny.done(submit_words(tmp_path / "run", "NUM_SHARDS", 3, "DIST.NUM_PROCESSES", 2))
    assert (caught.resources.nodes, caught.resources.gpus_per_node, caught.resources.tasks_per_node) == (3, 0, 2)
    tiny.done(submit_words(tmp_path / "run", "NUM_SHARDS", 3, "NUM_GPUS", 4, "DIST.NUM_PROCESSES", 2))
    assert (caught.resources.nodes, caught.resources.gpus_per_node, caught.resources.tasks_per_node) == (3, 4, 4)
    tiny.done(submit_words(tmp_path / "run", "--cluster", "local", "NUM_SHARDS", 3))
    assert caught.resources.nodes == caught.cfg.NUM_SHARDS == 1
    tiny.done(submit_words(tmp_path / "run", "--cluster", "debug", "NUM_SHARDS", 3, "NUM_GPUS", 4))
    assert (caught.resources.num_tasks, caught.cfg.NUM_GPUS) == (1, 1)


def test_what_the_launcher_decides_wins_over_the_config(caught, tmp_path):
    words = ["TRAIN.AUTO_RESUME", False, "SHARD_ID", 1, "NUM_SHARDS", 2, "DIST.INIT_METHOD", "tcp://a:1"]
    tiny.done(submit_words(tmp_path / "run", *words, "--nodes", 1))
    cfg = caught.cfg
    assert (cfg.TRAIN.AUTO_RESUME, cfg.SHARD_ID, cfg.NUM_SHARDS, cfg.DIST.INIT_METHOD) == (True, 0, 1, "")


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 0, "1"), (9, 8, "1"), (12, 8, "4"), (2, 8, "1")])
def test_threads_of_a_process_are_the_cores_that_the_workers_leave(caught, tmp_path, cores, workers, threads):
    outcome = submit_words(tmp_path / "run", "--cpus-per-task", cores, "DATA_LOADER.NUM_WORKERS", workers)
    assert caught.resources.env["OMP_NUM_THREADS"] == threads
    assert (f"give --cpus-per-task {workers + 1}" in tiny.done(outcome).out) == (cores < workers + 1)


def test_cores_are_for_the_process_and_its_workers(caught, tmp_path):
    tiny.done(submit_words(tmp_path / "run", "DATA_LOADER.NUM_WORKERS", 3))
    assert (caught.resources.cpus_per_task, caught.resources.env["OMP_NUM_THREADS"]) == (4, "1")
    tiny.done(submit_words(tmp_path / "run", "DATA_LOADER.NUM_WORKERS", 1, "--profile", "cpu"))
    assert caught.resources.cpus_per_task == 4  # the profile's
    tiny.done(submit_words(tmp_path / "run", "--cpus-per-task", 6, "DATA_LOADER.NUM_WORKERS", 3, "--profile", "cpu"))
    assert (caught.resources.cpus_per_task, caught.resources.env["OMP_NUM_THREADS"]) == (6, "3")


def test_threads_that_are_given_stay(caught, tmp_path):
    tiny.done(submit_words(tmp_path / "run", "--cpus-per-task", 4, "--env", "OMP_NUM_THREADS=2"))
    assert caught.resources.env == {"OMP_NUM_THREADS": "2"}


def test_test_only_evaluates_and_does_not_train(caught, tmp_path):
    tiny.done(submit_words(tmp_path / "run", "--test-only", "TEST.ENABLE", False))
    assert (caught.cfg.TRAIN.ENABLE, caught.cfg.TEST.ENABLE) == (False, True)


def test_after_and_chain_arrive(caught, tmp_path):
    outcome = tiny.done(submit_words(tmp_path / "run", "--after", "12_3", "--chain", 3))
    assert (caught.options["after"], caught.options["chain"]) == ("12_3", 3)
    assert "17, 18, 19" in outcome.out


def test_a_short_time_limit_leaves_half_of_it_before_the_signal(caught, tmp_path):
    tiny.done(submit_words(tmp_path / "run", "--time", 1))
    assert caught.resources.signal_seconds == 30
    tiny.done(submit_words(tmp_path / "run", "--time", 600))
    assert caught.resources.signal_seconds == 120


def test_an_output_dir_on_the_command_line_counts_also_if_it_is_the_default(caught, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.done(tiny.command("submit", "--cfg", KINETICS, "--no-check", "OUTPUT_DIR", "."))
    assert caught.options["run_folder"] == tmp_path
    tiny.done(tiny.command("submit", "--cfg", KINETICS, "--no-check"))
    assert caught.options["run_folder"] == tmp_path / "runs/REV_MVIT_B_16x4_CONV"


def test_a_sweep_has_a_folder_a_point_and_a_table(caught, tmp_path):
    run = tmp_path / "sweep"
    words = ["--sweep", "SOLVER.BASE_LR=1e-3,3e-4", "--sweep", "TRAIN.BATCH_SIZE=2,4"]
    outcome = tiny.done(submit_words(run, *words, "SOLVER.BASE_LR", 1))
    assert [cfg.SOLVER.BASE_LR for cfg, _ in caught.cfgs] == [1e-3, 1e-3, 3e-4, 3e-4]
    assert [cfg.TRAIN.BATCH_SIZE for cfg, _ in caught.cfgs] == [2, 4, 2, 4]
    assert [values["SOLVER.BASE_LR"] for _, values in caught.cfgs] == ["1e-3", "1e-3", "3e-4", "3e-4"]
    assert len({cfg.OUTPUT_DIR for cfg, _ in caught.cfgs}) == 4
    assert all(Path(cfg.OUTPUT_DIR).parent == run for cfg, _ in caught.cfgs)
    assert "4 runs of 1 node x 1 process" in outcome.out
    assert "BASE_LR=3e-4_BATCH_SIZE=2: batch: 2 clips a step" in outcome.out
    for number, (cfg, _) in enumerate(caught.cfgs):
        (line,) = [line for line in outcome.out.splitlines() if line.startswith(f"17_{number} ")]
        assert cfg.OUTPUT_DIR in line
        assert f"17_{number}_0_log.out" in line


def test_the_announcement_quotes_for_the_shell(tmp_path):
    folder = tmp_path / "a run"
    submission = Submission(folder / "launch/001", "slurm", (Member(str(folder)),), Resources(), jobs=("5",))
    assert f"cancel: revvideo cancel '{folder}'" in announcement(submission)


# What is refused

WRONG = {
    "--nodes is '0'": ["--nodes", 0],
    "--nodes is 'two'": ["--nodes", "two"],
    "--gpus-per-node is '-1'": ["--gpus-per-node=-1"],
    "--time is 'soon'": ["--time", "soon"],
    "--mem is 'much'": ["--mem", "much"],
    "--cluster is 'slrum'": ["--cluster", "slrum"],
    "--chain is '0'": ["--chain", 0],
    "--after is 'the last'": ["--after", "the last"],
    "--env is 'A'": ["--env", "A"],
    "--env is '1A=2'": ["--env", "1A=2"],
    "--env sets RANK": ["--env", "RANK=0"],
    "--interface is 'a b'": ["--interface", "a b"],
    "--job-name is empty": ["--job-name", ""],
    "--partition is 'a\\nb'": ["--partition", "a\nb"],
    "--tasks-per-node is 2 with --gpus-per-node 4": ["--gpus-per-node", 4, "--tasks-per-node", 2],
    "--signal-seconds is 600, but the time limit is 600 s": ["--time", 10, "--signal-seconds", 600],
    "expected at most 65535": ["--time", "9-0", "--signal-seconds", 70000],
    "--nodes is 2, but --cluster local": ["--cluster", "local", "--nodes", 2],
    "--tasks-per-node 2: --cluster debug": ["--cluster", "debug", "--tasks-per-node", 2],
    "--num_shards 2: ": ["--num_shards", 2],
    "--init_method tcp://a:1: ": ["--init_method", "tcp://a:1"],
    "--profile is 'gpu9'": ["--profile", "gpu9"],
    "--sweep names the unknown key SOLVER.LR": ["--sweep", "SOLVER.LR=1"],
    "unknown key TRIAN.ENABLE": ["TRIAN.ENABLE", False],
    "TRAIN.BATCH_SIZE is 4; expected a multiple of the 3": ["--tasks-per-node", 3],
    "both False": ["TRAIN.ENABLE", False, "TEST.ENABLE", False],
    "expected a path without ':'": ["OUTPUT_DIR", "a:b"],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_one_message_and_nothing_is_submitted(caught, tmp_path, message):
    refused(submit_words(tmp_path / "run", *WRONG[message]), message)
    assert caught.cfgs == []
    assert list(tmp_path.iterdir()) == []


def test_a_missing_config_and_a_file_in_the_path_of_the_run_folder(caught, tmp_path):
    refused(tiny.command("submit", "--no-check"), "--cfg is missing")
    refused(tiny.command("submit", "--cfg", "nowhere.yaml", "--no-check"), "config nowhere.yaml: no such file")
    (tmp_path / "file").touch()
    refused(submit_words(tmp_path / "file/run"), "cannot be made", str(tmp_path / "file"), "OUTPUT_DIR")
    assert caught.cfgs == []


def test_no_slurm_on_path_is_found_out_before_anything_is_looked_for(data, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = submit_words(tmp_path / "run", data=data)
    refused(outcome, "no Slurm here", "sbatch", "--cluster local")
    assert "memory" not in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_a_shell_of_torchrun_or_of_a_job_submits_and_prints_as_any_other(caught, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "SLURM_JOB_ID": "7"}.items():  # not even complete
        monkeypatch.setenv(name, value)
    assert "submitted job 17" in tiny.done(submit_words(tmp_path / "run")).out


# Without torch


def without_torch(tmp_path: Path, code: str) -> subprocess.CompletedProcess:
    """Run `code` where importing torch fails, here and in processes that it starts."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    return subprocess.run([sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, text=True)


def test_a_submission_needs_no_torch(data, tmp_path):
    keys = tiny.overrides({"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": tmp_path / "run"})
    words = ["--cfg", "demo/REV_MVIT_DEMO", "--cluster", "local", "--profile", "cpu", "--dry-run", *keys]
    done = without_torch(
        tmp_path, f"import sys; from revvideo.cli.main import main; sys.exit(main({['submit', *words]}))"
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "memory: not planned (ImportError: libcudart.so.12",
        "train: 8 videos",
        "test: 6 videos",
        "batch: 4 clips",
    ):
        assert line in done.stderr
    assert "memory" not in done.stdout  # which is the script's
    assert not (tmp_path / "run").exists()
