"""The plain examples slurm/*.sbatch, each on the local cluster: two nodes of two processes, stopped on the way."""

import sys
from pathlib import Path

import pytest
import run_config
import tiny
from processes import run_processes, values

REPOSITORY = Path(__file__).parents[1]
SIGNALS = {"srun.sbatch": "SIGUSR1", "torchrun.sbatch": "SIGTERM"}  # torchrun passes on no other
EPOCHS = 30  # of one step: long enough to be stopped on the way
RUN = tiny.RANDOM | {"NUM_GPUS": 0, "LOG_PERIOD": 1, "DIST.TIMEOUT_SECONDS": 60, "SOLVER.MAX_EPOCH": EPOCHS}
RUN |= {"TRAIN.EVAL_PERIOD": EPOCHS, "TRAIN.CHECKPOINT_PERIOD": EPOCHS, "RUN.DETERMINISTIC": True}
ONE_MACHINE = {"TRAIN.BATCH_SIZE": 2 * tiny.TINY["TRAIN.BATCH_SIZE"]}  # as two machines have it together

pytestmark = pytest.mark.slurm


def submit(slurm, example: str, data: Path, folder: Path, *layers: dict) -> str:
    """Submit an example from the checkout, with this Python's environment active."""
    own = {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder}
    # Two fake GPUs a node, where the examples have eight real ones.
    resources = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-task=1", "--mem=2000", "--time=10"]
    resources += [f"--ntasks-per-node={2 if example == 'srun.sbatch' else 1}", f"--output={folder}.log"]
    words = ["--cfg", "demo/REV_MVIT_DEMO", *tiny.overrides(own, RUN, *layers)]
    path = {"PATH": f"{Path(sys.executable).parent}:{slurm.environ['PATH']}"}
    return slurm.sbatch(*resources, REPOSITORY / "slurm" / example, *words, cwd=REPOSITORY, env=path)


@pytest.fixture(scope="module")
def forked(data, tmp_path_factory) -> Path:
    """The run folder of the same training without Slurm."""
    folder = tmp_path_factory.mktemp("forked")
    values(run_processes(4, run_config.run, data, folder, (RUN, ONE_MACHINE)))
    return folder


def steps_done(folder: Path) -> int:
    return len(tiny.events(folder, "train_step")) if (folder / "events.jsonl").exists() else 0


@pytest.mark.parametrize(("example", "reason"), SIGNALS.items())
def test_an_example_stops_queues_again_and_finishes_as_if_nothing_had_happened(
    slurm, data, forked, tmp_path, example, reason
):
    folder = tmp_path / "run"
    job = submit(slurm, example, data, folder)
    slurm.wait_for(job, "RUNNING")
    slurm.wait_until("tenth step", lambda: steps_done(folder) >= 10, 120)
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    slurm.wait_for(job, "PENDING")
    assert 10 <= steps_done(folder) < EPOCHS
    ended = slurm.wait_for(job, "COMPLETED", timeout_seconds=180)
    assert ended["Restarts"] == "1"
    assert [event["restart"] for event in tiny.events(folder, "start")] == [0, 1]
    assert [event["reason"] for event in tiny.events(folder, "stop")] == [reason]
    assert len(tiny.events(folder, "train_step")) == EPOCHS  # none of them twice
    assert tiny.losses(folder) == tiny.losses(forked)
    assert (folder / "results.json").exists()
