"""Multi-view evaluation: every view of every readable video once, none replaced, none repeated."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from revvideo.distributed.group import Group
from revvideo.engine.evaluation_parts import EvaluationParts
from revvideo.engine.metrics import VideoScores
from revvideo.engine.progress import Progress
from revvideo.engine.video_batches import VideoBatches
from revvideo.errors import Stopped

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
    scores: VideoScores | None = None,
    parts: EvaluationParts | None = None,
    description: str = "evaluate",
    log_period: int = 10,
    group: Group | None = None,
    stop_reason: Callable[[], str | None] = lambda: None,
) -> VideoScores:
    """Score videos by all of their views.

    The videos of a batch (`VideoBatches`) go through the model together, in forward passes of one shape: a video that
    is not there, because it cannot be read or the list has ended, leaves a hole of zeros, whose logits are dropped.

    Args:
        model: `(B, C, T, H, W) -> logits (B, K)`; put into evaluation mode for the time being.
        videos: items `{video, label, index, error}`: uint8 `(V, T, C, H, W)` with all views of one video, or None and
            the reason; the videos of a batch one after the other, batches in any order. Of several processes each has
            its own batches. Has a length.
        paths: path of each video of the list, by index.
        num_views: V, temporal views x spatial crops.
        method: how the views' scores are put together, see `VideoScores`.
        activation: what turns logits into scores, see `VideoScores`.
        prepare: uint8 `(B, T, C, H, W)` to what the model takes, on the device.
        device: where the model is.
        clips_per_batch: most views that go through the model at a time.
        amp_dtype: autocast to this type; None evaluates in the parameters' own precision.
        edit_views: `(views, index) -> views`, applied to the uint8 views of each video: for probes such as clips
            reversed in time.
        scores: filled, and may hold videos already, in one process; None: empty ones.
        parts: told of finished batches, and written at the end, also that of an error.
        description: for the progress display.
        log_period: in videos, where progress is written as lines.
        group: the processes that share the videos; None: this one has all.
        stop_reason: asked after each video; where it gives a reason, in any process, all of them stop.

    Returns:
        The scores of all processes' videos, on each of them; call its `summary(len(paths))`.

    Raises:
        Stopped: see `stop_reason`; what was evaluated so far is in `parts`, or lost.
    """
    group = group or Group()
    scores = VideoScores(num_views, method=method, activation=activation) if scores is None else scores
    batches = VideoBatches(len(paths), num_views, clips_per_batch)

    def forward(clips: Tensor) -> Tensor:
        clips = prepare(clips)
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            return model(clips).float().cpu()

    reason = None

    def watched() -> Iterator[dict]:
        nonlocal reason
        for item in videos:
            reason = stop_reason()
            if reason is not None:
                return
            progress.update()
            yield item

    with contextlib.ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        progress = Progress(len(videos), description, log_period=log_period, logger=logger, enabled=group.is_main)
        stack.enter_context(progress)
        if parts is not None:
            stack.callback(parts.flush, scores)
        for items in _by_batch(watched(), batches):
            if reason is not None:  # the rest of this batch did not come
                break
            _score(items, batches, scores, paths, edit_views, forward)
            if parts is not None:
                parts.add(scores, [item["index"] for item in items])
    _stop_together(group, reason, description, len(scores.indices), len(paths))
    _merge_all(group, scores, description)
    return scores


def _by_batch(items: Iterable[dict], batches: VideoBatches) -> Iterator[list[dict]]:
    """The items of each batch, as soon as its last one is there; of an incomplete one at the end."""
    waiting: list[dict] = []
    for item in items:
        batch = batches.batch_of(item["index"])
        if waiting and batches.batch_of(waiting[0]["index"]) != batch:
            yield waiting
            waiting = []
        waiting.append(item)
        if len(waiting) == len(batches.videos_in(batch)):
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _stop_together(group: Group, reason: str | None, description: str, num_done: int, num_videos: int) -> None:
    """Raise Stopped in all processes if one has a reason.

    They end their shares at different times: nobody waits for the scores of one that has stopped.
    """
    if group.any(reason is not None, f"whether to stop: {description}"):
        reasons = group.gather(reason, f"why to stop: {description}")
        reason = next(each for each in reasons if each is not None)
        count = int(group.sum(torch.tensor([num_done]), f"videos until the stop: {description}"))
        where = f"after {count} of {num_videos} videos"
        raise Stopped(f"{description}: stopped by {reason} {where}; the same command goes on", reason=reason)


def _merge_all(group: Group, scores: VideoScores, description: str) -> None:
    """Take the scores of the other processes."""
    for rank, other in enumerate(group.gather(scores, f"scores: {description}")):
        if rank != group.rank:
            scores.merge(other)


def _score(
    items: Sequence[dict],
    batches: VideoBatches,
    scores: VideoScores,
    paths: Sequence[str],
    edit_views: EditViews | None,
    forward: Callable[[Tensor], Tensor],
) -> None:
    """Put the videos of one batch through the model: `forward` takes uint8 clips and gives logits on the CPU."""
    first, num_views = batches.videos_in(batches.batch_of(items[0]["index"]))[0], batches.num_views
    places: dict[int, tuple[dict, int, Tensor]] = {}  # place among the clips of the batch -> video, view, clip
    for item in items:
        index = item["index"]
        if item["video"] is None:
            logger.warning("not evaluated: %s: %s", paths[index], item["error"])
            scores.add_failure(index, paths[index], item["error"])
            continue
        clips = item["video"] if edit_views is None else edit_views(item["video"], index)
        assert len(clips) == num_views, (paths[index], len(clips), num_views)
        places |= {(index - first) * num_views + view: (item, view, clip) for view, clip in enumerate(clips)}
    size = batches.clips_per_forward
    for begin in range(0, batches.videos_per_batch * num_views, size):
        here = [place for place in range(begin, begin + size) if place in places]
        if not here:
            continue
        hole = torch.zeros_like(places[here[0]][2])
        clips = [places[place][2] if place in places else hole for place in range(begin, begin + size)]
        logits = forward(torch.stack(clips))
        for place in here:
            item, view, _ = places[place]
            row = logits[place - begin][None]
            scores.add(item["index"], [view], row, label=item["label"], path=paths[item["index"]])
