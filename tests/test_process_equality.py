"""One run in one process, in several, in parts: the same samples in every step and the same losses."""

import random
from itertools import chain

import numpy as np
import pytest
import run_config
import tiny
import torch
from processes import run_processes, values

from revvideo import build, jobs
from revvideo.engine.checkpoint import latest_checkpoint

NUM_STEPS = 20
NUM_VIDEOS = 26  # 2 steps of 12 an epoch, and 2 left over
SMALL = {"MVIT.DEPTH": 2}  # a reversible block and a transition: these tests are about batches
TWENTY_STEPS = SMALL | {"SOLVER.MAX_EPOCH": 10, "TRAIN.CHECKPOINT_PERIOD": 1000, "DIST.TIMEOUT_SECONDS": 30}
TWELVE = {"TRAIN.BATCH_SIZE": 12}
MIXED = {"MIXUP.ENABLE": True, "MODEL.LOSS_FUNC": "soft_cross_entropy", "TRAIN.BATCH_SIZE": 24, "SOLVER.MAX_EPOCH": 4}
TOLERANCE = 1e-6
PARTS = [(1, 4), pytest.param(2, 3, marks=pytest.mark.slow)]  # numbers of processes and of parts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return run_config.write_training_set(tmp_path_factory.mktemp("data"), NUM_VIDEOS)


def train_in_float64(data, folder, layers: tuple[dict, ...]) -> list[list[int]]:
    """`run_net` with model, clips and sums in float64, in this forked process only; the samples of each step."""
    samples = []
    build_model, build_train_input = build.build_model, build.build_train_input

    def double_input(*args, **kwargs):
        prepare = build_train_input(*args, **kwargs)

        def prepare_double(batch, epoch, step):
            samples.append(batch.index.tolist())
            for clips, targets in prepare(batch, epoch, step):
                yield clips.double(), targets

        return prepare_double

    build.build_model = lambda cfg: build_model(cfg).double()
    build.build_train_input = double_input
    jobs.run(run_config.config(data, folder, tiny.TRAIN_ONLY, TWENTY_STEPS, *layers))
    return samples


def run(data, folder, num_processes: int, *layers: dict) -> tuple[list[list[float]], list[list[int]], torch.Tensor]:
    """Loss and gradient norm of each step, its samples over all processes, and all weights at the end in one vector.

    The weights tell little of the gradients: Adam divides by their size.
    """
    by_rank = values(run_processes(num_processes, train_in_float64, data, folder, layers, timeout_seconds=120))
    state = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)["model_state"]
    assert {weight.dtype for weight in state.values()} == {torch.float64}
    weights = torch.cat([weight.flatten() for weight in state.values()])
    steps = [[event["loss"], event["grad_norm"]] for event in tiny.events(folder, "train_step")]
    return steps, [[*chain(*step)] for step in zip(*by_rank, strict=True)], weights


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process, every batch at once."""
    return run(data, tmp_path_factory.mktemp("alone"), 1, TWELVE)


def assert_equal_runs(mine: tuple, reference: tuple) -> None:
    steps, samples, weights = mine
    want_steps, want_samples, want_weights = reference
    assert samples == want_samples
    loss, norm = (max(abs(a - b) for a, b in zip(*columns)) for columns in zip(zip(*steps), zip(*want_steps)))
    weight = float((weights - want_weights).abs().max())
    print(f"largest differences: loss {loss:.1e}, gradient norm {norm:.1e}, weight {weight:.1e}")
    assert len(steps) == len(want_steps)
    assert max(loss, norm, weight) <= TOLERANCE


def test_the_run_that_others_are_compared_with(alone):
    """It learns, and takes each sample once an epoch; fewer than one batch are left out, not always the same ones."""
    steps, samples, _ = alone
    losses = [loss for loss, _ in steps]
    assert len(losses) == len(samples) == NUM_STEPS
    assert sum(losses[:4]) - sum(losses[-4:]) > 0.4
    epochs = [samples[step] + samples[step + 1] for step in range(0, NUM_STEPS, 2)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 24 > NUM_VIDEOS - 12
        assert set(epoch) <= set(range(NUM_VIDEOS))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert set().union(*epochs) == set(range(NUM_VIDEOS))


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_train_as_one_does(alone, data, tmp_path, num_processes):
    assert_equal_runs(run(data, tmp_path, num_processes, TWELVE), alone)


@pytest.mark.parametrize(("num_processes", "num_parts"), PARTS)
def test_parts_of_a_batch_train_as_the_batch_does(alone, data, tmp_path, num_processes, num_parts):
    parts = {"RUN.ACCUMULATION_STEPS": num_parts}
    assert_equal_runs(run(data, tmp_path, num_processes, TWELVE, parts), alone)


@pytest.mark.parametrize(("num_processes", "num_parts"), PARTS)
def test_parts_of_a_mixed_batch_train_as_the_batch_does(data, tmp_path, num_processes, num_parts):
    """Mixup and cutmix pair a clip with the one at the mirrored place of the whole batch, which is in its part."""
    whole = run(data, tmp_path / "whole", num_processes, MIXED)
    assert_equal_runs(run(data, tmp_path / "parts", num_processes, MIXED, {"RUN.ACCUMULATION_STEPS": num_parts}), whole)


def run_as_if_started_anew(*args) -> None:
    """Two forks of one process begin with the same random state, two starts of Python do not."""
    torch.seed()
    random.seed()
    np.random.seed()
    run_config.run(*args)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_two_deterministic_runs_are_bit_equal(data, tmp_path, num_processes):
    """In float32, with all that is random."""
    layers = (tiny.RANDOM, tiny.TRAIN_ONLY, TWENTY_STEPS, TWELVE, {"RUN.DETERMINISTIC": True, "SOLVER.MAX_EPOCH": 3})
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        for result in run_processes(num_processes, run_as_if_started_anew, data, folder, layers, timeout_seconds=120):
            assert result.exitcode == 0, result.output
        state = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)["model_state"]
        found.append((tiny.losses(folder), state))
    (losses, weights), (again, weights_again) = found
    assert losses == again
    assert len(set(losses)) == 6
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
