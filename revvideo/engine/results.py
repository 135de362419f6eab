"""The files that an evaluation leaves in the run folder."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from revvideo.engine.metrics import VideoScores
from revvideo.paths import path_manager, replace_file


def write_results(
    folder: Path, scores: VideoScores, results: Mapping, metrics: Mapping, *, names: Sequence[str]
) -> None:
    """Write `results{name}.json`, `metrics{name}.json` and `predictions{name}.npz` for each suffix in `names`.

    Each file is written whole or not at all; results.json comes last.

    Args:
        folder: the run folder.
        scores: the source of the predictions.
        results: content of results.json.
        metrics: content of metrics.json, see `accuracy.detailed`.
        names: suffixes, such as "" and "_5views".
    """

    def write_predictions(path: Path) -> None:
        with open(path, "wb") as file:  # given a path, numpy would add .npz to it
            np.savez(file, **scores.arrays())

    for name in names:
        replace_file(folder / f"predictions{name}.npz", write_predictions)
        _write_json(folder / f"metrics{name}.json", json.dumps(metrics, ensure_ascii=False))
        _write_json(folder / f"results{name}.json", json.dumps(results, indent=2, ensure_ascii=False))


def _write_json(path: Path, text: str) -> None:
    # Names of files may be no UTF-8: their lone surrogates become \\udcXX, which JSON reads back as they were.
    content = (text + "\n").encode("utf-8", "backslashreplace")
    replace_file(path, lambda temporary: temporary.write_bytes(content))


def protocol(num_views: int, num_crops: int, frames: int, stride: int, crop: int, method: str) -> str:
    """One line that says how the accuracy was measured."""
    return (
        f"{num_views} temporal views x {num_crops} spatial crops of {frames} frames x stride {stride}, "
        f"{crop} px, {method} of softmax over views"
    )


def save_pyslowfast(path: str, scores: VideoScores, labels: Sequence[int]) -> None:
    """Write what PySlowFast writes to TEST.SAVE_RESULTS_PATH: a pickle of `[scores, labels]`.

    Args:
        path: through the path manager; its folder is made.
        scores: float32 `(N, K)` tensor of all videos of the list, in its order; a video that could not be read has a
            row of zeros.
        labels: of the list; an int64 tensor `(N,)` in the file.

    Source: PySlowFast, tools/test_net.py (perform_test).
    """
    rows = scores.arrays()["scores"]
    everything = torch.zeros(len(labels), rows.shape[1])
    everything[sorted(scores.indices - scores.failures.keys())] = torch.from_numpy(rows)
    folder = os.path.dirname(path)
    if folder:
        path_manager.mkdirs(folder)
    with path_manager.open(path, "wb") as file:
        pickle.dump([everything, torch.tensor(labels, dtype=torch.int64)], file)
