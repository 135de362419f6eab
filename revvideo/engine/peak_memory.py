"""The most memory that this process has had so far."""

import resource
import sys

import torch

MIB = 2**20
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def peak_memory_mib(device: torch.device) -> float:
    """MiB: of tensors on the GPU since the start, as its allocator counts; on the CPU the process's largest resident
    set, its libraries and buffers included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES / MIB
