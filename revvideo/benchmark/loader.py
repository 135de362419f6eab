"""The training loader of a config: clips a second, and where its CPU time goes.

What the figures mean is said in `CONVENTIONS`, which every result carries.
"""

import contextlib
import functools
import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from revvideo.benchmark.decode_table import header_lines
from revvideo.benchmark.generated_video import Content, write_videos
from revvideo.benchmark.model_table import align
from revvideo.config import batch_plan

# Stage -> what is called for it: (module, name in it). The time of a call counts without the calls of other stages in
# it, so that the crop does not hold the flip that it ends with.
LOADER_STAGES = {
    "open and scan": [("revvideo.data.dataset", "open_video")],
    "decode": [("revvideo.data.video_reader", "VideoReader.frames"), ("revvideo.data.image_dataset", "open_picture")],
    "crop and resize": [
        ("revvideo.data.transforms", "TrainTransform.__call__"),
        ("revvideo.data.image_transforms", "ImageTrainTransform.__call__"),
    ],
    "RandAugment": [("revvideo.data.rand_augment", "RandAugment.__call__")],
    "colour jitter": [("revvideo.data.colour_jitter", "ColourJitter.__call__")],
    "flip": [("revvideo.data.transforms", "horizontal_flip")],
    "collate": [("revvideo.data.loader", "collate_clips")],
}
DEVICE_STAGES = {
    "normalise": [("revvideo.build.data", "normalise")],
    "erase": [("revvideo.data.random_erasing", "RandomErasing.__call__")],
    "mixup, cutmix": [("revvideo.data.mixing", "Mixing.__call__")],
}
REST, DEVICE_REST = "rest of the loader", "rest on the device"
CONVENTIONS = {
    "clips/s": "clips of the batches after the first one over the wall time from its arrival to that of the last one; "
    "nobody works on the batches meanwhile, and what the workers have prepared by the first arrival counts",
    "stages": "one process without workers, one torch thread; CPU time of the process, without that of stages inside",
    REST: "the order of the samples, random numbers, the copy of a crop into its clip",
    DEVICE_REST: "the copy to the device, targets, reversed channels",
    "share": "of all stages; on CUDA, of those of the loader: the device works beside them, its stages are wall time "
    "that ends when the device is done",
}


class StageClock:
    """Adds up the time of named stages, each without the stages inside it.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time):
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []  # of the stages that run: seconds of their own inner stages

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs in this context belongs to `name`."""
        self._inside.append(0.0)
        began = self.clock()
        try:
            yield
        finally:
            elapsed = self.clock() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._inside.pop()
            if self._inside:
                self._inside[-1] += elapsed

    @contextlib.contextmanager
    def installed(self, stages: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[None]:
        """While this context is open, the functions and methods of `stages` are timed, for the whole process."""
        with contextlib.ExitStack() as stack:
            for stage, points in stages.items():
                for module, name in points:
                    *owners, name = name.split(".")
                    owner = functools.reduce(getattr, owners, importlib.import_module(module))
                    original = getattr(owner, name)
                    setattr(owner, name, self._timed(stage, original))
                    stack.callback(setattr, owner, name, original)
            yield

    def _timed(self, stage: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self.stage(stage):
                return function(*args, **kwargs)

        return timed


def write_training_list(folder: Path, *, num_samples: int, count: int, content: Content, seed: int = 0) -> None:
    """Generated videos and a train.csv of `num_samples` lines that name them in turn.

    Args:
        folder: DATA.PATH_TO_DATA_DIR; it must exist.
        num_samples: lines.
        count: videos, key frames at most 250 frames apart.
        content: of the videos.
        seed: of the first one.
    """
    videos = write_videos(folder, count=count, gops=(250,), content=content, seed=seed)
    lines = [f"{videos[i % count].path.resolve()} {i % 2}\n" for i in range(num_samples)]
    (folder / "train.csv").write_text("".join(lines), encoding="utf-8")


def measure_stages(cfg: CfgNode, device: torch.device, num_batches: int) -> list[dict]:
    """CPU time of each stage of loading and preparing `num_batches` batches in this process; one more comes before.

    Args:
        cfg: with DATA_LOADER.NUM_WORKERS 0.
        device: of the stages after the loader.

    Returns:
        [{stage, place ("loader" or "device"), seconds_per_clip, share}]; a stage that the config does not use has 0.
    """
    from revvideo.build import build_train_input, build_train_loader

    if cfg.DATA_LOADER.NUM_WORKERS:
        raise ValueError("the stages are measured in one process: DATA_LOADER.NUM_WORKERS 0")
    loading, preparing = StageClock(), StageClock(_device_clock(device))
    clips = 0
    with loading.installed(LOADER_STAGES), preparing.installed(DEVICE_STAGES):
        batches = _batches(build_train_loader(cfg, batch_plan(cfg)))
        prepare = build_train_input(cfg, device)
        for step in range(1 + num_batches):
            if step == 1:
                loading.seconds.clear()
                preparing.seconds.clear()
                clips = 0
            with loading.stage(REST):
                epoch, batch = next(batches)
            with preparing.stage(DEVICE_REST):
                for _ in prepare(batch, epoch, step):
                    pass
            clips += len(batch.video)
    clocks = (("loader", (*LOADER_STAGES, REST), loading), ("device", (*DEVICE_STAGES, DEVICE_REST), preparing))
    rows = [
        {"stage": name, "place": place, "seconds_per_clip": clock.seconds.get(name, 0.0) / clips}
        for place, names, clock in clocks
        for name in names
    ]
    return with_shares(rows, comparable=device.type == "cpu")


def with_shares(rows: Sequence[Mapping], *, comparable: bool) -> list[dict]:
    """The rows of `measure_stages` with their `share`.

    Args:
        comparable: the device's stages are CPU time like the loader's; else they have no share (None).
    """
    counted = [row for row in rows if comparable or row["place"] == "loader"]
    total = sum(row["seconds_per_clip"] for row in counted)
    return [{**row, "share": row["seconds_per_clip"] / total if row in counted else None} for row in rows]


def measure_throughput(cfg: CfgNode, num_batches: int) -> dict:
    """Clips a second of the loader as the config has it.

    Returns:
        num_workers, clips, seconds, clips_per_second, and first_batch_seconds: from the start of the loader on.
    """
    from revvideo.build import build_train_loader

    began = time.perf_counter()
    batches = _batches(build_train_loader(cfg, batch_plan(cfg)))
    next(batches)
    first = time.perf_counter()
    clips = sum(len(next(batches)[1].video) for _ in range(num_batches))
    seconds = time.perf_counter() - first
    return {
        "num_workers": cfg.DATA_LOADER.NUM_WORKERS,
        "clips": clips,
        "seconds": seconds,
        "clips_per_second": clips / seconds,
        "first_batch_seconds": first - began,
    }


def _batches(loader) -> Iterator[tuple[int, object]]:
    """(epoch, batch) without end."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        for batch in loader:
            yield epoch, batch
        epoch += 1


def _device_clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def format_loader_result(result: Mapping) -> str:
    """The result of `revvideo benchmark loader` as text."""
    lines = header_lines(result["header"])
    lines += [result["config"], *(f"{name}: {text}" for name, text in result["conventions"].items())]
    stages = [
        [row["stage"], row["place"], f"{1e3 * row['seconds_per_clip']:.2f}", _percent(row["share"])]
        for row in result["stages"]
    ]
    loader = sum(row["seconds_per_clip"] for row in result["stages"] if row["place"] == "loader")
    throughput = [
        [row["num_workers"], f"{row['clips_per_second']:.2f}", row["clips"], f"{row['first_batch_seconds']:.2f}"]
        for row in result["throughput"]
    ]
    parts = [
        "\n".join(lines),
        align(["stage", "place", "ms a clip", "share"], stages),
        f"CPU time of the loader: {1e3 * loader:.1f} ms a clip, {1 / loader:.1f} clips/s and core",
        align(["workers", "clips/s", "clips", "first batch s"], throughput),
    ]
    return "\n\n".join(parts)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
