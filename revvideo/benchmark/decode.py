"""Decoding of clips: our reader and every other library on one core, in turn, on the same clips.

What the figures mean is said in `CONVENTIONS`, which every result carries.
"""

import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from revvideo.benchmark.decoders import OURS, Decoder, Job, Video
from revvideo.benchmark.step_timing import Ratios
from revvideo.engine.progress import Progress
from revvideo.errors import InputError

logger = logging.getLogger(__name__)

CASES = ("clip", "views")
OTHER_FRAME = 3.0  # mean difference, grey levels: above it a peer returned another frame, below it rounded otherwise
CONVENTIONS = {
    "clip": "one clip at a random start, the same for all backends of a round, the open included",
    "views": "that many clips from the first to the last frame of a video, in one open: each frame once, ascending",
    "time": "CPU time of the process (all its threads; process_time) and wall time, per clip or video, the sum over "
    "the files of a group; median of the rounds; every round takes the backends in another order; torch has one "
    "thread; one uncounted read of each file by each backend before",
    "clips/s": "per core: clips over CPU time",
    "spread": "(slowest - fastest round) / median",
    "ratio": "CPU time of the backend over ours, of the same clips: median over the rounds; above 1 ours is faster",
    "mean": "geometric mean over the groups",
    "frames": "checked on one clip of each file before; a backend that fails there is not timed on this file; with "
    "--size each library scales with its own filter, so that they differ",
    "Mbit/s": "of the whole file, sound included",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Files whose times are added up.

    Attributes:
        name: such as "gop 250".
        kind: "generated", "prepared" or "source": means are over the groups of one kind.
        paths: the files.
        original: name of the group whose files were re-encoded to make these, in the same order; None: none were.
    """

    name: str
    kind: str
    paths: Sequence[str]
    original: str | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        groups: of files.
        decoders: ours first.
        missing: {backend: why it cannot run here}.
        rounds: counted.
        views: clips of the second case; 0 leaves it out.
        num_frames, stride: of a clip.
        short_side: of the frames that are wanted, in pixels; None: as stored.
        seed: of the starts and of the order.
    """

    groups: Sequence[Group]
    decoders: Sequence[Decoder]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rounds: int = 7
    views: int = 10
    num_frames: int = 16
    stride: int = 4
    short_side: int | None = None
    seed: int = 0


@dataclasses.dataclass
class _File:
    """One file of a group, with the decoders that can read it."""

    group: Group
    video: Video
    decoders: list[Decoder] = dataclasses.field(default_factory=list)


class DecodeBenchmark:
    """Measures a `Plan`; figures gather in `result`, which is ready for JSON.

    Args:
        plan: what to measure.
        header: facts about the run that the result begins with.
        on_result: called with `result` whenever it has grown.
        clock: returns (CPU seconds, wall seconds).

    Raises:
        InputError: no file, no round, or the first decoder is not ours.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        header: Mapping[str, object] | None = None,
        on_result: Callable[[dict], object] = lambda result: None,
        clock: Callable[[], tuple[float, float]] = lambda: (time.process_time(), time.perf_counter()),
    ):
        if not plan.groups or not all(group.paths for group in plan.groups):
            raise InputError("there is no file to measure; name some after --source")
        if plan.rounds < 1:
            raise InputError(f"--rounds is {plan.rounds}; expected at least 1")
        if not plan.decoders or plan.decoders[0].name != OURS:
            raise ValueError(f"the first decoder is to be {OURS}, which the others are compared with")
        self.plan, self.on_result, self.clock = plan, on_result, clock
        self.result: dict = {"header": dict(header or {}), "conventions": CONVENTIONS}
        fields = {
            name: getattr(plan, name) for name in ("rounds", "views", "num_frames", "stride", "short_side", "seed")
        }
        self.result |= {"plan": fields, "backends": self._backends()}
        self.result |= {"files": [], "rows": [], "means": [], "prepared": []}

    def run(self) -> dict:
        """Check, then measure; returns `result`. torch has one thread meanwhile."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            files = [_File(group, Video.of(path)) for group in self.plan.groups for path in group.paths]
            for file in files:
                self._check(file)
            for case in CASES if self.plan.views else CASES[:1]:
                self._measure(case, files)
        finally:
            torch.set_num_threads(threads)
        return self.result

    def _backends(self) -> list[dict]:
        found = [
            {"name": decoder.name, "version": decoder.version, "calls": decoder.calls, "missing": None}
            for decoder in self.plan.decoders
        ]
        lost = [
            {"name": name, "version": None, "calls": None, "missing": why} for name, why in self.plan.missing.items()
        ]
        return found + lost

    # Are they the same frames?

    def _job(self, video: Video, starts: Sequence[int]) -> Job:
        return Job(video, starts, self.plan.num_frames, self.plan.stride, self.plan.short_side)

    def _latest_start(self, video: Video) -> int:
        return max(video.num_frames - ((self.plan.num_frames - 1) * self.plan.stride + 1), 0)

    def _check(self, file: _File) -> None:
        """Compare the frames of the clip in the middle; sets `file.decoders`."""
        video = file.video
        job = self._job(video, [self._latest_start(video) // 2])
        figures = {"group": file.group.name, "path": video.path, "height": video.height, "width": video.width}
        mbit_per_s = Path(video.path).stat().st_size * 8e-6 * video.fps / video.num_frames
        figures |= {"num_frames": video.num_frames, "fps": video.fps, "mbit_per_s": mbit_per_s, "checks": []}
        ours = None
        for decoder in self.plan.decoders:
            check = {"backend": decoder.name, "error": None, "max_difference": None, "other_frames": None}
            figures["checks"].append(check)
            try:
                frames = decoder.frames(job, decoder.read(job))
                ours = frames if ours is None else ours
                check |= compare_frames(frames, ours)
            except Exception as error:
                if decoder.name == OURS:
                    raise
                # Whatever a peer raises on a file is a finding, and libraries raise anything.
                check["error"] = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
                logger.info("%s is not measured on %s: %s", decoder.name, video.path, check["error"])
                continue
            file.decoders.append(decoder)
        self.result["files"].append(figures)
        self.on_result(self.result)

    # Times

    def _measure(self, case: str, files: Sequence[_File]) -> None:
        """All rounds of one case, its rows, and the means over them."""
        plan = self.plan
        random = np.random.default_rng([plan.seed, CASES.index(case)])
        # (CPU, wall) seconds of each round: by file (its place in `files`) and backend.
        times: dict[tuple[int, str], list[tuple[float, float]]] = {}
        with Progress(plan.rounds * len(files), case, log_period=len(files), logger=logger) as progress:
            for _ in range(plan.rounds):
                # One random phase a round, the files spread evenly behind it: early and late starts in each round.
                phase = random.random()
                for number in random.permutation(len(files)).tolist():
                    file = files[number]
                    job = self._job(file.video, self._starts(case, file, (phase + self._place(file)) % 1.0))
                    for k in random.permutation(len(file.decoders)).tolist():
                        decoder = file.decoders[k]
                        times.setdefault((number, decoder.name), []).append(self._seconds(decoder, job))
                    progress.update()
        rows = [
            self._row(case, group, decoder.name, files, times) for group in plan.groups for decoder in plan.decoders
        ]
        self.result["rows"] += rows
        self.result["means"] += means_of(rows)
        self.result["prepared"] += speed_up_of_prepared(rows, plan.groups)
        self.on_result(self.result)

    def _place(self, file: _File) -> float:
        """Where a file stands in its group, 0..1: the same for the same content in another encoding."""
        return list(file.group.paths).index(file.video.path) / len(file.group.paths)

    def _starts(self, case: str, file: _File, share: float) -> list[int]:
        latest = self._latest_start(file.video)
        if case == "clip":
            return [min(int(share * (latest + 1)), latest)]
        return [round(latest * view / max(self.plan.views - 1, 1)) for view in range(self.plan.views)]

    def _seconds(self, decoder: Decoder, job: Job) -> tuple[float, float]:
        _ = job.frames  # computed before the clock starts
        cpu, wall = self.clock()
        decoded = decoder.read(job)
        cpu_after, wall_after = self.clock()
        del decoded
        return cpu_after - cpu, wall_after - wall

    def _row(self, case: str, group: Group, backend: str, files: Sequence[_File], times: Mapping) -> dict:
        """One backend on one group: the files that it can read, and our time on the same files."""
        numbers = [i for i, file in enumerate(files) if file.group is group and (i, backend) in times]
        row = {"case": case, "group": group.name, "kind": group.kind, "backend": backend, "files": len(numbers)}
        if not numbers:
            return row | {"cpu_seconds": []}
        # (rounds, CPU or wall)
        own, ours = (np.mean([times[i, name] for i in numbers], axis=0).tolist() for name in (backend, OURS))
        cpu = [pair[0] for pair in own]
        median = statistics.median(cpu)
        row |= {
            "cpu_seconds": cpu,
            "wall_seconds": [pair[1] for pair in own],
            "median_cpu_seconds": median,
            "median_wall_seconds": statistics.median(pair[1] for pair in own),
            "spread": (max(cpu) - min(cpu)) / median,
            "per_second": 1 / median,
        }
        return row | dataclasses.asdict(Ratios.of(cpu, [pair[0] for pair in ours]))


def compare_frames(frames: np.ndarray, ours: np.ndarray) -> dict:
    """How far a peer's frames are from ours.

    Args:
        frames, ours: uint8 (N, H, W, 3).

    Returns:
        max_difference: of all values, in grey levels.
        other_frames: how many frames differ by more than `OTHER_FRAME` in the mean.

    Raises:
        ValueError: they have different shapes.
    """
    if frames.shape != ours.shape:
        raise ValueError(f"frames of shape {frames.shape} instead of {ours.shape}")
    difference = np.abs(frames.astype(np.int16) - ours)
    means = difference.reshape(len(difference), -1).mean(1)
    return {"max_difference": int(difference.max()), "other_frames": int((means > OTHER_FRAME).sum())}


def means_of(rows: Sequence[Mapping]) -> list[dict]:
    """Geometric means of the ratios of `rows` over the groups of one kind, by case, kind and backend."""
    found: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if row["cpu_seconds"] and row["backend"] != OURS:
            found.setdefault((row["case"], row["kind"], row["backend"]), []).append(row)
    return [
        {
            "case": case,
            "kind": kind,
            "backend": backend,
            "groups": [row["group"] for row in members],
            "ratio": geometric_mean([row["ratio"] for row in members]),
            "ratio_of_medians": geometric_mean([row["ratio_of_medians"] for row in members]),
        }
        for (case, kind, backend), members in found.items()
    ]


def speed_up_of_prepared(rows: Sequence[Mapping], groups: Sequence[Group]) -> list[dict]:
    """CPU time of a group over that of its re-encoded files, both read by the same backend: above 1 it pays."""
    by_name = {(row["group"], row["backend"]): row for row in rows if row["cpu_seconds"]}
    found = []
    for group in groups:
        for (name, backend), row in by_name.items():
            original = by_name.get((group.original, backend))
            if name == group.name and original is not None and original["files"] == row["files"]:
                figures = {"case": row["case"], "group": name, "original": group.original, "backend": backend}
                figures |= dataclasses.asdict(Ratios.of(original["cpu_seconds"], row["cpu_seconds"]))
                found.append(figures)
    return found


def geometric_mean(values: Sequence[float]) -> float:
    """The n-th root of the product of n positive numbers."""
    return math.exp(statistics.fmean(math.log(value) for value in values))
