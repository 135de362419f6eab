"""Losses, accuracies and the scores of videos are PySlowFast's; every view counts exactly once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from revvideo.engine.losses import make_loss
from revvideo.engine.metrics import VideoScores, merge_mixed_targets, topk_correct
from revvideo.errors import CheckFailed, InputError

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_losses_metrics.json").read_text())


def test_soft_cross_entropy_equals_pyslowfast():
    golden, loss = GOLDEN["soft_cross_entropy"], make_loss("soft_cross_entropy")
    logits = torch.tensor(golden["logits"])
    mixup, cutmix = torch.tensor(golden["mixup_target"]), torch.tensor(golden["cutmix_target"])
    assert loss(logits, mixup).item() == pytest.approx(golden["mixup"], rel=1e-6)
    assert loss(logits, cutmix).item() == pytest.approx(golden["cutmix"], rel=1e-6)
    assert loss(logits, 2 * mixup).item() == pytest.approx(golden["twice"], rel=1e-6)  # not renormalised
    assert loss(logits, torch.tensor(golden["labels"])).item() == pytest.approx(golden["hard"], rel=1e-6)
    for row, expected in enumerate(golden["per_sample"]):
        assert loss(logits[row : row + 1], mixup[row : row + 1]).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="do not match"):
        loss(logits, mixup[:1])


def test_other_losses_are_torchs():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    weights = torch.rand(6, 4)
    assert torch.equal(make_loss("cross_entropy")(logits, labels), torch.nn.CrossEntropyLoss()(logits, labels))
    assert torch.equal(make_loss("bce_logit")(logits, weights), torch.nn.BCEWithLogitsLoss()(logits, weights))
    assert torch.equal(make_loss("bce")(logits.sigmoid(), weights), torch.nn.BCELoss()(logits.sigmoid(), weights))
    one_hot = F.one_hot(labels, 4).float()
    assert torch.equal(make_loss("bce_logit")(logits, labels), torch.nn.BCEWithLogitsLoss()(logits, one_hot))
    assert [make_loss(name).takes_probabilities for name in ("bce", "bce_logit", "soft_cross_entropy")] == [
        True,
        False,
        False,
    ]
    with pytest.raises(
        InputError, match="LOSS_FUNC is 'dice'; known: cross_entropy, soft_cross_entropy, bce, bce_logit"
    ):
        make_loss("dice")


@pytest.mark.parametrize("name", ["cross_entropy", "soft_cross_entropy", "bce", "bce_logit"])
def test_losses_are_computed_in_full_precision(name):
    outputs, labels = torch.rand(4, 3), torch.tensor([0, 1, 2, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make_loss(name)(outputs.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, make_loss(name)(outputs.bfloat16().float(), labels))
    assert make_loss(name)(outputs.double(), labels).dtype == torch.float64


def test_topk_and_fewer_classes_than_k():
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    labels = torch.tensor([1, 1, 0])
    assert [int(count) for count in topk_correct(scores, labels, (1, 2, 5))] == [1, 2, 3]


def test_accuracy_under_mixup():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 4.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    targets = torch.tensor([[0.3, 0.65, 0.025, 0.025], [0.025, 0.6, 0.025, 0.35], [0.925, 0.025, 0.025, 0.025]])
    merged, labels = merge_mixed_targets(scores, targets)
    assert labels.tolist() == [1, 1, 0]
    # Mixed: the second class's score is added to the first's and becomes 0. Not mixed: untouched.
    assert merged.tolist() == [[0.0, 5.0, 1.0, 0.0], [1.0, 2.0, 4.0, 0.0], [0.0, 1.0, 2.0, 3.0]]
    assert scores[0].tolist() == [3.0, 2.0, 1.0, 0.0]
    hard = torch.tensor([0, 2, 1])
    assert merge_mixed_targets(scores, hard)[1] is hard
    assert merge_mixed_targets(scores[:, :2], targets[:, :2])[0][0].tolist() == [0.0, 5.0]


@pytest.mark.parametrize("method", ["sum", "max"])
def test_video_scores_equal_pyslowfasts_test_meter(method):
    golden = GOLDEN["testmeter"]
    logits = torch.tensor(golden["logits"])  # (2, 5, 6)
    for labels in ([1, 0], [1, 3]):  # what the golden's accuracies imply: 1 for the first, not 5 for the second
        scores = VideoScores(5, method=method)
        for index in range(2):
            scores.add(index, range(5), logits[index], label=labels[index])
        assert scores.arrays()["scores"] == pytest.approx(np.array(golden[method]["video_preds"]), rel=1e-6)
        summary = scores.summary(2)
        assert f"{summary['top1_acc']:.2f}" == golden[method]["top1"]
        assert f"{summary['top5_acc']:.2f}" == golden[method]["top5"]


def test_views_in_any_order_and_portion_give_the_same_bits():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    straight, mixed = VideoScores(6, method="mean"), VideoScores(6, method="mean")
    straight.add(0, range(6), logits, label=2, path="a")
    for views in ([5, 1], [0], [4, 3, 2]):
        mixed.add(0, views, logits[views], label=2, path="a")
    assert np.array_equal(straight.arrays()["scores"], mixed.arrays()["scores"])
    assert straight.arrays()["scores"].sum() == pytest.approx(1.0)
    assert straight.arrays()["scores"].dtype == np.float32


def test_a_view_too_many_too_few_or_of_another_video_is_named():
    logits = torch.zeros(2, 3)
    scores = VideoScores(2)
    scores.add(0, [0, 1], logits, label=1, path="a.mp4")
    with pytest.raises(AssertionError, match=r"video 0 \(a.mp4\): view 1 came twice"):
        scores.add(0, [1], logits[:1], label=1, path="a.mp4")
    with pytest.raises(AssertionError, match=r"video 2 \(c.mp4\): view 2 does not exist"):
        scores.add(2, [2], logits[:1], label=1, path="c.mp4")
    scores = VideoScores(2)
    scores.add(1, [1], logits[:1], label=0, path="b.mp4")
    with pytest.raises(AssertionError, match="before it was"):
        scores.add(1, [0], logits[:1], label=2, path="b.mp4")
    with pytest.raises(AssertionError, match=r"b.mp4\) has 1 of 2 views; video 0 never came"):
        scores.summary(2)
    scores.add(1, [0], logits[:1], label=0, path="b.mp4")
    with pytest.raises(AssertionError, match="video 1 is beyond the 1 expected"):
        scores.summary(1)
    with pytest.raises(AssertionError, match="is there already"):
        scores.add_failure(1, "b.mp4", "broken")


def test_failed_videos_count_as_wrong_in_all_and_not_in_readable():
    scores = VideoScores(1)
    for index, (label, guess) in enumerate([(0, 0), (1, 1), (2, 0)]):
        scores.add(index, [0], 5 * F.one_hot(torch.tensor([guess]), 3).float(), label=label, path=f"{index}.mp4")
    scores.add_failure(3, "3.mp4", "no video stream")
    assert scores.summary(4) == {
        "top1_acc": pytest.approx(200 / 3),
        "top5_acc": 100.0,
        "num_videos": 3,
        "top1_acc_all": 50.0,
        "top5_acc_all": 75.0,
        "num_expected": 4,
        "failed": [{"path": "3.mp4", "reason": "no video stream"}],
    }
    assert scores.arrays()["path"].tolist() == ["0.mp4", "1.mp4", "2.mp4"]


def test_nothing_readable_bad_scores_bad_label_bad_method():
    scores = VideoScores(1)
    scores.add_failure(0, "a.mp4", "broken")
    summary = scores.summary(1)
    assert (summary["top1_acc"], summary["top1_acc_all"], summary["num_videos"]) == (None, 0.0, 0)
    with pytest.raises(CheckFailed, match="not finite"):
        VideoScores(1).add(0, [0], torch.full((1, 3), float("nan")), label=0)
    with pytest.raises(InputError, match="label 3, but the model has 3 classes"):
        VideoScores(1).add(0, [0], torch.zeros(1, 3), label=3)
    with pytest.raises(InputError, match="ENSEMBLE_METHOD is 'median'; known: sum, max, mean"):
        VideoScores(1, method="median")


def test_scores_are_what_the_activation_of_the_head_makes_of_the_logits():
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    expected = {"softmax": logits.softmax(1), "sigmoid": 1 / (1 + (-logits).exp()), "none": logits}
    for activation, rows in expected.items():
        scores = VideoScores(1, activation=activation)
        scores.add(0, [0], logits, label=1)
        assert scores.arrays()["scores"] == pytest.approx(rows.numpy())
    with pytest.raises(InputError, match="HEAD_ACT is 'relu'; known: softmax, sigmoid, none"):
        VideoScores(1, activation="relu")
