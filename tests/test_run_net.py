"""`revvideo run_net` end to end on tiny video files: what it leaves in the run folder, and that it can be trusted."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from plain_views import softmax_of_views, views_by_the_formulas, write_sharp_checkpoint
from videos import decode_plainly

from revvideo import build
from revvideo.config import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT_TYPES = {
    "top1_acc": float,
    "top5_acc": float,
    "num_videos": int,
    "top1_acc_all": float,
    "top5_acc_all": float,
    "num_expected": int,
    "failed": list,
    "mean_class_acc": float,
    "top1_interval": list,
    "top5_interval": list,
    "ece": float,
    "num_views": int,
    "num_crops": int,
    "checkpoint": str,
    "protocol": str,
    "wall_seconds": float,
}


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
        "metrics.json",
        "predictions.npz",
    }
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    epochs = ("epoch_00001.pyth", "epoch_00002.pyth")
    assert names == {"best.pyth", *(f"checkpoint_{name}" for name in epochs), *(f"{name}.sha256" for name in epochs)}
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
    assert all(event["seconds"] > 0.0 for event in tiny.events(folder, "checkpoint"))


def test_status_understands_the_events(finished):
    folder, _ = finished
    (member,) = json.loads(tiny.done(tiny.command("status", folder, "--json")).out)["members"]
    progress = member["progress"]
    assert (progress["epoch"], progress["max_epoch"], progress["seconds_left"]) == (2, 2, 0)
    assert progress["step"] == progress["num_steps"] == 2 * tiny.NUM_TRAIN // 4
    assert progress["validation"]["epoch"] == 2
    assert progress["test"]["num_videos"] > 0


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
    folder = tmp_path_factory.mktemp("sharp")
    return write_sharp_checkpoint(tiny_config(data, folder), folder / "sharp.pyth")


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
        softmax = softmax_of_views(model, clips)
        expected = softmax.sum(axis=0) if method == "sum" else softmax.max(axis=0)
        np.testing.assert_allclose(scores[number], expected, rtol=0, atol=1e-5)
        spread = max(spread, float((softmax.max(axis=0) - softmax.min(axis=0)).max()))
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
    better, best = [], -1.0  # a new best one is kept, too
    for event in validations:
        if event["top1_acc"] > best:
            better, best = [*better, event["epoch"]], event["top1_acc"]
    assert [event["epoch"] for event in tiny.events(tmp_path, "checkpoint")] == sorted({2, 4, *better})
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
