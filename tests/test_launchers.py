"""However its processes are started, a run is the same run: spawn, torchrun, srun, submitit, PySlowFast's way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import run_config
import tiny
import torch
from processes import free_port, run_processes, values

from revvideo.distributed.env import PLACE_VARIABLES, current_process, environment_of, machine_processes
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.jobs.processes import launch

RUN_NET = Path(__file__).parents[1] / "tools/run_net.py"
RUN = tiny.RANDOM | {"NUM_GPUS": 0, "SOLVER.MAX_EPOCH": 3, "DIST.TIMEOUT_SECONDS": 60}
# Two machines take twice the clips a step at twice the rate.
TWO_MACHINES = {"SOLVER.BASE_LR_SCALE_NUM_SHARDS": True, "SOLVER.WARMUP_START_LR": 1e-5, "SOLVER.COSINE_END_LR": 1e-6}
ONE_MACHINE = {
    "TRAIN.BATCH_SIZE": 8,
    "SOLVER.BASE_LR": 2e-3,
    "SOLVER.WARMUP_START_LR": 2e-5,
    "SOLVER.COSINE_END_LR": 2e-6,
}


def by_srun(rank: int) -> dict[str, str]:
    """What srun sets for two tasks on one machine; where they meet follows from the job."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"}
    place = {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NTASKS": "2"}
    return job | place | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


def by_submitit(rank: int) -> dict[str, str]:
    """What submitit's local executor sets for two tasks."""
    job = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": str(os.getpid() + 1)}
    place = {"SUBMITIT_LOCAL_JOB_NUM_NODES": "1", "SUBMITIT_LOCAL_NODEID": "0", "SUBMITIT_LOCAL_NTASKS": "2"}
    return job | place | {"SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)}


def by_shards(num_machines: int, num_processes: int) -> list[dict[str, str]]:
    """What the processes of PySlowFast's way find, which each machine starts for itself."""
    where = {"num_processes": num_processes, "num_machines": num_machines}
    init_method = f"tcp://127.0.0.1:{free_port()}"
    machines = [machine_processes(**where, machine=number, init_method=init_method) for number in range(num_machines)]
    return [environment_of(process) for processes in machines for process in processes]


def train_as(environs: list[dict[str, str]] | None, data: Path, folder: Path, *layers: dict) -> str:
    """Train as the process that a launcher has started with `environs[rank]`; who says that the launcher was."""
    if environs is not None:
        variables = environs[int(os.environ["RANK"])]
        for name in PLACE_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(variables)
    assert launch(run_config.config(data, folder, RUN, tiny.TRAIN_ONLY, *layers)) == 0
    return current_process().source


def trained(folder: Path) -> tuple[list[float], dict]:
    """Losses of the steps, and the weights at the end."""
    return tiny.losses(folder), torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)["model_state"]


def assert_same(folder: Path, other: Path) -> None:
    """To the last bit."""
    (losses, weights), (other_losses, other_weights) = trained(folder), trained(other)
    assert losses == other_losses
    assert len(set(losses)) == len(losses) >= 3
    assert all(torch.equal(weights[name], other_weights[name]) for name in other_weights)


def words(data: Path, folder: Path, *layers: dict) -> list[str]:
    own = {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder}
    return ["--cfg", "demo/REV_MVIT_DEMO", *tiny.overrides(own, RUN, *layers)]


def finish(commands: list[list], environs: list[dict[str, str]] | None = None) -> str:
    """Run commands at the same time, each to a good end; what the first one wrote to stderr."""
    environs = environs or [{}] * len(commands)
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, environ in zip(commands, environs, strict=True)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(errors)
    return errors[0]


@pytest.fixture(scope="module")
def spawned(data, tmp_path_factory):
    """Folder and log of a run of two processes by the command, with validation and evaluation."""
    folder = tmp_path_factory.mktemp("spawned") / "run"
    return folder, finish([[RUN_NET, *words(data, folder, {"DIST.NUM_PROCESSES": 2})]])


@pytest.fixture(scope="module")
def forked(data, tmp_path_factory):
    """Run folder of two processes with torchrun's variables."""
    folder = tmp_path_factory.mktemp("forked")
    assert values(run_processes(2, train_as, None, data, folder)) == ["environment"] * 2
    return folder


def test_the_command_starts_two_processes_that_train_validate_and_evaluate(spawned, forked):
    folder, log = spawned
    assert_same(folder, forked)
    assert "starting 2 processes here, 2 in all" in log
    assert "4 clips a step = 4 videos a machine" in log
    assert "2 in each of 2 processes; learning rate" in log
    assert [event["num_videos"] for event in tiny.events(folder, "validation")] == [tiny.NUM_TEST] * 3
    (start,) = tiny.events(folder, "start")
    assert start["world_size"] == 2


def test_two_processes_evaluate_as_one_does(spawned, data, tmp_path):
    folder, _ = spawned
    last = latest_checkpoint(folder / "checkpoints")
    keys = {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": last}
    tiny.done(tiny.run_net(data, tmp_path, RUN, keys))
    both, alone = (json.loads((each / "results.json").read_text()) for each in (folder, tmp_path))
    assert both.pop("wall_seconds") > 0
    assert alone.pop("wall_seconds") > 0
    assert both == alone
    assert both["num_videos"] == tiny.NUM_TEST
    predictions, others = (np.load(each / "predictions.npz") for each in (folder, tmp_path))
    for name in ("path", "label"):
        assert predictions[name].tolist() == others[name].tolist()
    np.testing.assert_allclose(predictions["scores"], others["scores"], rtol=0, atol=1e-6)
    assert len({tuple(row) for row in others["scores"]}) == tiny.NUM_TEST


@pytest.mark.parametrize("launcher", [by_srun, by_submitit])
def test_other_launchers_give_the_same_run(forked, data, tmp_path, launcher):
    environs = [launcher(rank) for rank in range(2)]
    assert values(run_processes(2, train_as, environs, data, tmp_path)) == [launcher.__name__.removeprefix("by_")] * 2
    assert_same(tmp_path, forked)


@pytest.mark.parametrize(
    ("num_machines", "num_processes"), [(2, 1), pytest.param(2, 2, marks=pytest.mark.slow)], ids=lambda n: str(n)
)
def test_two_machines_are_one_of_twice_the_batch_and_rate(data, tmp_path, num_machines, num_processes):
    count, two, one = num_machines * num_processes, tmp_path / "two", tmp_path / "one"
    environs = by_shards(num_machines, num_processes)
    values(run_processes(count, train_as, environs, data, two, TWO_MACHINES))
    values(run_processes(count, train_as, None, data, one, ONE_MACHINE))
    assert_same(two, one)


@pytest.mark.slow
def test_torchrun(forked, data, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", free_port()]
    log = finish([[*torchrun, RUN_NET, *words(data, tmp_path, tiny.TRAIN_ONLY)]])
    assert_same(tmp_path, forked)
    assert "[rank 0]" in log
    assert tiny.events(tmp_path, "start")[0]["launcher"] == "torchrun"


@pytest.mark.slow
def test_the_command_in_an_environment_like_that_of_srun(forked, data, tmp_path):
    finish([[RUN_NET, *words(data, tmp_path, tiny.TRAIN_ONLY)]] * 2, [by_srun(rank) for rank in range(2)])
    assert_same(tmp_path, forked)
    assert tiny.events(tmp_path, "start")[0]["launcher"] == "srun"


@pytest.mark.slow
def test_two_commands_of_pyslowfast(data, tmp_path):
    """`--num_shards 2 --shard_id I --init_method tcp://HOST:PORT` on each machine, here both on this one."""
    two, one = tmp_path / "two", tmp_path / "one"
    cfg, name, *keys = words(data, two, tiny.TRAIN_ONLY, TWO_MACHINES)
    meet = ["--num_shards", 2, "--init_method", f"tcp://127.0.0.1:{free_port()}"]
    log = finish([[RUN_NET, cfg, name, *meet, "--shard_id", number, *keys] for number in range(2)])
    assert "learning rate 0.002 = SOLVER.BASE_LR 0.001 x 2 machines" in log
    assert "8 clips a step = 4 videos a machine (TRAIN.BATCH_SIZE) x 1 clip (AUG.NUM_SAMPLE) x 2 machines" in log
    values(run_processes(2, train_as, None, data, one, ONE_MACHINE))
    assert_same(two, one)
