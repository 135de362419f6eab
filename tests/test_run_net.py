"""`revvideo run_net` end to end on tiny video files: what it leaves in the run folder, and that it can be trusted."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from videos import decode_plainly

from revvideo import build, jobs
from revvideo.config import load_config
from revvideo.engine.events import EventLog, last_per_step, read_events

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT_TYPES = {
    "top1_acc": float,
    "top5_acc": float,
    "num_videos": int,
    "top1_acc_all": float,
    "top5_acc_all": float,
    "num_expected": int,
    "failed": list,
    "num_views": int,
    "num_crops": int,
    "checkpoint": str,
    "protocol": str,
    "wall_seconds": float,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> tuple[Path, tiny.Outcome]:
    """A run of two epochs with validation and a test. Read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    outcome = tiny.done(tiny.run_net(data, folder, tiny.RANDOM, {"SOLVER.MAX_EPOCH": 2, "LOG_PERIOD": 1}))
    return folder, outcome


def tiny_config(data: Path, folder: Path, *layers: dict):
    own = {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder}
    return load_config("demo/REV_MVIT_DEMO", tiny.overrides(own, *layers))


# The run folder


def test_the_run_folder_holds_what_the_design_says(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "events.jsonl",
        "checkpoints",
        "results.json",
        "predictions.npz",
    }
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["checkpoint_epoch_00001.pyth", "checkpoint_epoch_00002.pyth"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__


def test_the_written_config_loads_to_an_equal_one(data, finished):
    folder, _ = finished
    expected = tiny_config(data, folder, tiny.RANDOM, {"SOLVER.MAX_EPOCH": 2, "LOG_PERIOD": 1})
    assert load_config(folder / "config.yaml") == expected


def test_the_events_tell_the_run(finished):
    folder, _ = finished
    events = tiny.events(folder)
    epoch = ["train_step", "train_step", "validation", "checkpoint"]
    assert [event["kind"] for event in events] == ["start", *epoch, *epoch, "test"]
    assert {event["restart"] for event in events} == {0}
    steps = tiny.events(folder, "train_step")
    assert [(event["epoch"], event["step"]) for event in steps] == [(0, 0), (0, 1), (1, 2), (1, 3)]
    for event in steps:
        assert all(math.isfinite(event[name]) for name in ("loss", "lr", "grad_norm", "clips_per_second"))
        assert 0.0 <= event["top1"] <= 100.0
        assert 0.0 <= event["data_wait_share"] <= 1.0
        assert event["bad_videos"] == 0
    assert steps[0]["lr"] == pytest.approx(1e-5)  # SOLVER.WARMUP_START_LR: the rate before the step counts
    assert max(event["lr"] for event in steps) == pytest.approx(1e-3)


def test_checkpoints_have_the_keys_of_pyslowfast(finished):
    folder, _ = finished
    for number in (1, 2):
        state = torch.load(folder / f"checkpoints/checkpoint_epoch_0000{number}.pyth", weights_only=True)
        assert {"epoch", "model_state", "optimizer_state", "cfg"} <= set(state)
        assert "scaler_state" not in state  # no mixed precision
        assert state["epoch"] == number - 1
    assert state["cfg"] == (folder / "config.yaml").read_text(encoding="utf-8")
    model = build.build_model(load_config(folder / "config.yaml"))
    model.load_state_dict(state["model_state"])  # strict


def test_one_plain_line_a_log_period(finished, data, tmp_path):
    _, every_step = finished
    assert re.findall(r"train (\d)/2: (\d)/2, eta", every_step.err) == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert "\r" not in every_step.err  # no bar
    settings = tiny.TRAIN_ONLY | {"TRAIN.BATCH_SIZE": 1, "LOG_PERIOD": 3}
    rare = tiny.done(tiny.run_net(data, tmp_path, settings))
    assert re.findall(r"train 1/1: (\d)/8, eta.*loss", rare.err) == ["3", "6", "8"]


# Results


def check_results(folder: Path, name: str, num_views: int, num_crops: int) -> dict:
    """results{name}.json has the keys and types of the design and says what predictions{name}.npz says."""
    results = json.loads((folder / f"results{name}.json").read_text(encoding="utf-8"))
    assert {key: type(value) for key, value in results.items()} == RESULT_TYPES
    assert (results["num_views"], results["num_crops"]) == (num_views, num_crops)
    assert results["num_videos"] == results["num_expected"] == tiny.NUM_TEST
    assert results["failed"] == []
    assert results["wall_seconds"] > 0
    assert f"{num_views} temporal views x {num_crops} spatial crops" in results["protocol"]
    with np.load(folder / f"predictions{name}.npz") as file:  # allow_pickle is off
        arrays = dict(file)
    assert set(arrays) == {"path", "label", "scores"}
    assert arrays["scores"].dtype == np.float32
    assert arrays["scores"].shape == (tiny.NUM_TEST, tiny.NUM_CLASSES)
    assert [Path(path).name for path in arrays["path"]] == [f"test{i}.mp4" for i in range(tiny.NUM_TEST)]
    assert arrays["label"].tolist() == [(i + 1) % tiny.NUM_CLASSES for i in range(tiny.NUM_TEST)]
    order = np.argsort(-arrays["scores"], axis=1)
    hits = order == arrays["label"][:, None]
    for k, key in ((1, "top1_acc"), (5, "top5_acc")):
        expected = 100.0 * hits[:, :k].sum() / tiny.NUM_TEST
        assert results[key] == results[f"{key}_all"] == pytest.approx(expected, abs=1e-12)
    return results


def test_results_and_predictions_agree(finished):
    folder, outcome = finished
    results = check_results(folder, "", 2, 1)
    assert results["checkpoint"] == str(folder / "checkpoints/checkpoint_epoch_00002.pyth")
    assert f"top-1 {results['top1_acc']:.2f} %" in outcome.err
    (event,) = tiny.events(folder, "test")
    assert {key: event[key] for key in results} == results


@pytest.fixture(scope="module")
def sharp_checkpoint(data, tmp_path_factory) -> Path:
    """Weights whose softmax is far from uniform, so that a wrong view or a wrong ensemble shows."""
    folder = tmp_path_factory.mktemp("sharp")
    torch.manual_seed(5)
    model = build.build_model(tiny_config(data, folder))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    path = folder / "sharp.pyth"
    torch.save({"epoch": 0, "model_state": model.state_dict()}, path)
    return path


def views_by_the_formulas(path: Path, rate: float, num_views: int, num_crops: int) -> torch.Tensor:
    """Normalised clips (V * S, C, T, H, W) of a video, temporal index outermost: the formulas in plain code."""
    frames = decode_plainly(str(path))  # (n, H, W, C); the short side is that of the crop: nothing is resized
    length = max(1.0, 4 * 4 / 30 * rate)
    latest = max(len(frames) - length, 0.0)
    corners = [0, math.ceil((tiny.WIDTH - 32) / 2), tiny.WIDTH - 32] if num_crops == 3 else [8]
    clips = []
    for view in range(num_views):
        start = latest * view / num_views
        picked = [
            int(min(max(float(position), 0.0), len(frames) - 1))
            for position in torch.linspace(start, start + length - 1, 4)
        ]
        for x in corners:
            clip = frames[picked][:, :, x : x + 32].astype(np.float32)  # (T, 32, 32, C)
            clips.append(((clip / 255.0 - 0.45) / 0.225).transpose(3, 0, 1, 2))  # (C, T, 32, 32)
    return torch.from_numpy(np.stack(clips))


@pytest.mark.parametrize(("method", "num_views", "num_crops"), [("sum", 2, 3), ("max", 3, 3), ("sum", 5, 1)])
def test_ensembles_equal_a_plain_loop_over_the_views(data, sharp_checkpoint, tmp_path, method, num_views, num_crops):
    keys = {
        "TRAIN.ENABLE": False,
        "TEST.CHECKPOINT_FILE_PATH": sharp_checkpoint,
        "TEST.NUM_ENSEMBLE_VIEWS": num_views,
        "TEST.NUM_SPATIAL_CROPS": num_crops,
        "DATA.ENSEMBLE_METHOD": method,
    }
    tiny.done(tiny.run_net(data, tmp_path, keys))
    results = check_results(tmp_path, "", num_views, num_crops)
    assert results["checkpoint"] == str(sharp_checkpoint)
    assert f"{method} of softmax" in results["protocol"]
    with np.load(tmp_path / "predictions.npz") as file:
        scores = file["scores"]

    model = build.build_model(load_config(tmp_path / "config.yaml")).eval()
    model.load_state_dict(torch.load(sharp_checkpoint, weights_only=True)["model_state"])
    spread = 0.0
    for number, rate in enumerate(tiny.TEST_RATES):
        clips = views_by_the_formulas(data / f"test{number}.mp4", rate, num_views, num_crops)
        with torch.no_grad():
            logits = torch.cat([model(clip[None]) for clip in clips]).double()
        softmax = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        expected = softmax.sum(dim=0) if method == "sum" else softmax.max(dim=0).values
        np.testing.assert_allclose(scores[number], expected.numpy(), rtol=0, atol=1e-5)
        spread = max(spread, float((softmax.max(dim=0).values - softmax.min(dim=0).values).max()))
    assert spread > 0.01  # the views differ, so the comparison can tell them apart


def test_several_numbers_of_temporal_clips(data, sharp_checkpoint, tmp_path):
    keys = {
        "TRAIN.ENABLE": False,
        "TEST.CHECKPOINT_FILE_PATH": sharp_checkpoint,
        "TEST.NUM_TEMPORAL_CLIPS": [1, 2],
    }
    outcome = tiny.done(tiny.run_net(data, tmp_path, keys))
    for num_views in (1, 2):
        check_results(tmp_path, f"_{num_views}views", num_views, 1)
    assert (tmp_path / "results.json").read_bytes() == (tmp_path / "results_2views.json").read_bytes()
    assert (tmp_path / "predictions.npz").read_bytes() == (tmp_path / "predictions_2views.npz").read_bytes()
    assert (tmp_path / "predictions.npz").read_bytes() != (tmp_path / "predictions_1views.npz").read_bytes()
    assert outcome.err.count("top-1 ") == 2
    assert [event["num_views"] for event in tiny.events(tmp_path, "test")] == [1, 2]


def test_evaluating_twice_gives_equal_files(finished, data, tmp_path):
    folder, _ = finished
    again = {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": folder / "checkpoints/checkpoint_epoch_00002.pyth"}
    tiny.done(tiny.run_net(data, tmp_path, again, {"TEST.BATCH_SIZE": 3}))
    with np.load(folder / "predictions.npz") as first, np.load(tmp_path / "predictions.npz") as second:
        assert first["path"].tolist() == second["path"].tolist()
        np.testing.assert_allclose(first["scores"], second["scores"], rtol=0, atol=1e-6)  # another batch size


# Validation


def test_validation_comes_every_eval_period_and_at_the_end(data, tmp_path):
    keys = {"SOLVER.MAX_EPOCH": 5, "TRAIN.EVAL_PERIOD": 2, "TRAIN.CHECKPOINT_PERIOD": 3, "TEST.ENABLE": False}
    tiny.done(tiny.run_net(data, tmp_path, keys))
    validations = tiny.events(tmp_path, "validation")
    assert [event["epoch"] for event in validations] == [1, 3, 4]
    assert [event["epoch"] for event in tiny.events(tmp_path, "checkpoint")] == [2, 4]
    assert all(event["num_videos"] == event["num_expected"] == tiny.NUM_TEST for event in validations)
    assert not (tmp_path / "results.json").exists()  # TEST.ENABLE False


def test_validation_is_deterministic_and_leaves_training_alone(finished, data, tmp_path):
    folder, _ = finished
    without = tmp_path / "without"
    keys = {"SOLVER.MAX_EPOCH": 2, "LOG_PERIOD": 1}
    tiny.done(tiny.run_net(data, without, tiny.RANDOM, tiny.TRAIN_ONLY, keys))
    assert tiny.losses(without) == tiny.losses(folder)
    assert tiny.events(without, "validation") == []
    # The same run once more, clips read by a worker process: equal figures.
    again = tmp_path / "again"
    tiny.done(tiny.run_net(data, again, tiny.RANDOM, keys, {"TEST.ENABLE": False, "DATA_LOADER.NUM_WORKERS": 1}))
    figures = ("epoch", "top1_acc", "top5_acc", "num_videos", "failed")
    first, second = (
        [{name: event[name] for name in figures} for event in tiny.events(path, "validation")]
        for path in (folder, again)
    )
    assert first == second


def test_validation_scores_the_centre_clip_and_the_centre_crop(data, tmp_path):
    cfg = tiny_config(data, tmp_path)
    loader = build.build_val_loader(cfg)
    for item, rate in zip(loader, tiny.TEST_RATES):
        frames = decode_plainly(loader.dataset.manifest.paths[item["index"]])
        length = max(1.0, 16 / 30 * rate)
        start = max(len(frames) - length, 0.0) / 2
        places = torch.linspace(start, start + length - 1, 4).clamp(0, len(frames) - 1).long()
        expected = frames[places.numpy()][:, :, 8:40].transpose(0, 3, 1, 2)
        assert item["video"].shape == (1, 4, 3, 32, 32)
        np.testing.assert_array_equal(item["video"][0].numpy(), expected)


# Resuming, and starting from a checkpoint

# A schedule that does not ask how many epochs there are, so that a run of two epochs can become one of four.
STEPS = {
    "SOLVER.LR_POLICY": "steps_with_relative_lrs",
    "SOLVER.STEPS": [0, 1, 3],
    "SOLVER.LRS": [1.0, 0.5, 0.1],
}


@pytest.fixture(scope="module")
def four_epochs(data, tmp_path_factory) -> Path:
    """Four epochs in one go, drop path, mixup and validation on. Read only."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM, STEPS, {"SOLVER.MAX_EPOCH": 4, "TEST.ENABLE": False}))
    return folder


def test_two_epochs_resumed_to_four_equal_four(data, four_epochs, tmp_path):
    keys = [tiny.RANDOM, STEPS, {"TEST.ENABLE": False}]
    tiny.done(tiny.run_net(data, tmp_path, *keys, {"SOLVER.MAX_EPOCH": 2}))
    torch.manual_seed(99)  # nothing of this process may matter
    outcome = tiny.done(tiny.run_net(data, tmp_path, *keys, {"SOLVER.MAX_EPOCH": 4}))
    assert "resumed after epoch 2" in outcome.err
    assert tiny.losses(tmp_path) == tiny.losses(four_epochs)
    assert len(tiny.losses(tmp_path)) == 8
    first, second = (
        torch.load(folder / "checkpoints/checkpoint_epoch_00004.pyth", weights_only=True)
        for folder in (four_epochs, tmp_path)
    )
    assert all(torch.equal(first["model_state"][name], second["model_state"][name]) for name in first["model_state"])
    assert {event["restart"] for event in tiny.events(tmp_path, "train_step")} == {0, 1}
    (resume,) = tiny.events(tmp_path, "resume")
    assert (resume["epoch"], resume["restart"]) == (1, 1)


def test_a_killed_run_repeats_the_steps_after_its_checkpoint(data, four_epochs, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(four_epochs, folder)
    for number in (3, 4):  # as if it had been killed in the fourth epoch, the third checkpoint half written
        (folder / f"checkpoints/checkpoint_epoch_0000{number}.pyth").unlink()
    (folder / "checkpoints/.checkpoint_epoch_00003.pyth.tmp").write_bytes(b"half")
    keys = {"SOLVER.MAX_EPOCH": 4, "TEST.ENABLE": False}
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM, STEPS, keys))
    events = list(read_events(folder / "events.jsonl"))
    steps = [event for event in events if event["kind"] == "train_step"]
    assert [event["step"] for event in steps] == [*range(8), *range(4, 8)]
    last = [event for event in last_per_step(events) if event["kind"] == "train_step"]
    assert [event["restart"] for event in last] == [0] * 4 + [1] * 4
    assert [event["loss"] for event in last] == tiny.losses(four_epochs)


def test_a_finished_run_trains_nothing_more(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = len(tiny.events(folder, "train_step"))
    outcome = tiny.done(tiny.run_net(data, folder, tiny.RANDOM, {"SOLVER.MAX_EPOCH": 2}))
    assert "training is complete (2 epochs)" in outcome.err
    assert len(tiny.events(folder, "train_step")) == before
    assert len(tiny.events(folder, "test")) == 2  # but it is evaluated again


def test_without_auto_resume_training_begins_anew(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = tiny.losses(folder)
    keys = {"SOLVER.MAX_EPOCH": 2, "TRAIN.AUTO_RESUME": False}
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM, tiny.TRAIN_ONLY, keys))
    steps = tiny.events(folder, "train_step")
    assert [event["step"] for event in steps] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert tiny.losses(folder) == before  # the same seed


@pytest.mark.parametrize("reset", [False, True])
def test_training_from_a_named_checkpoint(data, finished, tmp_path, reset):
    source = finished[0] / "checkpoints/checkpoint_epoch_00001.pyth"
    keys = {
        "SOLVER.MAX_EPOCH": 2,
        "TRAIN.CHECKPOINT_FILE_PATH": source,
        "TRAIN.CHECKPOINT_EPOCH_RESET": reset,
        "SOLVER.BASE_LR": 1e-12,  # the weights stay where they are, so the checkpoint shows them
        "SOLVER.WARMUP_START_LR": 1e-12,
        "SOLVER.COSINE_END_LR": 0.0,
    }
    outcome = tiny.done(tiny.run_net(data, tmp_path, tiny.TRAIN_ONLY, keys))
    epochs = [event["epoch"] for event in tiny.events(tmp_path, "train_step")]
    assert epochs == ([0, 0, 1, 1] if reset else [1, 1])
    assert f"weights from {source}; training begins at epoch {1 if reset else 2}" in outcome.err
    before = torch.load(source, weights_only=True)
    after = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)
    for name, weight in before["model_state"].items():
        torch.testing.assert_close(after["model_state"][name], weight, rtol=0, atol=1e-9)
    steps_done = [int(float(state["step"])) for state in after["optimizer_state"]["state"].values()]
    assert set(steps_done) == {4}  # with the optimizer's state: 2 of the checkpoint + 2; reset: 4 of this run


def test_weights_without_an_optimizer_state_can_be_trained_on(data, finished, tmp_path):
    """A stripped checkpoint, as published weights are: all or nothing, but no crash."""
    state = torch.load(finished[0] / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)
    torch.save({"epoch": 1, "model_state": state["model_state"]}, tmp_path / "weights.pyth")
    keys = {"TRAIN.CHECKPOINT_FILE_PATH": tmp_path / "weights.pyth", "SOLVER.MAX_EPOCH": 3}
    outcome = tiny.run_net(data, tmp_path / "run", tiny.TRAIN_ONLY, keys)
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.code in (0, 2), outcome.err


def test_evaluating_a_run_folder_leaves_it_able_to_train_further(data, tmp_path):
    """The two commands that the demo prints, one after the other."""
    folder = tmp_path / "run"
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM))
    again = ["run_net", "--cfg", folder / "config.yaml"]
    tiny.done(tiny.command(*again, "TRAIN.ENABLE", "False"))
    tiny.done(tiny.command(*again, "SOLVER.MAX_EPOCH", "2"))
    assert [event["epoch"] for event in tiny.events(folder, "train_step")] == [0, 0, 1, 1]


def test_the_run_folder_is_evaluated_at_its_newest_checkpoint(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "checkpoints/checkpoint_epoch_00002.pyth").unlink()
    tiny.done(tiny.run_net(data, folder, {"TRAIN.ENABLE": False}))
    results = json.loads((folder / "results.json").read_text())
    assert results["checkpoint"] == str(folder / "checkpoints/checkpoint_epoch_00001.pyth")


# Options of training


def train(data: Path, folder: Path, *layers: dict) -> list[float]:
    tiny.done(tiny.run_net(data, folder, tiny.TRAIN_ONLY, *layers))
    values = tiny.losses(folder)
    assert values
    assert all(math.isfinite(value) for value in values)
    return values


@pytest.mark.parametrize("method", ["sgd", "adam", "adamw", "mt_adamw"])
def test_every_optimizer_trains(data, tmp_path, method):
    train(data, tmp_path, {"SOLVER.OPTIMIZING_METHOD": method, "TRAIN.BATCH_SIZE": 8})


@pytest.mark.parametrize(
    ("loss", "mixup"), [("cross_entropy", False), ("soft_cross_entropy", True), ("bce", True), ("bce_logit", False)]
)
def test_every_loss_trains(data, tmp_path, loss, mixup):
    train(data, tmp_path, {"MODEL.LOSS_FUNC": loss, "MIXUP.ENABLE": mixup, "TRAIN.BATCH_SIZE": 8})


def test_an_unknown_optimizer_is_refused(data, tmp_path):
    outcome = tiny.run_net(data, tmp_path, {"SOLVER.OPTIMIZING_METHOD": "lion"})
    assert outcome.code == 2
    assert "SOLVER.OPTIMIZING_METHOD" in outcome.err
    assert "mt_adamw" in outcome.err


def test_bfloat16_on_the_cpu_trains(data, tmp_path):
    amp = {"TRAIN.MIXED_PRECISION": True, "AMP.DTYPE": "bfloat16"}
    plain = train(data, tmp_path / "float32", {"SOLVER.MAX_EPOCH": 2})
    mixed = train(data, tmp_path / "bfloat16", {"SOLVER.MAX_EPOCH": 2}, amp)
    assert mixed != plain
    np.testing.assert_allclose(mixed, plain, rtol=0.05)


def test_float16_on_the_cpu_trains_with_a_scaler(data, tmp_path):
    train(data, tmp_path, {"TRAIN.MIXED_PRECISION": True, "AMP.DTYPE": "float16"})
    state = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)
    assert state["scaler_state"]["scale"] > 0


def test_layer_decay_gives_later_layers_larger_rates(data, tmp_path):
    train(data, tmp_path, {"SOLVER.LAYER_DECAY": 0.75})
    state = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)
    rates = {}
    for group in state["optimizer_state"]["param_groups"]:
        rates.update(dict.fromkeys(group["names"], group["lr"]))
    assert set(rates) == set(state["model_state"])
    layers = sorted(set(rates.values()))
    assert len(layers) == tiny.TINY["MVIT.DEPTH"] + 2  # stem, blocks, head
    np.testing.assert_allclose(np.divide(layers[:-1], layers[1:]), 0.75, rtol=1e-9)
    assert rates["head.projection.weight"] == layers[-1]
    assert min(rates.values()) == next(rate for name, rate in rates.items() if name.startswith("patch_embed"))


@pytest.mark.parametrize("clip", [{"SOLVER.CLIP_GRAD_L2NORM": 1e-2}, {"SOLVER.CLIP_GRAD_VAL": 1e-4}, {}])
def test_gradient_clipping(data, tmp_path, clip):
    """One step of sgd without momentum and decay, at rate 1: the weights move by the clipped gradient."""
    keys = {
        "SOLVER.CLIP_GRAD_L2NORM": None,
        "SOLVER.OPTIMIZING_METHOD": "sgd",
        "SOLVER.MOMENTUM": 0.0,
        "SOLVER.NESTEROV": False,
        "SOLVER.WEIGHT_DECAY": 0.0,
        "SOLVER.BASE_LR": 1.0,
        "SOLVER.WARMUP_EPOCHS": 0.0,
        "TRAIN.BATCH_SIZE": 8,
    } | clip
    train(data, tmp_path, keys)
    cfg = load_config(tmp_path / "config.yaml")
    with EventLog(tmp_path / "other.jsonl") as events:
        start = jobs.build_trainer(cfg, events).model.state_dict()
    end = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)["model_state"]
    (step,) = tiny.events(tmp_path, "train_step")
    moves = torch.cat([(start[name] - end[name]).flatten() for name in start])
    assert step["grad_norm"] > 0.1  # the norm from before the clipping
    if "SOLVER.CLIP_GRAD_VAL" in clip:
        assert float(moves.abs().max()) == pytest.approx(1e-4, rel=2e-2)
    else:
        assert float(moves.norm()) == pytest.approx(clip.get("SOLVER.CLIP_GRAD_L2NORM", step["grad_norm"]), rel=1e-3)


def test_repeated_samples_make_a_larger_batch(data, tmp_path):
    keys = {"AUG.ENABLE": True, "AUG.NUM_SAMPLE": 2, "AUG.AA_TYPE": "", "AUG.RE_PROB": 0.0}
    outcome = tiny.done(tiny.run_net(data, tmp_path, tiny.TRAIN_ONLY, keys))
    assert "batch: 8 clips a step" in outcome.err


def test_plain_models_train_and_evaluate(data, tmp_path):
    """MViT, not reversible, with a class token."""
    keys = {"MVIT.REV.ENABLE": False, "MVIT.CLS_EMBED_ON": True}
    tiny.done(tiny.run_net(data, tmp_path, keys))
    check_results(tmp_path, "", 2, 1)


def test_a_loss_that_is_not_finite_stops_with_code_3(data, tmp_path):
    keys = {"SOLVER.OPTIMIZING_METHOD": "sgd", "SOLVER.BASE_LR": 1e30, "SOLVER.WARMUP_START_LR": 1e30}
    outcome = tiny.run_net(data, tmp_path, tiny.TRAIN_ONLY, keys, {"SOLVER.MAX_EPOCH": 4})
    assert outcome.code == 3
    assert "check failed: the loss is" in outcome.err
    assert "SOLVER.BASE_LR" in outcome.err
    assert "Traceback" not in outcome.err
    assert not math.isfinite(tiny.losses(tmp_path)[-1])  # it stands in the diary


# The command


def test_the_console_script_and_the_tool_are_the_same():
    script = Path(sys.executable).with_name("revvideo")
    first = [script, "run_net"] if script.exists() else [sys.executable, "-m", "revvideo.cli.main", "run_net"]
    texts = []
    for start in (first, [sys.executable, REPOSITORY / "tools/run_net.py"]):
        environment = os.environ | {"COLUMNS": "120"}
        run = subprocess.run(
            [*start, "--help"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        usage, _, rest = run.stdout.partition("\n\n")
        assert usage.startswith("usage: ")
        texts.append(rest)
    assert texts[0] == texts[1]
    for option in ("--cfg", "--opts", "--num_shards", "--shard_id", "--init_method", "KEY VALUE"):
        assert option in texts[0]
