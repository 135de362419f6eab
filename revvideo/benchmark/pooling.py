"""The pooling operators against each other, at the shapes of a model's training step.

``python -m revvideo.benchmark.pooling [--model rev_mvit_b_16x4] [--dtype float32] [--batch-size 1] [--repeats 7]``:
milliseconds of the forward, the input gradient and the weight gradient of all pooling convolutions of one step, each
shape by every operator in turn (medians), their ratios to torch's convolution, and the peak memory of both gradients of
the largest volume.
"""

import argparse
import dataclasses
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from revvideo.benchmark.memory import peak_bytes
from revvideo.models.depthwise_pooling import depthwise_pool
from revvideo.models.registry import create_model

PARTS = ("forward", "input gradient", "weight gradient")
DTYPES = ("float32", "bfloat16", "float16", "float64")
PEER = "aten"


@dataclasses.dataclass(frozen=True)
class Pooling:
    """One pooling convolution: size of the volume (B, D, T, H, W) and of the weight (d, 1, kt, kh, kw)."""

    volume: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


class _Poolings(TorchFunctionMode):
    """Collects the depthwise convolutions that are called; on the meta device every operator is one."""

    def __init__(self, head_widths: set[int]):
        super().__init__()
        self.head_widths, self.found = head_widths, Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.conv3d and kwargs.get("groups", 1) == args[0].shape[1]:
            volume, weight = args[0].shape, args[1].shape
            # The weight is repeated for the heads by now.
            width = max(d for d in self.head_widths if volume[1] % d == 0)
            options = (tuple(kwargs[name]) for name in ("stride", "padding"))
            self.found[Pooling(tuple(volume), (width, *weight[1:]), *options)] += 1
        return func(*args, **kwargs)


def poolings(model_name: str, batch_size: int = 1) -> Counter[Pooling]:
    """The depthwise convolutions of one forward pass and how often each is called; nothing is computed."""
    with torch.device("meta"):
        model = create_model(model_name)
    model = model.to("meta").eval()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv3d) and m.in_channels == m.groups]
    with torch.no_grad(), _Poolings({m.out_channels for m in convolutions}) as mode:
        model(torch.empty(batch_size, *model.input_spec.shape, device="meta"))
    return mode.found


def works(pooling: Pooling, operator: str, dtype: torch.dtype, device: torch.device) -> dict[str, Callable]:
    """What to time: each of `PARTS`, on random tokens; a float32 weight, as under autocast."""
    batch, channels, *grid = pooling.volume
    volume = torch.randn(batch, *grid, channels, device=device).to(dtype).permute(0, 4, 1, 2, 3).requires_grad_()
    weight = torch.randn(pooling.weight, device=device, dtype=torch.promote_types(dtype, torch.float32))
    weight.requires_grad_()

    def pool(volume, weight):
        return depthwise_pool(volume, weight, pooling.stride, pooling.padding, operator=operator)

    for_volume, for_weight = pool(volume, weight.detach()), pool(volume.detach(), weight)
    grad = torch.randn_like(for_volume)
    return {
        "forward": lambda: pool(volume.detach(), weight.detach()),
        "input gradient": lambda: torch.autograd.grad(for_volume, volume, grad, retain_graph=True),
        "weight gradient": lambda: torch.autograd.grad(for_weight, weight, grad, retain_graph=True),
    }


def measure(
    found: Counter[Pooling], operators: list[str], dtype: torch.dtype, device: torch.device, repeats: int
) -> dict[Pooling, dict[str, dict[str, float]]]:
    """Median seconds of one call of each part: ``[pooling][operator][part]``, the operators in turn."""
    medians = {}
    for pooling in found:
        by_operator = {operator: works(pooling, operator, dtype, device) for operator in operators}
        seconds = defaultdict(list)
        for repeat in range(repeats + 1):
            for operator, parts in by_operator.items():
                for part, work in parts.items():
                    passed = _seconds(work, device)
                    if repeat:  # the first one warms up
                        seconds[operator, part].append(passed)
        medians[pooling] = {o: {p: statistics.median(seconds[o, p]) for p in PARTS} for o in operators}
    return medians


def _seconds(work: Callable, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="rev_mvit_b_16x4")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    operators = [PEER, "taps"] + ["compiled"] * (device.type == "cpu")
    dtype, found = getattr(torch, args.dtype), poolings(args.model, args.batch_size)
    medians = measure(found, operators, dtype, device, args.repeats)
    print(f"{args.model}, batch {args.batch_size}, {args.dtype}, {device}, {torch.get_num_threads()} threads")
    print(f"ms of one call: {', '.join(PARTS)}")
    for pooling, by_operator in medians.items():
        print(f"{found[pooling]} x volume {pooling.volume}, kernel {pooling.weight[2:]}, stride {pooling.stride}")
        for operator in operators:
            print(f"  {operator:9}" + "".join(f"{1e3 * by_operator[operator][part]:10.2f}" for part in PARTS))
    print("ms of all calls of one step (ratio to aten); peak MiB of both gradients of the largest volume")
    totals = {o: {p: sum(found[x] * medians[x][o][p] for x in found) for p in PARTS} for o in operators}
    largest = max(found, key=lambda pooling: torch.Size(pooling.volume).numel())
    for operator in operators:
        parts = works(largest, operator, dtype, device)
        peak = max(peak_bytes(parts[part], device) for part in PARTS[1:]) / 2**20
        shown = (f"{1e3 * totals[operator][p]:9.1f} ({totals[operator][p] / totals[PEER][p]:.3f})" for p in PARTS)
        print(f"  {operator:9}" + "".join(shown) + f"{peak:10.2f} MiB")


if __name__ == "__main__":
    main()
