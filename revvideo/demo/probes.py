"""Does the model read the order of frames? Probes that edit the sampled views of the demo's test videos.

The classes come in pairs that differ in the direction of time alone (`partner`). So a model that sees order names the
partner when a clip runs backwards, chooses blindly within the pair when the frames are shuffled, and knows next to
nothing from one frame.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from revvideo.demo.scenes import partner


def reverse(views: Tensor, index: int) -> Tensor:
    """The views `(V, T, C, H, W)` backwards in time."""
    return views.flip(1)


def hold_middle_frame(views: Tensor, index: int) -> Tensor:
    """Every frame replaced by the middle one of its view."""
    return views[:, views.shape[1] // 2].unsqueeze(1).expand_as(views)


@dataclass(frozen=True)
class Shuffle:
    """The frames of each view in an order of its own, drawn by (seed, video, view)."""

    seed: int

    def __call__(self, views: Tensor, index: int) -> Tensor:
        orders = [
            torch.from_numpy(np.random.default_rng([self.seed, index, view]).permutation(views.shape[1]))
            for view in range(len(views))
        ]
        return torch.stack([clip[order] for clip, order in zip(views, orders)])


def top1_percent(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows of `scores` (N, K) whose largest entry is at `labels` (N,), in percent."""
    return 100.0 * float((scores.argmax(axis=1) == labels).mean())


def within_pair_percent(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows that score the label above its partner, in percent; 50 is a blind choice."""
    rows = np.arange(len(labels))
    return 100.0 * float((scores[rows, labels] > scores[rows, partners(labels)]).mean())


def partners(labels: np.ndarray) -> np.ndarray:
    """The time-reversal partner of each label."""
    return np.array([partner(int(label)) for label in labels])
