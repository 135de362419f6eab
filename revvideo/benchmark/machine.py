"""What a measurement was taken on: the facts without which a figure means nothing."""

import datetime
import os
import platform
from pathlib import Path

import torch

import revvideo

# Instructions that multiply bfloat16 matrices, as /proc/cpuinfo names them; without them bfloat16 is slow on a CPU.
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def describe_machine(device: torch.device) -> dict:
    """Hardware, software, threads and time, ready for JSON.

    Args:
        device: what the work runs on.
    """
    facts = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "revvideo": revvideo.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device.type,
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cpu_cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bfloat16": [
            flag for flag in BFLOAT16_FLAGS if flag in (_cpu_field("flags") or _cpu_field("Features")).split()
        ],
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),  # of the last minute: other work on the cores
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def name_hardware(facts: dict) -> str:
    """`describe_machine` in a line."""
    cpu = f"{facts['cpu']}, {facts['cpu_cores']} cores, {facts['cpu_capability']}"
    if "gpu" in facts:
        return f"{facts['gpu']}, {facts['gpu_memory_gib']} GiB, CUDA {facts['cuda']} (CPU: {cpu})"
    return f"{cpu}, bfloat16 by {' and '.join(facts['cpu_bfloat16']) or 'no instruction of its own'}"


def _cpu_field(name: str) -> str:
    """The value of the first line called `name` in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")
