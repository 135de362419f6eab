"""Relative positions as extra dimensions of queries and keys, against a bias of the size of the scores.

``python -m revvideo.benchmark.relative_positions [--model mvitv2_s_16x4] [--batch-size 1] [--pairs 7]``: one forward
and one training step (forward, cross-entropy, backward) of the same weights, float32, both ways in turn; peak of live
memory above the state before, median time, ratios.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from revvideo.benchmark.explicit_attention import explicit_attention
from revvideo.benchmark.memory import peak_bytes
from revvideo.models.registry import create_model

WAYS = {"extra dimensions": contextlib.nullcontext, "explicit bias": explicit_attention}


def compare(model: nn.Module, *, batch_size: int, pairs: int) -> dict[str, dict[str, tuple[int, float]]]:
    """Peak bytes and median seconds of both ways, for ``"forward"`` and ``"training step"``.

    Args:
        model: with relative positions, on the CPU or a GPU.
        batch_size: clips.
        pairs: timed runs of each way, in turn, after one warm-up.
    """
    device = next(model.parameters()).device
    clips = torch.randn(batch_size, *model.input_spec.shape, device=device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)

    def forward() -> None:
        with torch.no_grad():
            model.eval()(clips)

    def train() -> None:
        nn.functional.cross_entropy(model.train()(clips), labels).backward()

    return {name: _measure(work, device, pairs) for name, work in (("forward", forward), ("training step", train))}


def _measure(work: Callable[[], None], device: torch.device, pairs: int) -> dict[str, tuple[int, float]]:
    peaks, seconds = {}, {way: [] for way in WAYS}
    for way, context in WAYS.items():
        with context():
            work()
            peaks[way] = peak_bytes(work, device)
    for _ in range(pairs):
        for way, context in WAYS.items():
            with context():
                began = time.perf_counter()
                work()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[way].append(time.perf_counter() - began)
    return {way: (peaks[way], statistics.median(seconds[way])) for way in WAYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mvitv2_s_16x4")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = create_model(args.model, drop_path=0.0).to(device)
    print(f"{args.model}, batch {args.batch_size}, float32, {device}, {torch.get_num_threads()} threads")
    for name, ways in compare(model, batch_size=args.batch_size, pairs=args.pairs).items():
        (ours, our_seconds), (theirs, their_seconds) = ways.values()
        for way, (peak, seconds) in ways.items():
            print(f"  {name:13}  {way:16}  {peak / 2**20:8.1f} MiB  {seconds:7.3f} s")
        print(f"  {name:13}  {'ratio':16}  {ours / theirs:8.2f}      {our_seconds / their_seconds:7.2f}")


if __name__ == "__main__":
    main()
