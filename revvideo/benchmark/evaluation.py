"""What one decode per video saves in an evaluation, against one per view.

Both ways read the same views with the same reader, which is checked; only how often a video is opened and decoded
differs. They take turns, video by video, in one process.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from revvideo import build
from revvideo.benchmark.decode_table import header_lines
from revvideo.benchmark.model_table import align
from revvideo.data.dataset import EvalClips
from revvideo.data.video_reader import VideoError, open_video
from revvideo.engine.evaluator import evaluate
from revvideo.errors import InputError

ONCE, EACH = "one decode per video", "one decode per view"
CONVENTIONS = {
    "reading": "open, decode, resize and crop of all views of each video; CPU time of one process without workers, one "
    "torch thread; per view means per temporal view, whose crops share a decode",
    "evaluation": "reading and the model (random weights) one after the other, on the CPU",
}

Read = Callable[[EvalClips, int], Tensor]


def read_once(dataset: EvalClips, index: int) -> Tensor:
    """All views of a video from one decode, as the evaluation reads them: uint8 (V * S, T, C, H, W)."""
    return _views(dataset, index, [range(dataset.num_views)])


def read_each(dataset: EvalClips, index: int) -> Tensor:
    """The same views, the video opened and decoded anew for each temporal one."""
    return _views(dataset, index, [[view] for view in range(dataset.num_views)])


def _views(dataset: EvalClips, index: int, portions: Sequence[Sequence[int]]) -> Tensor:
    path, parts = dataset.manifest.paths[index], []
    for portion in portions:
        with open_video(path, dataset.backend, strict=dataset.strict, index_cache=dataset.index_cache) as video:
            parts.append(dataset.views(video, portion))
    return torch.cat(parts)


def measure_evaluation(cfg: CfgNode, num_videos: int | None = None) -> dict:
    """CPU seconds of reading, and of evaluating, the test set in both ways.

    Args:
        cfg: the config; its last number of temporal views counts.
        num_videos: the first so many readable videos of the list; None: all.

    Returns:
        num_videos, num_views, num_crops, and for `reading` and `evaluation` the seconds of both ways and their ratio.

    Raises:
        InputError: pictures, or no readable video.
    """
    num_views = build.temporal_views(cfg)[-1]
    manifest = build.build_manifest(cfg, "test")
    dataset = build.build_test_dataset(cfg, num_views, manifest)
    if not isinstance(dataset, EvalClips):
        raise InputError("the test set is one of pictures; expected videos, which have views")
    reading, readable = _measure_reading(dataset, num_videos or len(manifest))
    if not readable:
        raise InputError(f"no video of {manifest.source} can be read")
    model = build.build_model(cfg)
    evaluation = {name: _seconds_of_evaluation(cfg, model, dataset, readable, read) for name, read in _WAYS.items()}
    return {
        "num_videos": len(readable),
        "num_views": num_views,
        "num_crops": dataset.num_crops,
        "rows": [
            {"what": what, "seconds": seconds, "ratio": seconds[EACH] / seconds[ONCE]}
            for what, seconds in (("reading", reading), ("evaluation", evaluation))
        ],
    }


_WAYS: dict[str, Read] = {ONCE: read_once, EACH: read_each}


def _measure_reading(dataset: EvalClips, num_videos: int) -> tuple[dict[str, float], list[int]]:
    """Seconds of each way, and the numbers of the videos."""
    seconds, readable = dict.fromkeys(_WAYS, 0.0), []
    for index in range(len(dataset)):
        if len(readable) == num_videos:
            break
        try:
            read_once(dataset, index)  # the file is in memory then, and in the cache of packet indices if there is one
        except VideoError:
            continue
        found = {}
        for name in _WAYS if len(readable) % 2 else reversed(_WAYS):
            began = time.process_time()
            found[name] = _WAYS[name](dataset, index)
            seconds[name] += time.process_time() - began
        assert torch.equal(found[ONCE], found[EACH]), dataset.manifest.paths[index]
        readable.append(index)
    return seconds, readable


class _Items:
    """Items as the evaluation's loader gives them, read in one of the ways."""

    def __init__(self, dataset: EvalClips, indices: Sequence[int], read: Read):
        self.dataset, self.indices, self.read = dataset, indices, read

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict]:
        labels = self.dataset.manifest.labels
        for index in self.indices:
            yield {"video": self.read(self.dataset, index), "label": labels[index], "index": index, "error": None}


def _seconds_of_evaluation(
    cfg: CfgNode, model: torch.nn.Module, dataset: EvalClips, indices: Sequence[int], read: Read
) -> float:
    device = torch.device("cpu")
    began = time.process_time()
    evaluate(
        model,
        _Items(dataset, indices, read),
        paths=dataset.manifest.paths,
        num_views=dataset.num_views * dataset.num_crops,
        method=cfg.DATA.ENSEMBLE_METHOD,
        prepare=build.build_eval_input(cfg, device),
        device=device,
        clips_per_batch=build.clips_per_forward(cfg),
        description=f"evaluate, {'once' if read is read_once else 'view by view'}",
        log_period=cfg.LOG_PERIOD,
    )
    return time.process_time() - began


def format_evaluation_result(result: Mapping) -> str:
    """The result of `revvideo benchmark evaluation` as text."""
    rows = [
        [row["what"], *(f"{row['seconds'][name]:.2f}" for name in _WAYS), f"{row['ratio']:.2f} x"]
        for row in result["rows"]
    ]
    header = [
        *header_lines(result["header"]),
        f"{result['num_videos']} videos, {result['num_views']} temporal views x {result['num_crops']} crops; "
        f"LOADER.INDEX_CACHE {result['index_cache']!r}",
        *(f"{name}: {text}" for name, text in result["conventions"].items()),
    ]
    return "\n".join(header) + "\n\n" + align(["seconds of", *_WAYS, "ratio"], rows)
