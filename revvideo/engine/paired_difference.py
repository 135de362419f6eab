"""How much two evaluations of the same videos differ, and how sure that is."""

import math
from dataclasses import dataclass

import numpy as np

from revvideo.engine.accuracy import Z_95


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of two models on the same videos.

    Attributes:
        num_videos: N.
        a_percent, b_percent: accuracies.
        difference: b_percent - a_percent, in percentage points.
        interval: its 95 % interval.
        only_a, only_b: videos that one of the two alone has right; the others say nothing about the difference.
        p_value: probability of so uneven a split of those, or a more uneven one, if the two were equally good.
    """

    num_videos: int
    a_percent: float
    b_percent: float
    difference: float
    interval: tuple[float, float]
    only_a: int
    only_b: int
    p_value: float


def paired_difference(a_right: np.ndarray, b_right: np.ndarray) -> PairedDifference:
    """Compare two models video by video.

    Args:
        a_right, b_right: (N,) bool, N above 0: whether the model has the video right.

    Source: the interval is that of Agresti and Min, "Simple improved confidence intervals for comparing matched
        proportions", 2005 (Wald's after half a video is added to each of the four cells); p is McNemar's exact test.
    """
    num_videos = len(a_right)
    assert num_videos > 0, "no videos"
    assert len(b_right) == num_videos, (num_videos, len(b_right))
    only_a, only_b = int((a_right & ~b_right).sum()), int((b_right & ~a_right).sum())
    a, b, n = only_a + 0.5, only_b + 0.5, num_videos + 2.0
    centre = (b - a) / n
    half = Z_95 * math.sqrt((a + b) - (b - a) ** 2 / n) / n
    return PairedDifference(
        num_videos=num_videos,
        a_percent=100.0 * float(a_right.mean()),
        b_percent=100.0 * float(b_right.mean()),
        difference=100.0 * (only_b - only_a) / num_videos,
        interval=(100.0 * max(-1.0, centre - half), 100.0 * min(1.0, centre + half)),
        only_a=only_a,
        only_b=only_b,
        p_value=_mcnemar(only_a, only_b),
    )


def _mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact binomial test of `only_a` against `only_b` with probability 1/2."""
    count, few = only_a + only_b, min(only_a, only_b)
    ways = term = 1  # C(count, 0)
    for i in range(1, few + 1):
        term = term * (count - i + 1) // i  # C(count, i)
        ways += term
    return min(1.0, 2 * ways / 2**count)
