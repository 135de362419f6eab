"""Read what an evaluation has left: predictions.npz and results.json."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from revvideo.errors import InputError


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        source: the predictions' file.
        paths, labels: of the readable videos, (N,), in the order of the list.
        scores: (N, K) float32.
        failed: paths of the videos that could not be read.
        results: content of results.json.
    """

    source: Path
    paths: Sequence[str]
    labels: np.ndarray
    scores: np.ndarray
    failed: Sequence[str]
    results: Mapping


def read_evaluation(path: str | os.PathLike) -> Evaluation:
    """Read an evaluation.

    Args:
        path: a run folder, or one of its predictions*.npz; results*.json is read beside it.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    source = Path(path)
    if source.is_dir():
        source = source / "predictions.npz"
    beside = source.with_name(source.name.replace("predictions", "results", 1)).with_suffix(".json")
    for needed in (source, beside):
        if not needed.is_file():
            raise InputError(
                f"{path}: there is no {needed}; expected a run folder with a finished evaluation (predictions.npz and "
                "results.json), or a predictions*.npz in one"
            )
    try:
        with np.load(source) as file:  # allow_pickle is off
            paths, labels, scores = file["path"].tolist(), file["label"], file["scores"]
        results = json.loads(beside.read_text(encoding="utf-8"))
        failed = [each["path"] for each in results["failed"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(f"{source} and {beside} are not what an evaluation writes: {error!r}") from error
    if scores.ndim != 2 or not len(paths) == len(labels) == len(scores):
        raise InputError(f"{source}: {len(paths)} paths, {len(labels)} labels, scores of shape {scores.shape}")
    return Evaluation(source, paths, labels, scores, failed, results)


def common_rows(a: Evaluation, b: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the videos that both have read: two (M,) index arrays, in the order of `a`.

    The lists must be the same; the folders that they lie in may differ.

    Raises:
        InputError: they are of different lists, or have no video in common.
    """
    names_a, names_b = _names(a), _names(b)
    readable_a, readable_b = names_a[: len(a.paths)], names_b[: len(b.paths)]
    others = sorted(set(names_a) ^ set(names_b))
    if others:
        raise InputError(
            f"{a.source} has {len(names_a)} videos and {b.source} {len(names_b)}, but the lists differ: {len(others)} "
            f"videos are in one alone, such as {others[0][0]}; expected two evaluations of the same list"
        )
    rows_b = {name: row for row, name in enumerate(readable_b)}
    pairs = [(row, rows_b[name]) for row, name in enumerate(readable_a) if name in rows_b]
    if not pairs:
        raise InputError(f"{a.source} and {b.source} have no readable video in common")
    rows = np.array(pairs)
    differing = np.flatnonzero(a.labels[rows[:, 0]] != b.labels[rows[:, 1]])
    if len(differing):
        row_a, row_b = rows[differing[0]]
        raise InputError(
            f"{len(differing)} videos have different labels in {a.source} and {b.source}, such as {a.paths[row_a]}: "
            f"{a.labels[row_a]} and {b.labels[row_b]}; expected two evaluations of the same list"
        )
    return rows[:, 0], rows[:, 1]


def _names(evaluation: Evaluation) -> list[tuple[str, int]]:
    """(path below the folder that all lie in, which time it comes) of the readable videos, then of the failed ones."""
    paths = [os.path.normpath(path) for path in (*evaluation.paths, *evaluation.failed)]
    folder = os.path.commonpath(map(os.path.dirname, paths)) if _alike(paths) else ""
    seen: Counter[str] = Counter()
    names = []
    for path in paths:
        name = os.path.relpath(path, folder) if folder else path
        names.append((name, seen[name]))
        seen[name] += 1
    return names


def _alike(paths: Sequence[str]) -> bool:
    """Whether a common folder can be asked for: some paths, all of them absolute or none."""
    return bool(paths) and len({os.path.isabs(path) for path in paths}) == 1
