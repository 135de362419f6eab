"""EMA.ENABLE: the average of the weights in training, validation, evaluation, checkpoints and after a restart."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import run_config
import tiny
import torch
from processes import run_processes

from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.engine.train_step import TrainStep
from revvideo.jobs import training

DECAY = 0.7
AVERAGED = {"EMA.ENABLE": True, "EMA.DECAY": DECAY}
TWO_VIEWS = {"TEST.NUM_TEMPORAL_CLIPS": [1, 2]}
EVALUATE = {"TRAIN.ENABLE": False}
EPOCHS = 3
RUN = tiny.RANDOM | {"SOLVER.MAX_EPOCH": EPOCHS, "SOLVER.BASE_LR": 1e-2}


def copied(state: dict) -> dict:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def checkpoint(folder: Path, epoch: int = EPOCHS) -> dict:
    return torch.load(folder / f"checkpoints/checkpoint_epoch_{epoch:05d}.pyth", weights_only=True)


def predictions(folder: Path, suffix: str = "") -> np.ndarray:
    return np.load(folder / f"predictions{suffix}.npz")["scores"]


def results(folder: Path, suffix: str = "") -> dict:
    found = json.loads((folder / f"results{suffix}.json").read_text())
    assert found.pop("wall_seconds") > 0
    return found


def by_hand(weights: list[dict], decay: float = DECAY) -> dict:
    """The average after all steps, from the weights before the first one and after each."""
    average = {name: tensor.double() for name, tensor in weights[0].items()}
    for state in weights[1:]:
        average = {name: decay * average[name] + (1 - decay) * state[name].double() for name in average}
    return average


def assert_close(state: dict, want: dict) -> None:
    assert state.keys() == want.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(tensor.double(), want[name].double(), rtol=1e-5, atol=1e-6)


def differ(state: dict, other: dict) -> bool:
    return any(float((state[name] - other[name]).abs().max()) > 1e-4 for name in state)


def recorded(patch: pytest.MonkeyPatch) -> list[dict]:
    """From now on: the weights before the first step and after each."""
    weights: list[dict] = []
    update = TrainStep.update

    def noted(step, *args, **kwargs):
        if not weights:
            weights.append(copied(step.model.state_dict()))
        update(step, *args, **kwargs)
        weights.append(copied(step.model.state_dict()))

    patch.setattr(TrainStep, "update", noted)
    return weights


@pytest.fixture(scope="module")
def averaged(data, tmp_path_factory):
    """Run folder, weights before the first step and after each, and the weights of each model that was validated."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    validated = []
    evaluate_run = training.evaluate_run

    def noted(run, model, *args, **kwargs):
        validated.append(copied(model.state_dict()))
        return evaluate_run(run, model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        weights = recorded(patch)
        patch.setattr(training, "evaluate_run", noted)
        tiny.done(tiny.run_net(data, folder, RUN, AVERAGED, TWO_VIEWS))
    return folder, weights, validated


def test_the_average_is_that_of_the_weights_after_every_step(averaged):
    folder, weights, _ = averaged
    assert len(weights) == 1 + 2 * EPOCHS
    for epoch in range(1, EPOCHS + 1):
        state, average = checkpoint(folder, epoch), by_hand(weights[: 1 + 2 * epoch])
        assert_close(state["ema_state"], average)
        assert all(torch.equal(state["model_state"][name], tensor) for name, tensor in weights[2 * epoch].items())
        assert differ(state["ema_state"], state["model_state"])


def test_weights_and_average_are_validated(averaged):
    folder, weights, validated = averaged
    told = [(event["epoch"], event["weights"]) for event in tiny.events(folder, "validation")]
    assert told == [(epoch, name) for epoch in range(EPOCHS) for name in ("raw", "ema")]
    assert len(validated) == 2 * EPOCHS
    for epoch, (raw, average) in enumerate(zip(validated[::2], validated[1::2]), 1):
        assert all(torch.equal(raw[name], tensor) for name, tensor in weights[2 * epoch].items())
        assert_close(average, by_hand(weights[: 1 + 2 * epoch]))


def test_weights_and_average_are_evaluated(averaged, data, tmp_path):
    """As an evaluation of the average alone gives, computed by hand and named as a checkpoint."""
    folder, weights, _ = averaged
    average = {name: tensor.float() for name, tensor in by_hand(weights).items()}
    torch.save({"model_state": average}, tmp_path / "average.pyth")
    keys = EVALUATE | {"TEST.CHECKPOINT_FILE_PATH": tmp_path / "average.pyth"}
    tiny.done(tiny.run_net(data, tmp_path, RUN, TWO_VIEWS, keys))
    assert not list(tmp_path.glob("*_ema*"))
    for views in ("", "_1views", "_2views"):
        np.testing.assert_allclose(predictions(folder, f"_ema{views}"), predictions(tmp_path, views), rtol=0, atol=1e-5)
        assert np.abs(predictions(folder, f"_ema{views}") - predictions(folder, views)).max() > 1e-3
        want = results(tmp_path, views) | {"checkpoint": str(latest_checkpoint(folder / "checkpoints"))}
        want["ece"] = pytest.approx(want["ece"], abs=1e-5)  # the one figure that rounding reaches
        assert results(folder, f"_ema{views}") == want
    told = [(event["weights"], event["num_views"]) for event in tiny.events(folder, "test")]
    assert told == [("raw", 1), ("raw", 2), ("ema", 1), ("ema", 2)]


def test_the_average_is_evaluated_on_longer_clips_as_the_weights_are(averaged, data, tmp_path):
    """Its tables of positions are interpolated too."""
    folder, _, _ = averaged
    last = {"TEST.CHECKPOINT_FILE_PATH": latest_checkpoint(folder / "checkpoints"), "DATA.NUM_FRAMES": 8}
    outcome = tiny.done(tiny.run_net(data, tmp_path / "run", RUN, EVALUATE, last, AVERAGED))
    assert "interpolated" in outcome.err
    torch.save({"model_state": checkpoint(folder)["ema_state"]}, tmp_path / "average.pyth")
    alone = last | {"TEST.CHECKPOINT_FILE_PATH": tmp_path / "average.pyth"}
    tiny.done(tiny.run_net(data, tmp_path / "alone", RUN, EVALUATE, alone))
    np.testing.assert_array_equal(predictions(tmp_path / "run", "_ema"), predictions(tmp_path / "alone"))
    assert np.abs(predictions(tmp_path / "run", "_ema") - predictions(tmp_path / "run")).max() > 1e-3


def test_the_best_checkpoint_is_that_of_the_best_average(data, tmp_path, monkeypatch):
    top1 = iter([10.0, 20.0, 20.0, 40.0, 90.0, 30.0])  # raw, average, raw, ...

    class Scores:
        def summary(self, num_expected: int) -> dict:
            return {"top1_acc": next(top1), "top5_acc": 100.0, "num_videos": num_expected, "failed": []}

    monkeypatch.setattr(training, "evaluate_run", lambda *args, **kwargs: Scores())
    tiny.done(tiny.run_net(data, tmp_path, RUN, AVERAGED, {"TEST.ENABLE": False}))
    assert next(top1, None) is None
    assert (tmp_path / "checkpoints/best.pyth").resolve().name == "checkpoint_epoch_00002.pyth"
    assert checkpoint(tmp_path)["best_top1"] == 40.0


def test_without_an_average_in_the_checkpoint_it_begins_with_the_weights(data, tmp_path, monkeypatch):
    tiny.done(tiny.run_net(data, tmp_path, RUN, {"SOLVER.MAX_EPOCH": 1}))
    assert "ema_state" not in checkpoint(tmp_path, 1)
    outcome = tiny.done(tiny.run_net(data, tmp_path, RUN, AVERAGED, EVALUATE))
    assert "holds no average of the weights (EMA.ENABLE): only the weights are evaluated" in outcome.err
    assert not list(tmp_path.glob("*_ema*"))
    before = checkpoint(tmp_path, 1)["model_state"]
    weights = recorded(monkeypatch)
    outcome = tiny.done(tiny.run_net(data, tmp_path, RUN, AVERAGED))
    assert "holds no average of the weights (EMA.ENABLE): it starts from these" in outcome.err
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in before.items())
    assert_close(checkpoint(tmp_path)["ema_state"], by_hand(weights))


def test_the_average_of_two_processes_is_kept_over_a_restart(data, tmp_path):
    """Interrupted inside of the second epoch, and not: the same average, evaluated alike, by one process too."""
    four_steps = {"TRAIN.BATCH_SIZE": 2, "MIXUP.ENABLE": False, "DIST.TIMEOUT_SECONDS": 30}
    layers = (RUN, AVERAGED, four_steps)
    straight, folder, alone = (tmp_path / name for name in ("straight", "interrupted", "alone"))
    for where, during, code in (
        (straight, None, 0),
        (folder, run_config.SignalAt(5, signal.SIGTERM), 75),
        (folder, None, 0),
    ):
        for result in run_processes(2, run_config.run, data, where, layers, during):
            assert result.exitcode == code, result.output
    (resume,) = tiny.events(folder, "resume")
    assert resume["step"] == 7
    mine, want = checkpoint(folder), checkpoint(straight)
    assert all(torch.equal(mine["ema_state"][name], tensor) for name, tensor in want["ema_state"].items())
    assert differ(want["ema_state"], want["model_state"])
    np.testing.assert_array_equal(predictions(folder, "_ema"), predictions(straight, "_ema"))
    last = {"TEST.CHECKPOINT_FILE_PATH": latest_checkpoint(straight / "checkpoints")}
    tiny.done(tiny.run_net(data, alone, RUN, AVERAGED, EVALUATE, last))
    assert results(alone, "_ema") == results(straight, "_ema")
    np.testing.assert_allclose(predictions(alone, "_ema"), predictions(straight, "_ema"), rtol=0, atol=1e-6)
