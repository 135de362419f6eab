"""What results.json and metrics.json say beyond top-1, against figures worked out by hand or by another formula."""

import json
import math

import numpy as np
import pytest
import torch

from revvideo.engine.accuracy import calibration, detailed, headline, hits, wilson_interval


def one_hot_like(predicted, num_classes: int, confidence: float) -> np.ndarray:
    """Rows whose highest score is `confidence`, the rest shared evenly."""
    rows = np.full((len(predicted), num_classes), (1 - confidence) / (num_classes - 1), np.float32)
    rows[np.arange(len(predicted)), predicted] = confidence
    return rows


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (8, 10, 49.02, 94.33),  # Wilson's interval as tables give it
        (81, 263, 25.53, 36.62),  # Newcombe 1998, table I
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (20, 20, 83.89, 100.0),
        (1, 29, 0.61, 17.18),
    ],
)
def test_wilson_intervals(right, count, low, high):
    assert wilson_interval(right, count) == pytest.approx([low, high], abs=0.011)


def test_the_bounds_solve_wilsons_equation():
    """Where the observed share lies 1.96 standard errors of the bound itself away from the bound."""
    for right, count in ((1, 3), (7, 50), (900, 1000)):
        for bound in wilson_interval(right, count):
            p = bound / 100
            assert abs(right / count - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / count), rel=1e-6)


def test_calibration_error_by_hand():
    """Confidence 0.9: 3 of 4 right; 0.6: 1 of 4 right."""
    scores = np.concatenate([one_hot_like([0, 1, 2, 0], 3, 0.9), one_hot_like([0, 1, 2, 0], 3, 0.6)])
    labels = np.array([0, 1, 2, 1, 0, 0, 0, 1])
    for summed in (scores, 5 * scores):  # the sum over five views
        found = calibration(summed, labels)
        assert found["ece"] == pytest.approx(0.5 * 0.15 + 0.5 * 0.35, abs=1e-6)
        filled = [each for each in found["bins"] if each["num_videos"]]
        assert [(each["num_videos"], each["accuracy"]) for each in filled] == [(4, 0.25), (4, 0.75)]
        assert [each["confidence"] for each in filled] == pytest.approx([0.6, 0.9], abs=1e-6)
        assert len(found["bins"]) == 15
        assert all(each["low"] < each["confidence"] <= each["high"] for each in filled)


def test_calibration_of_the_calibrated_and_the_sure():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1.0, 20_000)
    scores = np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)
    labels = (generator.uniform(size=len(scores)) > confidence).astype(np.int64)
    assert calibration(scores, labels)["ece"] < 0.02
    sure = np.tile(np.array([[1.0, 0.0]], np.float32), (4, 1))
    assert calibration(sure, np.array([0, 0, 0, 1]))["ece"] == pytest.approx(0.25)


def test_classes_confusion_and_pairs():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = [0, 1, 1, 1, 0, 2]
    scores = one_hot_like(predicted, 4, 0.7)
    found = detailed(
        scores,
        labels,
        num_classes=4,
        failed_labels=np.array([3, 0]),
        class_names=("a", "b", "c", "d"),
        calibrated=True,
    )
    assert json.loads(json.dumps(found)) == found  # plain values
    assert [row["class"] for row in found["per_class"]] == [0, 1, 2, 3]
    assert [row["num_videos"] for row in found["per_class"]] == [3, 2, 1, 0]
    assert [row["top1_correct"] for row in found["per_class"]] == [1, 1, 1, 0]
    assert [row["top5_correct"] for row in found["per_class"]] == [3, 2, 1, 0]
    assert [row["num_failed"] for row in found["per_class"]] == [1, 0, 0, 1]
    assert found["confusion"] == [[0, 0, 1], [0, 1, 2], [1, 0, 1], [1, 1, 1], [2, 2, 1]]
    assert found["most_confused"] == [
        {"label": 0, "predicted": 1, "count": 2},
        {"label": 1, "predicted": 0, "count": 1},
    ]
    assert (found["num_classes"], found["num_videos"], found["class_names"]) == (4, 6, ["a", "b", "c", "d"])
    top = headline(scores, labels, calibrated=True)
    assert top["mean_class_acc"] == pytest.approx(100 * (1 / 3 + 1 / 2 + 1) / 3)  # the class without videos is left out
    assert top["top1_interval"] == wilson_interval(3, 6)
    assert top["top5_interval"] == wilson_interval(6, 6)
    assert top["ece"] == found["calibration"]["ece"]


def test_nothing_to_count_and_nothing_calibrated():
    nothing, labels = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    top = headline(nothing, labels, calibrated=True)
    assert top == {"mean_class_acc": None, "top1_interval": None, "top5_interval": None, "ece": None}
    found = detailed(nothing, labels, num_classes=2, failed_labels=np.array([1]), calibrated=True)
    assert (found["confusion"], found["most_confused"], found["calibration"]) == ([], [], None)
    assert found["per_class"][1]["num_failed"] == 1
    assert found["class_names"] is None
    logits = np.array([[2.0, -1.0]], np.float32)
    assert headline(logits, np.array([0]), calibrated=False)["ece"] is None


def test_hits_are_those_of_a_full_sort():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 9, generator=generator).numpy()
    labels = torch.randint(9, (200,), generator=generator).numpy()
    predicted, right, among = hits(scores, labels)
    order = np.argsort(-scores, axis=1)
    assert np.array_equal(predicted, order[:, 0])
    assert np.array_equal(right, order[:, 0] == labels)
    assert np.array_equal(among, (order[:, :5] == labels[:, None]).any(axis=1))
