"""What the predictions of a run say: metrics.json, or the same figures from predictions.npz, and examples."""

from dataclasses import dataclass

import numpy as np

from revvideo.engine.accuracy import detailed, headline, hits, wilson_interval
from revvideo.report.run_record import RunRecord, finite

HEADLINE = ("mean_class_acc", "top1_interval", "top5_interval", "ece")


@dataclass(frozen=True)
class ClassFigures:
    """One class: counts over its readable videos, and of those that could not be read."""

    number: int
    name: str
    num_videos: int
    top1_correct: int
    top5_correct: int
    num_failed: int
    taken_for: tuple[int, int] | None  # the class most often named instead, and how often

    @property
    def accuracy(self) -> float | None:
        """Top-1, percent."""
        return 100.0 * self.top1_correct / self.num_videos if self.num_videos else None

    @property
    def interval(self) -> list[float] | None:
        """95 % interval of the accuracy, percent."""
        return wilson_interval(self.top1_correct, self.num_videos)


@dataclass(frozen=True)
class Evaluation:
    """Classes, confusion and calibration of a run.

    Attributes:
        classes: one a class number.
        confusion: (true class, predicted class, videos), none with 0 videos.
        calibration: `ece` and `bins` as in metrics.json; None where scores are no probabilities.
    """

    classes: list[ClassFigures]
    confusion: list[tuple[int, int, int]]
    calibration: dict | None

    @property
    def confused(self) -> list[tuple[int, int, int]]:
        """The wrong ones, most frequent first."""
        return sorted((entry for entry in self.confusion if entry[0] != entry[1]), key=lambda entry: -entry[2])


def evaluation_of(run: RunRecord) -> Evaluation | None:
    """From metrics.json, or else from predictions.npz; None where there is neither."""
    if run.metrics is not None:
        try:
            return _evaluation(run, run.metrics)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            run.problems.append(f"metrics.json is not as expected: {type(error).__name__}: {error}")
    if not len(run.predictions.get("label", ())):
        return None
    scores, labels = run.predictions["scores"], run.predictions["label"]
    none_failed = np.zeros(0, np.int64)  # their labels stand in metrics.json alone
    return _evaluation(
        run,
        detailed(*(scores, labels), num_classes=scores.shape[1], failed_labels=none_failed, calibrated=is_softmax(run)),
    )


def is_softmax(run: RunRecord) -> bool:
    """Whether a video's scores come from a softmax, so that their shares are probabilities."""
    return run.config.get("MODEL.HEAD_ACT", "softmax") == "softmax"


def results_of(run: RunRecord) -> dict | None:
    """results.json; what it lacks (older runs) is computed from predictions.npz."""
    if run.results is None:
        return None
    labels = run.predictions.get("label", ())
    if all(name in run.results for name in HEADLINE) or not len(labels):
        return run.results
    return headline(run.predictions["scores"], labels, calibrated=is_softmax(run)) | run.results


def _evaluation(run: RunRecord, metrics: dict) -> Evaluation:
    confusion = [(int(label), int(guess), int(count)) for label, guess, count in metrics["confusion"]]
    taken_for: dict[int, tuple[int, int]] = {}
    for label, guess, count in confusion:
        if label != guess and count > taken_for.get(label, (0, 0))[1]:
            taken_for[label] = (guess, count)
    classes = []
    for number, entry in enumerate(metrics["per_class"]):
        counts = {name: int(entry[name]) for name in ("num_videos", "top1_correct", "top5_correct", "num_failed")}
        classes.append(ClassFigures(number, run.class_name(number), taken_for=taken_for.get(number), **counts))
    if any(not 0 <= number < len(classes) for entry in confusion for number in entry[:2]):
        raise ValueError(f"confusion names a class beyond the {len(classes)} of per_class")
    return Evaluation(classes, confusion, _checked_calibration(metrics.get("calibration")))


def _checked_calibration(calibration: dict | None) -> dict | None:
    if calibration is None:
        return None
    bins = []
    for entry in calibration["bins"]:
        figures = {name: finite(entry[name]) for name in ("low", "high", "confidence", "accuracy")}
        bins.append(figures | {"num_videos": int(entry["num_videos"])})
    return {"ece": float(calibration["ece"]), "bins": bins}


@dataclass(frozen=True)
class Example:
    """One video and its scores.

    Attributes:
        path: as predictions.npz has it.
        label, predicted: class numbers.
        scores: (K,) shares of the classes, that add up to 1 where scores come from a softmax; else the scores.
        views: (V, K) scores of each view; None where they were not saved.
    """

    path: str
    label: int
    predicted: int
    scores: np.ndarray
    views: np.ndarray | None

    @property
    def is_right(self) -> bool:
        return self.label == self.predicted

    def top(self, count: int) -> list[tuple[int, float]]:
        """The classes with the highest scores, the true one always among them."""
        order = np.argsort(-self.scores, kind="stable")[:count].tolist()
        if self.label not in order:
            order[-1] = self.label
        return [(number, float(self.scores[number])) for number in order]


def examples(run: RunRecord, count: int) -> tuple[list[Example], list[Example]]:
    """The surest right ones, of as many classes as there are, and the surest wrong ones: at most `count` each."""
    if not len(run.predictions.get("label", ())):
        return [], []
    scores, labels = run.predictions["scores"].astype(np.float64), run.predictions["label"]
    if is_softmax(run):
        scores = scores / scores.sum(axis=1, keepdims=True)  # (N, K)
    predicted, right, _ = hits(run.predictions["scores"], labels)
    rows = np.arange(len(labels))
    surplus = scores[rows, predicted] - scores[rows, labels]
    order_right = sorted(np.flatnonzero(right).tolist(), key=lambda row: -scores[row, labels[row]])
    order_wrong = sorted(np.flatnonzero(~right).tolist(), key=lambda row: -surplus[row])
    views = run.predictions.get("view_scores")
    if views is not None and (views.ndim != 3 or views.shape[0] != len(labels) or views.shape[2] != scores.shape[1]):
        run.problems.append(f"predictions.npz: view_scores has the shape {views.shape}; expected (videos, views, K)")
        views = None

    def example(row: int) -> Example:
        path, own = str(run.predictions["path"][row]), None if views is None else views[row]
        return Example(path, int(labels[row]), int(predicted[row]), scores[row], own)

    return (
        [example(row) for row in _one_a_class_first(order_right, labels)[:count]],
        [example(row) for row in order_wrong[:count]],
    )


def _one_a_class_first(rows: list[int], labels: np.ndarray) -> list[int]:
    seen: set[int] = set()
    first, others = [], []
    for row in rows:
        (others if labels[row] in seen else first).append(row)
        seen.add(labels[row])
    return first + others
