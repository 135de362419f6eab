"""What the scores of videos say beyond top-1: intervals, classes, confusion, calibration. Pure functions of arrays."""

import math

import numpy as np
import torch

from revvideo.engine.metrics import top_classes

Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution
NUM_BINS = 15
MOST_CONFUSED = 20


def wilson_interval(num_correct: int, num_videos: int) -> list[float] | None:
    """95 % interval of an accuracy, for independent videos.

    Args:
        num_correct: videos that are right.
        num_videos: of so many.

    Returns:
        [low, high] in percent; None without videos.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if num_videos == 0:
        return None
    share, z2 = num_correct / num_videos, Z_95**2
    centre = share + z2 / (2 * num_videos)
    half = Z_95 * math.sqrt(share * (1 - share) / num_videos + z2 / (4 * num_videos**2))
    low, high = ((centre + sign * half) / (1 + z2 / num_videos) for sign in (-1, 1))
    # Where all or none are right, the bound is that share; the square root rounds.
    return [0.0 if num_correct == 0 else 100.0 * low, 100.0 if num_correct == num_videos else 100.0 * high]


def hits(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each video is taken for.

    Args:
        scores: (N, K) float32.
        labels: (N,) integers.

    Returns:
        predicted class (N,) int64, label is the highest score (N,) bool, label is among the five highest (N,) bool.
    """
    if len(labels) == 0:
        return np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, bool)
    highest = top_classes(torch.from_numpy(scores), 5).numpy()  # (N, 5)
    among = highest == labels[:, None]
    return highest[:, 0], among[:, 0], among.any(axis=1)


def calibration(scores: np.ndarray, labels: np.ndarray) -> dict | None:
    """Expected calibration error over 15 equal bins of confidence.

    The confidence is the score of the predicted class over the sum of the video's scores: for the sum and the mean of
    softmax that is the mean probability of the views.

    Args:
        scores: (N, K), probabilities or their sum, maximum or mean over views.
        labels: (N,).

    Returns:
        `ece` from 0 to 1, and `bins`: of each `low`, `high` (confidences above `low` up to `high`), `num_videos`, mean
        `confidence` and `accuracy` (shares, None where the bin is empty). None without videos.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.
    """
    if len(labels) == 0:
        return None
    predicted, right, _ = hits(scores, labels)
    wide = scores.astype(np.float64)
    confidence = wide[np.arange(len(labels)), predicted] / wide.sum(axis=1)
    number = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    bins, error = [], 0.0
    for i in range(NUM_BINS):
        inside = number == i
        count = int(inside.sum())
        mean, accuracy = (float(values[inside].mean()) if count else None for values in (confidence, right))
        if count:
            error += count / len(labels) * abs(accuracy - mean)
        bounds = {"low": i / NUM_BINS, "high": (i + 1) / NUM_BINS}
        bins.append(bounds | {"num_videos": count, "confidence": mean, "accuracy": accuracy})
    return {"ece": error, "bins": bins}


def mean_class_accuracy(labels: np.ndarray, right: np.ndarray) -> float | None:
    """Mean over the classes that have a video of the share that is right, in percent; None without videos.

    Args:
        labels, right: (N,), see `hits`.
    """
    if len(labels) == 0:
        return None
    shares = [right[labels == label].mean() for label in np.unique(labels)]
    return 100.0 * float(np.mean(shares))


def headline(scores: np.ndarray, labels: np.ndarray, *, calibrated: bool) -> dict:
    """The figures of results.json beside the accuracies.

    Args:
        scores, labels: (N, K) and (N,), readable videos only.
        calibrated: the scores come from a softmax.

    Returns:
        `mean_class_acc`, `top1_interval`, `top5_interval` (percent), `ece` (0 to 1); None where one has no meaning.
    """
    _, right, among = hits(scores, labels)
    bins = calibration(scores, labels) if calibrated else None
    return {
        "mean_class_acc": mean_class_accuracy(labels, right),
        "top1_interval": wilson_interval(int(right.sum()), len(labels)),
        "top5_interval": wilson_interval(int(among.sum()), len(labels)),
        "ece": bins["ece"] if bins else None,
    }


def detailed(
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    failed_labels: np.ndarray,
    class_names: tuple[str, ...] = (),
    calibrated: bool,
) -> dict:
    """The content of metrics.json.

    Args:
        scores, labels: (N, K) and (N,), readable videos only.
        num_classes: K.
        failed_labels: labels of the videos that could not be read.
        class_names: K of them, or none.
        calibrated: the scores come from a softmax.

    Returns:
        See docs/evaluation.md.
    """
    predicted, right, among = hits(scores, labels)
    pairs, counts = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
    confusion = [[int(label), int(guess), int(count)] for (label, guess), count in zip(pairs, counts)]
    wrong = sorted((entry for entry in confusion if entry[0] != entry[1]), key=lambda entry: -entry[2])
    columns = {
        "num_videos": np.bincount(labels, minlength=num_classes),
        "top1_correct": np.bincount(labels[right], minlength=num_classes),
        "top5_correct": np.bincount(labels[among], minlength=num_classes),
        "num_failed": np.bincount(failed_labels, minlength=num_classes),
    }
    return {
        "num_classes": num_classes,
        "num_videos": len(labels),
        "class_names": list(class_names) or None,
        "per_class": [
            {"class": number} | {name: int(column[number]) for name, column in columns.items()}
            for number in range(num_classes)
        ],
        "confusion": confusion,
        "most_confused": [
            {"label": label, "predicted": guess, "count": count} for label, guess, count in wrong[:MOST_CONFUSED]
        ],
        "calibration": calibration(scores, labels) if calibrated else None,
    }
