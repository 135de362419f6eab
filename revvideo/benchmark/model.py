"""Training steps of models side by side: time against a peer, peak memory, its growth, the largest batch.

What the figures mean is said in `CONVENTIONS`, which every result carries.
"""

import dataclasses
import gc
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from revvideo.benchmark.flops import count_flops
from revvideo.benchmark.largest_batch import (
    attempt_on_cuda,
    cuda_memory_limit,
    search_by_extrapolation,
    search_by_trial,
    state_bytes,
)
from revvideo.benchmark.step_timing import PRECISIONS, Ratios, TrainingStep, in_turn, matmul_flops_per_second
from revvideo.benchmark.variants import META, Variant, check_words
from revvideo.engine.progress import Progress
from revvideo.errors import InputError

logger = logging.getLogger(__name__)

MIB, GIB = 2**20, 2**30
CONVENTIONS = {
    "step": "forward + cross-entropy + backward of one random batch; no optimizer; drop path 0 unless an option sets "
    "it, the head's dropout as the model has it; autocast for bfloat16 and float16 (loss scaled), parameters float32",
    "time": "median of steps that find all gradients None, taken in turn with steps of the peer after one uncounted "
    "pair; the peer runs in float32 with the same batch size, whatever the row's precision",
    "memory": "peak of live tensor bytes above the state before the step (weights, gradients and clips are there "
    "already), third step, in a step of the same configuration that is not timed",
    "ratio": "median over the pairs of (step / step of the peer)",
    "spread": "(slowest - fastest step) / median step",
    "mfu": "3 x forward multiply-adds x 2 x batch / median step, of the fastest matrix product that was measured in "
    "the same precision; recomputed work is not counted, keys and values are counted for all tokens",
    "largest_batch": "one training step without an optimizer; on CUDA tried (to 2 %), on a CPU measured against the "
    "limit: weights, gradients, clips and peak; the next batch predicted by a line",
}


# Lists of the result: figures of steps, of the peer's steps, MiB per clip, peaks of depths, MiB per block, largest
# batches, and a line for each combination that makes no sense.
KINDS = ("rows", "peers", "growth_with_batch", "depths", "growth_with_depth", "largest_batches", "skipped")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        variants: the networks, see `resolve_variants`.
        precisions: of `PRECISIONS`.
        batch_sizes: clips of a step.
        device: where.
        pairs: timed steps of each row, each next to one of the peer.
        peer: name of the model that times are compared with, built with the defaults of the registry; None: no peer.
        depths: blocks of the networks whose peak memory is compared, at the first batch size.
        max_batch: whether to search the largest batch.
        memory_limit: in bytes, for that search; None is what the device has (CUDA only).
        skipped: lines about combinations that the plan leaves out.
    """

    variants: Sequence[Variant]
    precisions: Sequence[str]
    batch_sizes: Sequence[int]
    device: torch.device
    pairs: int = 5
    peer: Variant | None = None
    depths: Sequence[int] = ()
    max_batch: bool = False
    memory_limit: int | None = None
    skipped: Sequence[str] = ()


class ModelBenchmark:
    """Measures a `Plan`; figures gather in `result`, which is ready for JSON.

    Args:
        plan: what to measure.
        header: facts about the run that the result begins with: command, machine, ...
        on_result: called with `result` whenever it has grown.
        make_step: builds the step of ``(model, batch_size, precision, device)``.

    Raises:
        InputError: an unknown precision, or no network can be built with any of the depths.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        header: Mapping[str, object] | None = None,
        on_result: Callable[[dict], object] = lambda result: None,
        make_step: Callable[..., TrainingStep] = TrainingStep,
    ):
        check_words("precision", plan.precisions, PRECISIONS)
        self.plan, self.on_result, self.make_step = plan, on_result, make_step
        self.result: dict = {"header": dict(header or {}), "conventions": CONVENTIONS, "matmul_tflops": {}}
        self.result |= {kind: [] for kind in KINDS} | {"skipped": list(plan.skipped)}
        self._peer_steps: dict[int, TrainingStep | None] = {}
        self._gflops: dict[str, float] = {}  # by model and options
        self._depths = self._buildable_depths()

    def run(self) -> dict:
        """All measurements, one after the other; returns `result`."""
        plan = self.plan
        for line in self.result["skipped"]:
            logger.info("not measured: %s", line)
        if plan.device.type == "cuda":
            for name in dict.fromkeys([*plan.precisions, "float32"]):
                self.result["matmul_tflops"][name] = matmul_flops_per_second(name, plan.device) / 1e12
        total = len(plan.precisions) * len(plan.variants) * len(plan.batch_sizes)
        with Progress(total * plan.pairs, "pairs of steps", log_period=plan.pairs, logger=logger) as progress:
            for precision in plan.precisions:
                for variant in plan.variants:
                    self._measure_batches(variant, precision, progress)
        self._peer_steps.clear()
        self._measure_depths()
        if plan.max_batch:
            for precision in plan.precisions:
                for variant in plan.variants:
                    self._find_largest_batch(variant, precision)
        return self.result

    def _add(self, kind: str, figures: dict) -> None:
        self.result[kind].append(figures)
        self.on_result(self.result)

    # Time and memory of steps

    def _measure_batches(self, variant: Variant, precision: str, progress: Progress) -> None:
        """A row for each batch size, and how the peak grows with the batch."""
        model = variant.build(self.plan.device)
        peaks = {}
        for batch_size in self.plan.batch_sizes:
            row = _identity(variant, precision) | {"batch_size": batch_size, "error": None}
            try:
                row |= self._measure_row(model, variant, precision, batch_size, progress)
                peaks[batch_size] = row["peak_mib"]
            except torch.OutOfMemoryError:
                row["error"] = "out of memory"
                progress.update(self.plan.pairs, row=f"{variant.label} {precision} batch {batch_size}: out of memory")
            self._add("rows", row)
            _release(model)
        if len(peaks) > 1:
            slope, start = statistics.linear_regression(list(peaks), list(peaks.values()))
            growth = {"mib_per_clip": slope, "mib_at_0": start}
            self._add("growth_with_batch", _identity(variant, precision) | growth)

    def _measure_row(
        self, model: nn.Module, variant: Variant, precision: str, batch_size: int, progress: Progress
    ) -> dict:
        step = self.make_step(model, batch_size, precision, self.plan.device)
        peak_mib = step.peak_bytes() / MIB
        _release(model)
        peer = self._peer_step(batch_size)
        retries = _allocator_retries(self.plan.device)
        label = f"{variant.label} {precision} batch {batch_size}"

        def show(seconds: tuple[float, ...]) -> None:
            ratio = {"of_peer": seconds[-1] / seconds[0]} if peer else {}
            progress.update(row=label, step_s=seconds[-1], **ratio, peak_mib=peak_mib)

        measures = [peer.seconds, step.seconds] if peer else [step.seconds]
        *of_peer, seconds = in_turn(measures, self.plan.pairs, on_round=show)
        row = {
            "parameters": sum(p.numel() for p in model.parameters()),
            **_times(seconds, batch_size),
            "peak_mib": peak_mib,
            "mib_per_clip": peak_mib / batch_size,
            "gflops": None,
            "mfu": None,
            "allocator_retries": _allocator_retries(self.plan.device) - retries,
            "peer_seconds": None,
        }
        row |= dict.fromkeys(field.name for field in dataclasses.fields(Ratios))
        if peer:
            row |= {"peer_seconds": of_peer[0]} | dataclasses.asdict(Ratios.of(seconds, of_peer[0]))
            self._count_for_peer(batch_size, of_peer[0])
        return row | self._utilisation(variant, precision, row["median_seconds"] / batch_size)

    def _peer_step(self, batch_size: int) -> TrainingStep | None:
        """The step of the peer, with its peak already in the result; None: no peer, or too large a batch for it."""
        if self.plan.peer is None:
            return None
        if batch_size not in self._peer_steps:
            models = [step.model for step in self._peer_steps.values() if step]
            model = models[0] if models else self.plan.peer.build(self.plan.device)
            figures = _identity(self.plan.peer, "float32") | {"batch_size": batch_size, "seconds": []}
            try:
                step = self.make_step(model, batch_size, "float32", self.plan.device)
                figures |= {"peak_mib": step.peak_bytes() / MIB, "error": None}
            except torch.OutOfMemoryError:
                step = None
                figures |= {"peak_mib": None, "error": "out of memory"}
            self._peer_steps[batch_size] = step
            self._add("peers", figures)
            _release(model)
        return self._peer_steps[batch_size]

    def _count_for_peer(self, batch_size: int, seconds: list[float]) -> None:
        """The peer's own figures are those of all its steps, whatever row they were taken for."""
        (figures,) = (peer for peer in self.result["peers"] if peer["batch_size"] == batch_size)
        figures |= _times([*figures["seconds"], *seconds], batch_size)
        figures |= self._utilisation(self.plan.peer, "float32", figures["median_seconds"] / batch_size)

    def _utilisation(self, variant: Variant, precision: str, seconds_per_clip: float) -> dict:
        """Multiply-adds of a forward, and the share of the measured matrix-product peak; empty without that peak."""
        if precision not in self.result["matmul_tflops"]:
            return {}
        plain = Variant(variant.model, "plain", options=variant.options)  # the same work, whatever the mode
        key = f"{plain.model} {plain.options}"
        if key not in self._gflops:
            self._gflops[key] = count_flops(plain.build(META)).giga
        gflops = self._gflops[key]
        peak = self.result["matmul_tflops"][precision] * 1e3
        return {"gflops": gflops, "mfu": 3 * 2 * gflops / seconds_per_clip / peak}

    # Memory against depth

    def _buildable_depths(self) -> dict[str, list[int]]:
        """The depths that each variant, by its label, can have."""
        plan, found, refused = self.plan, {}, []
        for variant in plan.variants if plan.depths else ():
            for depth in plan.depths:
                try:
                    variant.build(META, depth=depth)
                    found.setdefault(variant.label, []).append(depth)
                except ValueError as error:
                    refused.append(f"{variant.label}, depth {depth}: {error}")
        if plan.depths and not found:
            raise InputError(f"nothing to measure against depth: {refused[0]}")
        self.result["skipped"] += refused
        return found

    def _measure_depths(self) -> None:
        plan = self.plan
        total = len(plan.precisions) * sum(len(depths) for depths in self._depths.values())
        with Progress(total, "peaks of depths", log_period=1, logger=logger) as progress:
            for precision in plan.precisions:
                for variant in plan.variants:
                    peaks = {}
                    for depth in self._depths.get(variant.label, ()):
                        model = variant.build(plan.device, depth=depth)
                        step = self.make_step(model, plan.batch_sizes[0], precision, plan.device)
                        try:
                            peaks[depth] = step.peak_bytes() / MIB
                        except torch.OutOfMemoryError:
                            line = f"{variant.label}, {precision}, depth {depth}: out of memory"
                            self.result["skipped"].append(line)
                            progress.update(row=line)
                            continue
                        figures = {"batch_size": plan.batch_sizes[0], "depth": depth, "peak_mib": peaks[depth]}
                        self._add("depths", _identity(variant, precision) | figures)
                        progress.update(row=f"{variant.label} {precision} depth {depth}", peak_mib=peaks[depth])
                    if len(peaks) > 1:
                        slope, start = statistics.linear_regression(list(peaks), list(peaks.values()))
                        growth = {"batch_size": plan.batch_sizes[0], "mib_per_block": slope, "mib_at_0": start}
                        self._add("growth_with_depth", _identity(variant, precision) | growth)

    # The largest batch

    def _find_largest_batch(self, variant: Variant, precision: str) -> None:
        device, limit = self.plan.device, self.plan.memory_limit
        model = variant.build(device)

        def make_step(batch_size: int) -> TrainingStep:
            return self.make_step(model, batch_size, precision, device)

        def total_bytes(batch_size: int) -> int:
            step = make_step(batch_size)
            total = state_bytes(model) + step.clips.nbytes + step.peak_bytes()
            logger.info("%s %s batch %d: %.3f GiB", variant.label, precision, batch_size, total / GIB)
            return total

        if device.type == "cuda":
            with cuda_memory_limit(limit, device):
                found = search_by_trial(lambda batch_size: attempt_on_cuda(make_step, model, device, batch_size))
        else:
            found = search_by_extrapolation(total_bytes, limit)
        logger.info("%s %s: largest batch %d (%s)", variant.label, precision, found.batch_size, found.reason)
        measured = [{"batch_size": batch, "total_bytes": size} for batch, size in sorted(found.measured.items())]
        figures = dataclasses.asdict(found) | {"measured": measured}  # JSON has no numbers as keys
        self._add("largest_batches", _identity(variant, precision) | figures)


def _identity(variant: Variant, precision: str) -> dict:
    """What tells the figures of one network from those of another."""
    names = {"model": variant.model, "mode": variant.mode, "pooling": variant.pooling, "compiled": variant.compiled}
    return names | {"precision": precision, "options": dict(variant.options)}


def _times(seconds: Sequence[float], batch_size: int) -> dict:
    median = statistics.median(seconds)
    return {
        "seconds": list(seconds),
        "median_seconds": median,
        "min_seconds": min(seconds),
        "spread": (max(seconds) - min(seconds)) / median,
        "clips_per_second": batch_size / median,
        "milliseconds_per_clip": 1e3 * median / batch_size,
    }


def _release(model: nn.Module) -> None:
    """Give back what a step has left: gradients, and the allocator's empty blocks."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _allocator_retries(device: torch.device) -> int:
    """How often the CUDA allocator had to give back its blocks to find memory, which costs time; 0 on the CPU."""
    return torch.cuda.memory_stats(device).get("num_alloc_retries", 0) if device.type == "cuda" else 0
