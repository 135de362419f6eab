"""Accuracy: of a batch, of a batch under mixup, and of videos whose views are put together."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from revvideo.errors import CheckFailed, InputError

METHODS = ("sum", "max", "mean")
ACTIVATIONS = {"softmax": lambda x: x.softmax(dim=1), "sigmoid": Tensor.sigmoid, "none": lambda x: x}
NAMED = 5


def top_classes(scores: Tensor, k: int) -> Tensor:
    """The classes with the k highest scores of each row, the highest first: `(B, K)` to int64 `(B, min(k, K))`."""
    return scores.topk(min(k, scores.shape[1]), dim=1).indices


def topk_correct(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> list[Tensor]:
    """How many labels are among the k highest scores of their row, for each k.

    Args:
        scores: `(B, K)`, logits or probabilities.
        labels: `(B,)` integers.
        ks: values of k; one above the number of classes counts all K classes.

    Returns:
        One scalar int64 tensor for each k, on the device of `scores` (nothing waits for the device).
    """
    assert labels.shape == scores.shape[:1], (scores.shape, labels.shape)
    highest = top_classes(scores, max(ks))  # (B, k)
    hits = highest == labels.view(-1, 1)  # (B, k)
    return [hits[:, :k].sum() for k in ks]


def merge_mixed_targets(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and labels for the training accuracy under mixup, as PySlowFast counts it.

    The label is the class with the largest weight. The score of the class with the second largest weight is added to
    the label's score and then set to 0, so naming either of the two mixed classes counts. A row that is not mixed (its
    second largest weight is the floor of label smoothing) keeps its scores; PySlowFast adds an arbitrary class there.

    Args:
        scores: `(B, K)`.
        targets: `(B, K)` class weights; `(B,)` integer labels are returned as they are, with `scores`.

    Returns:
        Scores `(B, K)`, a changed and detached copy, and labels `(B,)` int64, for `topk_correct`.

    Source: PySlowFast, tools/train_net.py (train_epoch).
    """
    scores = scores.detach()
    if targets.ndim == 1:
        return scores, targets
    weights, classes = targets.topk(min(3, targets.shape[1]), dim=1)  # (B, 3), or (B, K) below 3 classes
    labels, merged = classes[:, 0], scores.clone()
    if targets.shape[1] < 2:
        return merged, labels
    first, second = classes[:, :1], classes[:, 1:2]  # (B, 1)
    merged.scatter_add_(1, first, scores.gather(1, second))
    merged.scatter_(1, second, 0.0)
    if targets.shape[1] == 2:
        return merged, labels
    mixed = weights[:, 1:2] > weights[:, 2:3]  # (B, 1)
    return torch.where(mixed, merged, scores), labels


class VideoScores:
    """Scores of videos from the softmax (or another activation) of their views; each view of each video counts once.

    Views may come in any order and in any portions: those of a video wait until all are there and are then put
    together in the order of their numbers, so the result does not depend on how they came. Memory is one float32 row a
    video, and with `keep_views` one a view.

    Args:
        num_views: views of each video (temporal views x spatial crops).
        method: "sum", "max" or "mean" of the views' scores (DATA.ENSEMBLE_METHOD).
        activation: what turns logits into scores (MODEL.HEAD_ACT): one of `ACTIVATIONS`.
        keep_views: keep the scores of the single views, too.

    Attributes:
        failures: index -> (path, reason) of the videos that could not be read.

    Raises:
        InputError: an unknown method or activation.
    """

    def __init__(self, num_views: int, *, method: str = "sum", activation: str = "softmax", keep_views: bool = False):
        if method not in METHODS:
            raise InputError(f"DATA.ENSEMBLE_METHOD is {method!r}; known: {', '.join(METHODS)}")
        if activation not in ACTIVATIONS:
            raise InputError(f"MODEL.HEAD_ACT is {activation!r}; known: {', '.join(ACTIVATIONS)}")
        self.num_views, self.method, self.activation, self.keep_views = num_views, method, activation, keep_views
        self.failures: dict[int, tuple[str, str]] = {}
        self._videos: dict[int, tuple[str, int]] = {}  # path, label
        self._waiting: dict[int, dict[int, np.ndarray]] = {}  # view -> scores (K,)
        self._scores: dict[int, np.ndarray] = {}  # (K,) float32
        self._view_scores: dict[int, np.ndarray] = {}  # (V, K) float32

    def add(self, index: int, views: Sequence[int], logits: Tensor, *, label: int, path: str = "") -> None:
        """Take some views of one video.

        Args:
            index: number of the video in the test list.
            views: their numbers, 0 .. num_views - 1.
            logits: `(len(views), K)`; their activation is taken in float32.
            label: class of the video.
            path: where it lies, for messages and predictions.

        Raises:
            AssertionError: a view comes twice or does not exist, or the video has another label or path than before.
            InputError: the label is none of the K classes.
            CheckFailed: a score is not finite.
        """
        name = f"video {index} ({path})"
        if not 0 <= int(label) < logits.shape[-1]:
            raise InputError(f"{name}: label {label}, but the model has {logits.shape[-1]} classes")
        assert logits.shape[:-1] == (len(views),), (name, tuple(logits.shape), len(views))
        if self._videos.setdefault(index, (str(path), int(label))) != (str(path), int(label)):
            raise AssertionError(f"{name}, label {label}: before it was {self._videos[index]}")
        rows = ACTIVATIONS[self.activation](logits.detach().float()).cpu().numpy()  # (V, K)
        if not np.isfinite(rows).all():
            raise CheckFailed(f"{name}: the model's scores are not finite")
        waiting = self._waiting.setdefault(index, {})
        for view, row in zip(views, rows):
            if not 0 <= view < self.num_views:
                raise AssertionError(f"{name}: view {view} does not exist, there are {self.num_views}")
            if index in self._scores or index in self.failures or int(view) in waiting:
                raise AssertionError(f"{name}: view {view} came twice, or after the video was reported as failed")
            waiting[int(view)] = row
        if len(waiting) == self.num_views:
            views = np.stack([waiting[view] for view in range(self.num_views)])  # (V, K)
            self._scores[index] = self._together(views)
            if self.keep_views:
                self._view_scores[index] = views
            del self._waiting[index]

    def add_failure(self, index: int, path: str, reason: str) -> None:
        """Take note of a video that could not be read; none of its views may have come."""
        if index in self._videos or index in self.failures:
            raise AssertionError(f"video {index} ({path}) is reported as failed, but it is there already")
        self.failures[index] = (str(path), str(reason))

    def merge(self, other: "VideoScores") -> None:
        """Take the videos that another process has scored.

        Raises:
            AssertionError: a video is in both.
        """
        common = (self._videos.keys() | self.failures.keys()) & (other._videos.keys() | other.failures.keys())
        if common:
            raise AssertionError(f"videos {sorted(common)[:NAMED]} were evaluated by two processes")
        for mine, theirs in (
            (self._videos, other._videos),
            (self._waiting, other._waiting),
            (self._scores, other._scores),
            (self.failures, other.failures),
            (self._view_scores, other._view_scores),
        ):
            mine.update(theirs)

    def _together(self, probabilities: np.ndarray) -> np.ndarray:
        """`(V, K)` to `(K,)`."""
        if self.method == "max":
            return probabilities.max(axis=0)
        total = probabilities.sum(axis=0, dtype=np.float32)
        return total / np.float32(self.num_views) if self.method == "mean" else total

    def check_complete(self, num_expected: int) -> None:
        """Check that each of the videos 0 .. num_expected - 1 has all its views or has failed.

        Raises:
            AssertionError: it names the first few videos of which something is missing, or that are too many.
        """
        wrong = [
            f"video {index} ({self._videos[index][0]}) has {len(views)} of {self.num_views} views"
            for index, views in sorted(self._waiting.items())
        ]
        done = self.indices
        missing = set(range(num_expected)) - done - self._waiting.keys()
        wrong += [f"video {index} never came" for index in sorted(missing)]
        too_many = sorted(index for index in done if index >= num_expected)
        wrong += [f"video {index} is beyond the {num_expected} expected" for index in too_many]
        if wrong:
            more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise AssertionError(f"not every view was counted once: {'; '.join(wrong[:NAMED])}{more}")

    def arrays(self) -> dict[str, np.ndarray]:
        """The complete videos in the order of the list: the content of predictions.npz.

        Returns:
            `path` (N,) text, `label` (N,) int64, `scores` (N, K) float32; with `keep_views` also `view_scores`
            (N, V, K) float32.
        """
        order = sorted(self._scores)
        return {
            "path": np.array([self._videos[index][0] for index in order], dtype=np.str_),
            "label": np.array([self._videos[index][1] for index in order], dtype=np.int64),
            **self._rows(order),
        }

    def _rows(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        nothing = np.zeros((0, 0), np.float32)
        rows = {"scores": np.stack([self._scores[index] for index in indices]) if indices else nothing}
        if self.keep_views:
            views = [self._view_scores[index] for index in indices]
            rows["view_scores"] = np.stack(views) if indices else nothing[:, None]
        return rows

    def portion(self, indices: Collection[int]) -> dict[str, np.ndarray]:
        """What `restore` needs of some videos, all of them complete or failed: arrays without pickled objects."""
        complete = sorted(index for index in indices if index in self._scores)
        failed = sorted(index for index in indices if index in self.failures)
        assert len(complete) + len(failed) == len(indices), sorted(indices)[:NAMED]
        return {
            "index": np.array(complete, dtype=np.int64),
            "failed_index": np.array(failed, dtype=np.int64),
            "failed_reason": np.array([self.failures[index][1] for index in failed], dtype=np.str_),
            **self._rows(complete),
        }

    def restore(self, portion: Mapping[str, np.ndarray], paths: Sequence[str], labels: Sequence[int]) -> None:
        """Take what `portion` gave.

        Args:
            portion: see there.
            paths, labels: of the list, by index.

        Raises:
            KeyError, ValueError, IndexError: it is none of scores like these. Nothing of it is taken.
            AssertionError: a video is there already. Nothing of it is taken.
        """
        other = VideoScores(self.num_views, method=self.method, activation=self.activation, keep_views=self.keep_views)
        complete = portion["index"].tolist()
        other._videos = {index: (str(paths[index]), int(labels[index])) for index in complete}
        other._scores = dict(zip(complete, portion["scores"], strict=True))
        if self.keep_views:
            other._view_scores = dict(zip(complete, portion["view_scores"], strict=True))
        failed = zip(portion["failed_index"].tolist(), portion["failed_reason"].tolist(), strict=True)
        other.failures = {index: (str(paths[index]), reason) for index, reason in failed}
        self.merge(other)

    @property
    def indices(self) -> set[int]:
        """The videos that are complete or have failed."""
        return self._scores.keys() | self.failures.keys()

    def summary(self, num_expected: int) -> dict:
        """The figures of results.json that belong to the scores; checks first that nothing is missing.

        Args:
            num_expected: videos in the test list.

        Returns:
            `top1_acc`, `top5_acc` (percent over the readable videos, None without any), `num_videos` (readable),
            `top1_acc_all`, `top5_acc_all` (percent over all, unreadable counted as wrong), `num_expected`, `failed`
            (list of `{path, reason}` in the order of the list).
        """
        self.check_complete(num_expected)
        arrays = self.arrays()
        num_videos = len(arrays["label"])
        top1 = top5 = 0
        if num_videos:
            correct = topk_correct(torch.from_numpy(arrays["scores"]), torch.from_numpy(arrays["label"]), (1, 5))
            top1, top5 = (int(count) for count in correct)
        return {
            "top1_acc": _percent(top1, num_videos),
            "top5_acc": _percent(top5, num_videos),
            "num_videos": num_videos,
            "top1_acc_all": _percent(top1, num_expected),
            "top5_acc_all": _percent(top5, num_expected),
            "num_expected": num_expected,
            "failed": [{"path": path, "reason": reason} for _, (path, reason) in sorted(self.failures.items())],
        }


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None
