"""A run that is interrupted and started again equals one that is not: every loss, and the weights, to the last bit."""

import signal

import pytest
import run_config
import tiny
import torch
from processes import run_processes

from revvideo import build
from revvideo.config.batch import batch_plan
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.engine.events import last_per_step, read_events

NUM_STEPS = 60
TWO_WORKERS = {"DATA_LOADER.NUM_WORKERS": 2}
FOR_PROCESSES = {  # number of processes -> what their run needs
    1: {},
    2: {"DIST.TIMEOUT_SECONDS": 20},
    # 6 clips a step, 2 in each process: 4 steps an epoch. Three summands need an order.
    3: {"DIST.TIMEOUT_SECONDS": 20, "TRAIN.BATCH_SIZE": 6, "SOLVER.MAX_EPOCH": 15, "RUN.DETERMINISTIC": True},
}
OFTEN = {"RUN.CHECKPOINT_MINUTES": 1e-4}  # a checkpoint after every step
STOP, KILL = signal.SIGTERM, signal.SIGKILL


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return run_config.write_training_set(tmp_path_factory.mktemp("data"))


def run(data, folder, num_processes: int, *layers: dict, during=None) -> list:
    layers = (run_config.SIXTY_STEPS, TWO_WORKERS, FOR_PROCESSES[num_processes], *layers)
    return run_processes(num_processes, run_config.run, data, folder, layers, during, timeout_seconds=240)


def finish(data, folder, num_processes: int, *layers: dict) -> tuple[list[float], dict]:
    """Losses by step and the weights at the end of a run that must come to its end."""
    for result in run(data, folder, num_processes, *layers):
        assert result.exitcode == 0, result.output
    steps = [event for event in last_per_step(read_events(folder / "events.jsonl")) if event["kind"] == "train_step"]
    assert [event["step"] for event in steps] == list(range(NUM_STEPS))
    last = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)
    assert last["position"]["step"] == NUM_STEPS
    return [event["loss"] for event in steps], last["model_state"]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Losses and weights of one process that nothing interrupts."""
    return finish(data, tmp_path_factory.mktemp("straight"), 1)


@pytest.mark.parametrize("num_processes", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 3))])
def test_an_interrupted_run_equals_a_straight_one(data, straight, tmp_path, num_processes):
    """Stopped after step 8, killed at step 23 after a timed checkpoint, stopped at step 41, always inside an epoch."""
    folder = tmp_path / "interrupted"
    want, weights = straight if num_processes == 1 else finish(data, tmp_path / "straight", num_processes)
    assert len(set(want)) == NUM_STEPS

    stopped = run(data, folder, num_processes, during=run_config.SignalAt(6, STOP))
    assert [result.exitcode for result in stopped] == [75] * num_processes, stopped[0].output
    assert "stopped by SIGTERM after step 8" in stopped[0].output
    (stop,) = tiny.events(folder, "stop")
    assert (stop["step"], stop["reason"]) == (8, "SIGTERM")

    killed = run(data, folder, num_processes, OFTEN, during=run_config.SignalAt(23, KILL))
    assert killed[0].exitcode == -KILL
    assert all(result.exitcode == 1 for result in killed[1:])  # they end by themselves
    assert "resumed after 2 steps of epoch 2" in killed[0].output or num_processes == 3
    assert tiny.events(folder, "checkpoint")[-1]["step"] >= 20

    again = run(data, folder, num_processes, during=run_config.SignalAt(41, STOP))
    assert [result.exitcode for result in again] == [75] * num_processes, again[0].output
    resumed = tiny.events(folder, "resume")[-1]["step"]
    assert 20 <= resumed <= 23

    losses, final = finish(data, folder, num_processes)
    assert losses == want
    assert final.keys() == weights.keys()
    assert all(torch.equal(final[name], weights[name]) for name in weights)
    restarts = [event["restart"] for event in tiny.events(folder, "train_step")]
    assert sorted(set(restarts)) == [0, 1, 2, 3]
    assert len(restarts) > NUM_STEPS or resumed == 23  # steps after the last checkpoint are made twice


def test_another_number_of_workers_goes_on_with_the_same_samples(data, straight, tmp_path):
    run(data, tmp_path, 1, during=run_config.SignalAt(8, STOP))
    losses, _ = finish(data, tmp_path, 1, {"DATA_LOADER.NUM_WORKERS": 0})
    assert losses == straight[0]


def test_another_number_of_processes_goes_on_at_the_same_sample(data, tmp_path):
    """The global batch stays, one machine's; what is drawn while training is not the same, and that is told."""
    run(data, tmp_path, 1, during=run_config.SignalAt(8, STOP))
    results = run(data, tmp_path, 2)
    assert [result.exitcode for result in results] == [0, 0], results[0].output
    assert "holds the random state of 1 process, and this run has 2" in results[0].output
    assert "not bit-equal" in results[0].output
    assert tiny.events(tmp_path, "resume")[-1]["step"] == 10
    assert len(tiny.losses(tmp_path)) == NUM_STEPS


def test_another_batch_size_goes_on_at_the_same_sample_and_learning_rate(data, tmp_path):
    """Stopped after 4 of the 6 steps of the second epoch; its last 8 videos make one step now."""
    run(data, tmp_path, 1, during=run_config.SignalAt(8, STOP))
    assert tiny.events(tmp_path, "stop")[-1]["step"] == 10
    eight = {"TRAIN.BATCH_SIZE": 8}
    run(data, tmp_path, 1, eight, during=run_config.SignalAt(13, STOP))
    cfg = run_config.config(data, tmp_path, run_config.SIXTY_STEPS, eight)
    rate = build.train_settings(cfg, batch_plan(cfg)).learning_rate
    steps = [event for event in tiny.events(tmp_path, "train_step") if event["restart"] == 1][:4]
    assert [(event["step"], event["epoch"]) for event in steps] == [(10, 1), (11, 2), (12, 2), (13, 2)]
    assert [event["lr"] for event in steps] == pytest.approx(
        [rate(5 / 3), rate(2), rate(7 / 3), rate(8 / 3)], rel=1e-12
    )
