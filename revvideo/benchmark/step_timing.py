"""Time and memory of one training step, and steps of two networks in turn, so that a slow phase meets both.

A step is forward, cross-entropy and backward of one random batch; no optimizer.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from revvideo.benchmark.memory import peak_training_bytes

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}  # name -> dtype of autocast

# Such as training settles at. GradScaler's own start, 2**16, overflows float16 until the optimizer has lowered it.
LOSS_SCALE = 2.0**12


class _Autocast(nn.Module):
    """A network whose forward runs under autocast; its loss does not, as in `engine.Trainer`."""

    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype | None):
        super().__init__()
        self.network, self.device, self.dtype = network, device, dtype

    def forward(self, clips: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.network(clips)


class TrainingStep:
    """The step of `engine.Trainer` without its optimizer: autocast, and for float16 a scaled loss.

    Args:
        model: with an ``input_spec``, on `device`; it is put in training mode.
        batch_size: clips.
        precision: one of `PRECISIONS`.
        device: where it runs.
    """

    def __init__(self, model: nn.Module, batch_size: int, precision: str, device: torch.device):
        dtype = PRECISIONS[precision]
        self.model, self.device = model.train(), device
        self.network = _Autocast(model, device, dtype)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=LOSS_SCALE, enabled=dtype is torch.float16)
        random = torch.Generator(device).manual_seed(0)
        self.clips = torch.randn(batch_size, *model.input_spec.shape, generator=random, device=device)
        self.labels = torch.zeros(batch_size, dtype=torch.long, device=device)

    def run(self) -> None:
        """One step; gradients that are there are added to."""
        loss = nn.functional.cross_entropy(self.network(self.clips), self.labels)
        self.scaler.scale(loss).backward()

    def seconds(self) -> float:
        """Time of one step that finds every gradient None."""
        self.model.zero_grad(set_to_none=True)
        return elapsed(self.run, self.device)

    def peak_bytes(self) -> int:
        """Peak of live memory above the state before: the third step, with gradients allocated. It is not timed.

        The loss is not scaled, which is a product with one number.
        """
        return peak_training_bytes(self.network, self.clips, self.labels)


def elapsed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work()`, on CUDA those of the device."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def in_turn(
    measures: Sequence[Callable[[], float]],
    rounds: int,
    *,
    warmup_rounds: int = 1,
    on_round: Callable[[tuple[float, ...]], object] = lambda values: None,
) -> list[list[float]]:
    """What each of `measures` returns, called one after the other, `rounds` times: A B A B A B.

    Args:
        measures: each does its work once and returns its seconds.
        rounds: how often they are counted.
        warmup_rounds: rounds before, not counted.
        on_round: gets the values of each counted round.
    """
    for _ in range(warmup_rounds):
        for measure in measures:
            measure()
    counted = []
    for _ in range(rounds):
        counted.append(tuple(measure() for measure in measures))
        on_round(counted[-1])
    return [list(values) for values in zip(*counted, strict=True)]


@dataclasses.dataclass(frozen=True)
class Ratios:
    """Times over those of the peer in the same rounds.

    Attributes:
        ratio: median of the ratios of the pairs; a slow phase that covers a pair cancels out.
        ratio_of_medians: median time over the peer's median time.
        ratio_of_minima: least time over the peer's least time.
        ratio_lowest, ratio_highest: of all pairs.
    """

    ratio: float
    ratio_of_medians: float
    ratio_of_minima: float
    ratio_lowest: float
    ratio_highest: float

    @classmethod
    def of(cls, seconds: Sequence[float], peer_seconds: Sequence[float]) -> "Ratios":
        pairs = [ours / theirs for ours, theirs in zip(seconds, peer_seconds, strict=True)]
        return cls(
            ratio=statistics.median(pairs),
            ratio_of_medians=statistics.median(seconds) / statistics.median(peer_seconds),
            ratio_of_minima=min(seconds) / min(peer_seconds),
            ratio_lowest=min(pairs),
            ratio_highest=max(pairs),
        )


def matmul_flops_per_second(
    precision: str, device: torch.device, *, sizes: Sequence[int] = (4096, 8192), repeats: int = 20
) -> float:
    """The fastest product of two square random matrices: floating-point operations (multiply and add: 2) per second."""
    best = 0.0
    for size in sizes:
        dtype = PRECISIONS[precision] or torch.float32
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        product = torch.empty_like(a)
        seconds = [elapsed(lambda: torch.mm(a, b, out=product), device) for _ in range(repeats)]  # noqa: B023
        best = max(best, 2 * size**3 / min(seconds))
    return best
