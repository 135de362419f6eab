"""How much memory a process may plan with: what its device has, or what its control group leaves it."""

from pathlib import Path

import torch

from revvideo.errors import InputError
from revvideo.planner.largest_batch import CUDA_FRAGMENTATION, CUDA_WORKSPACE_BYTES

CPU_SHARE = 0.9  # of what is available: for what is no tensor of the step, such as the loader's queue
_GROUP_FILES = {  # version of control groups -> folder of the memory controller, its limit, its use
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    2: ("", "memory.max", "memory.current"),
}


def usable_bytes(device: torch.device, own_bytes: int, *, processes: int = 1) -> int:
    """Bytes that the tensors of this process may take on `device`, in all.

    Args:
        device: the CPU, whose free memory the processes of the machine share, or a GPU of this process alone.
        own_bytes: of the tensors that are there already and part of what is planned.
        processes: processes of this machine.

    Raises:
        InputError: the system does not say.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        others = torch.cuda.memory_allocated(device) - own_bytes
        ours = free + torch.cuda.memory_reserved(device) - others
        return ours - int(CUDA_FRAGMENTATION * total) - CUDA_WORKSPACE_BYTES
    available = available_cpu_bytes()
    if available is None:
        raise InputError(
            "RUN.MEMORY_LIMIT_MIB is 0, but this system does not say how much memory is free (/proc/meminfo); set it "
            "to what RUN.AUTO_BATCH_SIZE may plan with, in MiB for each process"
        )
    return own_bytes + int(CPU_SHARE * available / processes)


def available_cpu_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can be taken without swapping, and without passing the limit of a control group (as of a Slurm job).

    Args:
        root: where `proc` and `sys` are.

    Returns:
        None where the system does not say (it is no Linux).
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
    return max(0, min([1024 * kib, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> list[int]:
    """What each control group of this process, and each that it lies in, leaves; empty where nothing is limited."""
    try:
        entries = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for entry in entries:
        number, controllers, path = entry.split(":", 2)
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        mount, limit_name, use_name = _GROUP_FILES[version]
        top = root / "sys/fs/cgroup" / mount
        inner = top / path.lstrip("/")
        # In a container the path is that of the host, and the group itself stands at the top.
        for group in (inner, *(parent for parent in inner.parents if parent.is_relative_to(top))):
            left += _left(group, limit_name, use_name)
    return left


def _left(group: Path, limit_name: str, use_name: str) -> list[int]:
    try:
        limit = (group / limit_name).read_text(encoding="ascii").strip()
        used = int((group / use_name).read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):
        return []
    # Cached pages of files count as used, but go when memory is asked for.
    cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    return [] if limit == "max" else [int(limit) - used + cached]
