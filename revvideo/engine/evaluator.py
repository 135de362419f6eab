"""Multi-view evaluation: every view of every readable video once, none replaced, none repeated."""

import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from revvideo.distributed.group import Group
from revvideo.engine.metrics import VideoScores
from revvideo.engine.progress import Progress
from revvideo.errors import Stopped
from revvideo.paths import replace_file

logger = logging.getLogger(__name__)

EditViews = Callable[[Tensor, int], Tensor]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    videos: Collection[dict],
    *,
    paths: Sequence[str],
    num_views: int,
    method: str,
    activation: str = "softmax",
    prepare: Callable[[Tensor], Tensor],
    device: torch.device,
    clips_per_batch: int,
    amp_dtype: torch.dtype | None = None,
    edit_views: EditViews | None = None,
    description: str = "evaluate",
    log_period: int = 10,
    group: Group | None = None,
    stop_reason: Callable[[], str | None] = lambda: None,
) -> VideoScores:
    """Score videos by all of their views.

    Args:
        model: `(B, C, T, H, W) -> logits (B, K)`; put into evaluation mode for the time being.
        videos: items `{video, label, index, error}`: uint8 `(V, T, C, H, W)` with all views of one video, or None and
            the reason; of several processes each has its own videos. Has a length.
        paths: path of each video of the list, by index.
        num_views: V, temporal views x spatial crops.
        method: how the views' scores are put together, see `VideoScores`.
        activation: what turns logits into scores, see `VideoScores`.
        prepare: uint8 `(B, T, C, H, W)` to what the model takes, on the device.
        device: where the model is.
        clips_per_batch: views that go through the model at a time.
        amp_dtype: autocast to this type; None evaluates in the parameters' own precision.
        edit_views: `(views, index) -> views`, applied to the uint8 views of each video: for probes such as clips
            reversed in time.
        description: for the progress display.
        log_period: in videos, where progress is written as lines.
        group: the processes that share the videos; None: this one has all.
        stop_reason: asked after each video; where it gives a reason, in any process, all of them stop.

    Returns:
        The scores of all processes' videos, on each of them; call its `summary(len(paths))`.

    Raises:
        Stopped: see `stop_reason`; what was evaluated so far is lost.
    """
    group = group or Group()
    scores = VideoScores(num_views, method=method, activation=activation)
    was_training = model.training
    model.eval()
    reason = None
    with Progress(len(videos), description, log_period=log_period, logger=logger, enabled=group.is_main) as progress:

        def views() -> Iterator[tuple[int, int, int, Tensor]]:
            nonlocal reason
            for item in videos:
                reason = stop_reason()
                if reason is not None:
                    return
                progress.update()
                index = item["index"]
                if item["video"] is None:
                    logger.warning("not evaluated: %s: %s", paths[index], item["error"])
                    scores.add_failure(index, paths[index], item["error"])
                    continue
                clips = item["video"] if edit_views is None else edit_views(item["video"], index)
                assert len(clips) == num_views, (paths[index], len(clips), num_views)
                for view, clip in enumerate(clips):
                    yield index, view, item["label"], clip

        for batch in _batches(views(), clips_per_batch):
            clips = prepare(torch.stack([clip for *_, clip in batch]))
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                logits = model(clips)
            for (index, view, label, _), row in zip(batch, logits.float().cpu().split(1)):
                scores.add(index, [view], row, label=label, path=paths[index])
    model.train(was_training)
    # Processes end their shares at different times: nobody waits for the scores of one that has stopped.
    if group.any(reason is not None, f"whether to stop: {description}"):
        reasons = group.gather(reason, f"why to stop: {description}")
        reason = next(each for each in reasons if each is not None)
        raise Stopped(f"{description}: stopped by {reason}; the same command evaluates again", reason=reason)
    for rank, other in enumerate(group.gather(scores, f"scores: {description}")):
        if rank != group.rank:
            scores.merge(other)
    return scores


def _batches(items: Iterator, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def write_results(folder: Path, scores: VideoScores, results: dict, *, names: Sequence[str]) -> None:
    """Write `results{name}.json` and `predictions{name}.npz` for each suffix in `names`, each file whole or not at all.

    Args:
        folder: the run folder.
        scores: the source of the predictions.
        results: content of results.json.
        names: suffixes, such as "" and "_5views".
    """
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"

    def write_predictions(path: Path) -> None:
        with open(path, "wb") as file:  # given a path, numpy would add .npz to it
            np.savez(file, **scores.arrays())

    for name in names:
        replace_file(folder / f"predictions{name}.npz", write_predictions)
        replace_file(folder / f"results{name}.json", lambda path: path.write_text(text, encoding="utf-8"))


def protocol(num_views: int, num_crops: int, frames: int, stride: int, crop: int, method: str) -> str:
    """One line that says how the accuracy was measured."""
    return (
        f"{num_views} temporal views x {num_crops} spatial crops of {frames} frames x stride {stride}, "
        f"{crop} px, {method} of softmax over views"
    )
