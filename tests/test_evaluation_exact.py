"""Evaluation counts every view of every video once: equal bits for any number of processes, equal to a plain loop."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import run_config
import tiny
import torch
from plain_views import softmax_of_views, views_by_the_formulas, write_sharp_checkpoint
from processes import run_processes

from revvideo import build

LENGTHS, RATES = (*tiny.TEST_LENGTHS, 33), (*tiny.TEST_RATES, 24)  # seven videos: they divide by no 2 and by no 3
NUM_VIDEOS = len(LENGTHS)
VIEWS = {(5, 1): 12, (10, 3): 16, (1, 1): 2}  # (temporal, spatial) -> TEST.BATCH_SIZE: 2, 1 (in parts), 2 videos
COMMON = {"TRAIN.ENABLE": False, "DIST.TIMEOUT_SECONDS": 30}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rows = []
    for number, (length, rate) in enumerate(zip(LENGTHS, RATES)):
        name = f"{number}.mp4"
        size = (tiny.HEIGHT, tiny.WIDTH)
        tiny.write_video(root / name, length, size=size, fps=rate, seed=100 + number)
        rows.append((name, number % 4))
    tiny.write_list(root / "test.csv", rows)
    return root


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharp")
    return write_sharp_checkpoint(run_config.config(data, folder), folder / "sharp.pyth")


def keys(checkpoint: Path, views: tuple[int, int], *layers: dict) -> tuple[dict, ...]:
    own = {
        "TEST.CHECKPOINT_FILE_PATH": checkpoint,
        "TEST.NUM_ENSEMBLE_VIEWS": views[0],
        "TEST.NUM_SPATIAL_CROPS": views[1],
        "TEST.BATCH_SIZE": VIEWS[views],
    }
    return (COMMON, own, *layers)


def evaluated(folder: Path, data: Path, layers: tuple[dict, ...], count: int = 1) -> tuple[dict, dict, dict]:
    """results.json without the time, metrics.json, and the arrays of predictions.npz."""
    for result in run_processes(count, run_config.run, data, folder, layers, timeout_seconds=60):
        assert result.exitcode == 0, result.output
    return read(folder)


def read(folder: Path) -> tuple[dict, dict, dict]:
    results, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("results", "metrics"))
    del results["wall_seconds"]
    with np.load(folder / "predictions.npz") as file:
        return results, metrics, dict(file)


@pytest.mark.parametrize("views", VIEWS)
def test_one_two_and_three_processes_give_equal_bits_and_the_plain_loops_scores(data, checkpoint, tmp_path, views):
    layers = keys(checkpoint, views)
    results, metrics, arrays = evaluated(tmp_path / "1", data, layers)
    for count in (2, 3):
        again, metrics_again, arrays_again = evaluated(tmp_path / str(count), data, layers, count)
        assert (again, metrics_again) == (results, metrics)
        assert arrays_again["scores"].tobytes() == arrays["scores"].tobytes()
        assert arrays_again["path"].tolist() == arrays["path"].tolist()

    model = build.build_model(run_config.config(data, tmp_path)).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model_state"])
    total, spread = np.zeros((NUM_VIDEOS, tiny.NUM_CLASSES)), 0.0
    for number, rate in enumerate(RATES):
        softmax = softmax_of_views(model, views_by_the_formulas(data / f"{number}.mp4", rate, *views))
        assert len(softmax) == views[0] * views[1]
        total[number] = softmax.sum(axis=0)
        spread = max(spread, float(np.ptp(softmax, axis=0).max()))
    assert spread > 0.01 or views == (1, 1)  # the views differ, so the comparison can tell them apart
    difference = float(np.abs(arrays["scores"] - total).max()) / (views[0] * views[1])
    print(f"{views}: largest difference of a mean score from the plain loop {difference:.1e}")
    assert difference <= 1e-6
    order = np.argsort(-total, axis=1)
    right = order == (np.arange(NUM_VIDEOS) % 4)[:, None]
    assert results["top1_acc"] == pytest.approx(100 * right[:, 0].mean())
    assert results["top5_acc"] == pytest.approx(100 * right[:, :5].sum() / NUM_VIDEOS)
    assert results["num_videos"] == NUM_VIDEOS


@pytest.mark.parametrize(
    ("views", "batch_size"),
    [((10, 3), 30), *(pytest.param(*each, marks=pytest.mark.slow) for each in (((5, 1), 35), ((1, 1), 1)))],
)
def test_another_batch_shape_changes_no_metric_and_no_score_beyond_rounding(
    data, checkpoint, tmp_path, views, batch_size
):
    first = evaluated(tmp_path / "a", data, keys(checkpoint, views))
    second = evaluated(tmp_path / "b", data, keys(checkpoint, views, {"TEST.BATCH_SIZE": batch_size}))
    assert first[0] | {"ece": 0} == second[0] | {"ece": 0}
    assert first[0]["ece"] == pytest.approx(second[0]["ece"], abs=1e-6)
    assert all(first[1][name] == second[1][name] for name in ("per_class", "confusion", "most_confused"))
    difference = float(np.abs(first[2]["scores"] - second[2]["scores"]).max()) / (views[0] * views[1])
    print(f"{views}: largest difference of a mean score between two batch shapes {difference:.1e}")
    assert difference <= 1e-6


def test_mean_and_maximum_over_views_and_the_scores_of_each_view(data, checkpoint, tmp_path):
    save = {"EVAL.SAVE_VIEWS": True}
    total = evaluated(tmp_path / "sum", data, keys(checkpoint, (5, 1), save))[2]
    assert total["view_scores"].shape == (NUM_VIDEOS, 5, tiny.NUM_CLASSES)
    assert np.array_equal(total["view_scores"].sum(axis=1, dtype=np.float32), total["scores"])
    highest = evaluated(tmp_path / "max", data, keys(checkpoint, (5, 1), {"DATA.ENSEMBLE_METHOD": "max"}))[2]
    assert "view_scores" not in highest
    assert np.array_equal(highest["scores"], total["view_scores"].max(axis=1))
    mean = evaluated(tmp_path / "mean", data, keys(checkpoint, (5, 1), {"DATA.ENSEMBLE_METHOD": "mean"}))[2]
    assert np.array_equal(mean["scores"], total["scores"] / np.float32(5))


def test_bfloat16_is_an_option(data, checkpoint, tmp_path):
    whole = evaluated(tmp_path / "a", data, keys(checkpoint, (5, 1)))[2]["scores"]
    half = evaluated(tmp_path / "b", data, keys(checkpoint, (5, 1), {"EVAL.MIXED_PRECISION": True}))[2]["scores"]
    assert 1e-6 < np.abs(whole - half).max() < 0.5


def test_pyslowfasts_file_of_predictions(data, checkpoint, tmp_path):
    """TEST.SAVE_RESULTS_PATH: a pickle of two tensors, in the order of the list."""
    arrays = evaluated(tmp_path, data, keys(checkpoint, (1, 1), {"TEST.SAVE_RESULTS_PATH": "out/preds.pkl"}))[2]
    with open(tmp_path / "out" / "preds.pkl", "rb") as file:
        scores, labels = pickle.load(file)
    assert scores.dtype == torch.float32
    assert np.array_equal(scores.numpy(), arrays["scores"])
    assert labels.tolist() == arrays["label"].tolist()
    assert not (tmp_path / "evaluation").exists()


# Videos that cannot be read


@pytest.fixture(scope="module")
def damaged(data, tmp_path_factory) -> Path:
    """A list of a good video, a corrupt one, a missing one, one of one frame, and a good one."""
    root = tmp_path_factory.mktemp("damaged")
    (root / "corrupt.mp4").write_bytes((data / "1.mp4").read_bytes()[:700])
    tiny.write_video(root / "one_frame.mp4", 1, size=(tiny.HEIGHT, tiny.WIDTH), seed=1)
    names = [data / "0.mp4", "corrupt.mp4", "missing.mp4", "one_frame.mp4", data / "5.mp4"]
    tiny.write_list(root / "test.csv", [(str(name), number) for number, name in enumerate(names)])
    return root


def test_a_list_with_bad_videos(data, damaged, checkpoint, tmp_path):
    layers = keys(checkpoint, (5, 1), {"TEST.SAVE_RESULTS_PATH": "preds.pkl"})
    outcome = tiny.done(tiny.run_net(damaged, tmp_path / "one", *layers))
    results, metrics, arrays = read(tmp_path / "one")
    assert "2 of 5 videos could not be read and count as wrong" in outcome.err
    assert [Path(failure["path"]).name for failure in results["failed"]] == ["corrupt.mp4", "missing.mp4"]
    assert all(failure["reason"] for failure in results["failed"])
    assert (results["num_videos"], results["num_expected"]) == (3, 5)
    right = int((arrays["scores"].argmax(axis=1) == arrays["label"]).sum())
    assert arrays["label"].tolist() == [0, 3, 4]
    assert results["top1_acc"] == pytest.approx(100 * right / 3)
    assert results["top1_acc_all"] == pytest.approx(100 * right / 5)
    assert [entry["num_failed"] for entry in metrics["per_class"]] == [0, 1, 1, 0, 0, 0]
    with open(tmp_path / "one" / "preds.pkl", "rb") as file:
        scores, labels = pickle.load(file)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert not scores[1:3].any()
    assert np.array_equal(scores[[0, 3, 4]].numpy(), arrays["scores"])
    for count in (2, 3):
        again = evaluated(tmp_path / str(count), damaged, layers, count)
        assert again[:2] == (results, metrics)
        assert again[2]["scores"].tobytes() == arrays["scores"].tobytes()


def test_strict_ends_with_code_3_after_the_results_are_written(damaged, checkpoint, tmp_path):
    outcome = tiny.run_net(damaged, tmp_path / "one", *keys(checkpoint, (1, 1)), words=["--strict"])
    assert outcome.code == 3, outcome.err
    assert read(tmp_path / "one")[0]["num_videos"] == 3
    assert "2 of 5 videos could not be read" in outcome.err.splitlines()[-1]
    assert "corrupt.mp4" in outcome.err.splitlines()[-1]
    layers = keys(checkpoint, (1, 1), {"EVAL.STRICT": True})
    results = run_processes(2, run_config.run, damaged, tmp_path / "two", layers, timeout_seconds=60)
    assert [result.exitcode for result in results] == [3, 3]
    assert read(tmp_path / "two")[0]["num_videos"] == 3


def test_strict_is_content_where_all_can_be_read(data, checkpoint, tmp_path):
    tiny.done(tiny.run_net(data, tmp_path, *keys(checkpoint, (1, 1)), words=["--strict"]))


def test_a_hole_changes_no_bit_of_the_others(data, checkpoint, tmp_path):
    """A video of the batch is gone: its neighbour's scores are what they were."""
    whole = evaluated(tmp_path / "a", data, keys(checkpoint, (5, 1)))[2]["scores"]
    holed = tmp_path / "data"
    holed.mkdir()
    names = ["gone.mp4" if number == 2 else str(data / f"{number}.mp4") for number in range(NUM_VIDEOS)]
    tiny.write_list(holed / "test.csv", [(name, number % 4) for number, name in enumerate(names)])
    found = evaluated(tmp_path / "b", holed, keys(checkpoint, (5, 1)))[2]["scores"]
    assert np.array_equal(found, np.delete(whole, 2, axis=0))


def test_each_video_is_opened_once_whatever_its_views(data, checkpoint, tmp_path):
    cfg = run_config.config(data, tmp_path, *keys(checkpoint, (10, 3)))
    loader, opened = build.build_test_loader(cfg, 10), []
    loader.dataset.on_read = opened.append
    assert [len(item["video"]) for item in loader] == [30] * NUM_VIDEOS
    assert opened == list(range(NUM_VIDEOS))
