"""Peak memory of a piece of work, measured exactly: on the CPU from the profiler's allocation events, on CUDA from the
allocator's counters. What was alive before does not count.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes of tensors alive at one moment of `work()`, above those alive before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def peak_training_bytes(model: nn.Module, clips: Tensor, labels: Tensor, *, warmup_steps: int = 2) -> int:
    """Peak of forward, cross-entropy and backward, with the parameters' gradients already allocated; no optimizer.

    Args:
        model: in training mode, on the device of `clips`.
        clips: float `(B, C, T, H, W)`.
        labels: int64 `(B,)`.
        warmup_steps: steps before the measured one.
    """

    def step() -> None:
        nn.functional.cross_entropy(model(clips), labels).backward()

    for _ in range(warmup_steps):
        step()
    return peak_bytes(step, clips.device)
