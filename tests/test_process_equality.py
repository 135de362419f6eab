"""One run in one process, in several, in parts: the same samples in every step and the same losses."""

import pytest
import run_config
import tiny
import torch
from processes import run_processes, values

from revvideo import build, jobs
from revvideo.engine.checkpoint import latest_checkpoint

NUM_STEPS = 20
NUM_VIDEOS = 26  # 2 steps of 12 an epoch, and 2 left over
TWENTY_STEPS = {"SOLVER.MAX_EPOCH": 10, "TRAIN.CHECKPOINT_PERIOD": 1000, "DIST.TIMEOUT_SECONDS": 30}
TWELVE = {"TRAIN.BATCH_SIZE": 12}
MIXED = {"MIXUP.ENABLE": True, "MODEL.LOSS_FUNC": "soft_cross_entropy", "TRAIN.BATCH_SIZE": 24, "SOLVER.MAX_EPOCH": 6}
TOLERANCE = 1e-6


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


def run(data, folder, num_processes: int, *layers: dict) -> tuple[list[float], list[list[int]], torch.Tensor]:
    """Losses of the steps, samples of the steps over all processes, and all weights at the end in one vector."""
    by_rank = values(run_processes(num_processes, train_in_float64, data, folder, layers, timeout_seconds=120))
    state = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)["model_state"]
    assert {weight.dtype for weight in state.values()} == {torch.float64}
    weights = torch.cat([weight.flatten() for weight in state.values()])
    return tiny.losses(folder), [sum(step, []) for step in zip(*by_rank, strict=True)], weights


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process, every batch at once."""
    return run(data, tmp_path_factory.mktemp("alone"), 1, TWELVE)


def assert_equal_runs(mine: tuple, reference: tuple) -> None:
    losses, samples, weights = mine
    want_losses, want_samples, want_weights = reference
    assert samples == want_samples
    loss = max(abs(a - b) for a, b in zip(losses, want_losses, strict=True))
    weight = float((weights - want_weights).abs().max())
    print(f"largest differences: loss {loss:.1e}, weight {weight:.1e}")
    assert loss <= TOLERANCE
    assert weight <= TOLERANCE


def test_the_run_that_others_are_compared_with(alone, data, tmp_path):
    """It trains, on each sample once an epoch; a learning rate that is a thousandth off would be seen."""
    losses, samples, _ = alone
    assert len(losses) == len(samples) == NUM_STEPS
    epochs = [samples[step] + samples[step + 1] for step in range(0, NUM_STEPS, 2)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 24 > NUM_VIDEOS - 12
        assert set(epoch) <= set(range(NUM_VIDEOS))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert set().union(*epochs) == set(range(NUM_VIDEOS))  # it is not always the same ones that are left out
    others, _, _ = run(data, tmp_path, 1, TWELVE, {"SOLVER.BASE_LR": 1.001e-3})
    assert max(abs(a - b) for a, b in zip(losses, others)) > 10 * TOLERANCE


@pytest.mark.parametrize("num_processes", [2, 3])
def test_several_processes_train_as_one_does(alone, data, tmp_path, num_processes):
    assert_equal_runs(run(data, tmp_path, num_processes, TWELVE), alone)


@pytest.mark.parametrize(("num_processes", "num_parts"), [(1, 4), (2, 3)])
def test_parts_of_a_batch_train_as_the_batch_does(alone, data, tmp_path, num_processes, num_parts):
    parts = {"RUN.ACCUMULATION_STEPS": num_parts}
    assert_equal_runs(run(data, tmp_path, num_processes, TWELVE, parts), alone)


@pytest.mark.parametrize(("num_processes", "num_parts"), [(1, 4), (2, 3)])
def test_parts_of_a_mixed_batch_train_as_the_batch_does(data, tmp_path, num_processes, num_parts):
    """Mixup and cutmix pair a clip with the one at the mirrored place of the whole batch, which is in its part."""
    whole = run(data, tmp_path / "whole", num_processes, MIXED)
    assert_equal_runs(run(data, tmp_path / "parts", num_processes, MIXED, {"RUN.ACCUMULATION_STEPS": num_parts}), whole)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_two_deterministic_runs_are_bit_equal(data, tmp_path, num_processes):
    """In float32, with all that is random."""
    layers = (tiny.RANDOM, tiny.TRAIN_ONLY, TWENTY_STEPS, TWELVE, {"RUN.DETERMINISTIC": True, "SOLVER.MAX_EPOCH": 4})
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        for result in run_processes(num_processes, run_config.run, data, folder, layers, timeout_seconds=120):
            assert result.exitcode == 0, result.output
        state = torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)["model_state"]
        found.append((tiny.losses(folder), state))
    (losses, weights), (again, weights_again) = found
    assert losses == again
    assert len(set(losses)) == 8
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
