"""Depthwise pooling on the CPU by a kernel of our own (`csrc/depthwise_pooling.cpp`), float32 and bfloat16.

The system's C++ compiler builds it once for each machine, in about three seconds. `load_library` says where the result
is kept and how it is told from a broken or a foreign one.
"""

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from revvideo.models.taps_pooling import as_tokens

SOURCE = Path(__file__).parent / "csrc" / "depthwise_pooling.cpp"
COMPILERS = ("g++", "clang++", "c++")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
COMPILE_SECONDS = 120


class BuildError(RuntimeError):
    """The kernel cannot be built or loaded here; the message says why in one line."""


class _Geometry(ctypes.Structure):
    """The mirror of `Geometry` in the source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "kernels")),
        *((name, ctypes.c_int64 * 3) for name in ("volume", "pooled", "kernel", "stride", "padding")),
        *((name, ctypes.c_int64 * 4) for name in ("volume_strides", "pooled_strides")),
        ("threads", ctypes.c_int64),
    )


def pool(volume: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """As `taps_pooling.pool`."""
    volume = as_tokens(volume)  # (B, T, H, W, D)
    kernel = weight.shape[2:]
    sizes = zip(volume.shape[1:4], kernel, stride, padding)
    pooled = volume.new_empty(len(volume), *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes), volume.shape[-1])
    geometry = _geometry(volume, pooled, len(weight), kernel, stride, padding)
    _call("pool", volume.dtype, geometry, volume, _taps(weight), pooled)
    return pooled.permute(0, 4, 1, 2, 3)  # (B, D, T', H', W')


def input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """As `taps_pooling.input_gradient`."""
    grad = as_tokens(grad)  # (B, T', H', W', D)
    batch, channels, *grid = size
    result = grad.new_empty(batch, *grid, channels)
    geometry = _geometry(result, grad, len(weight), weight.shape[2:], stride, padding)
    _call("input_gradient", grad.dtype, geometry, grad, _taps(weight), result)
    return result.permute(0, 4, 1, 2, 3)  # (B, D, T, H, W)


def weight_gradient(
    grad: Tensor, volume: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """As `taps_pooling.weight_gradient`."""
    grad, volume = as_tokens(grad), as_tokens(volume)
    kernels, _, *kernel = size
    geometry = _geometry(volume, grad, kernels, kernel, stride, padding)
    parts = max(1, min(geometry.threads, grad.shape[:3].numel()))  # rows are shared out among them
    taps, channels = kernel[0] * kernel[1] * kernel[2], grad.shape[-1]
    products = torch.zeros(parts, taps, channels)
    _call("weight_gradient", grad.dtype, geometry, grad, volume, products, ctypes.c_int64(parts))
    by_head = products.view(parts, taps, -1, kernels)  # (parts, taps, M, d)
    return by_head.sum((0, 2)).t().contiguous().view(*size)  # (d, 1, kt, kh, kw)


def _taps(weight: Tensor) -> Tensor:
    """(d, 1, kt, kh, kw) as float32 (taps, d)."""
    return weight.float().flatten(1).t().contiguous()


def _geometry(
    volume: Tensor, pooled: Tensor, kernels: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> _Geometry:
    """Sizes and strides of the tokens ``volume`` (B, T, H, W, D) and ``pooled`` (B, T', H', W', D)."""
    integers, strides = ctypes.c_int64 * 3, ctypes.c_int64 * 4
    return _Geometry(
        len(volume),
        volume.shape[-1],
        kernels,
        *(integers(*three) for three in (volume.shape[1:4], pooled.shape[1:4], kernel, stride, padding)),
        *(strides(*tokens.stride()[:4]) for tokens in (volume, pooled)),
        torch.get_num_threads(),
    )


def _call(name: str, dtype: torch.dtype, geometry: _Geometry, *arguments: Tensor | ctypes.c_int64) -> None:
    pointers = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments]
    function = getattr(library(), f"{name}_{DTYPES[dtype]}")
    function.restype = None
    function(ctypes.byref(geometry), *pointers)


@functools.cache
def library() -> ctypes.CDLL:
    """The kernel in its usual place, the folder ``.cache/revvideo`` of the home; loaded once.

    Raises:
        BuildError: it cannot be built or loaded here.
    """
    try:
        folder = Path.home() / ".cache" / "revvideo"
    except RuntimeError as error:
        raise BuildError(f"there is no home folder to keep it in: {error}") from error
    return load_library(folder)


def load_library(folder: Path, compilers: Sequence[str] = COMPILERS) -> ctypes.CDLL:
    """Load the kernel from ``folder``; build it first where no sound one is there for this source and machine.

    The file's name holds a hash of what it is made of (source, compiler, processor, flags) and one of its content. So a
    damaged file, or one made for another processor of a cluster that shares the folder, is never loaded, and processes
    that build at the same time replace one whole file by another.

    Raises:
        BuildError: no compiler, an error of the compiler, or a folder that cannot be written to or loaded from.
    """
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise BuildError(f"there is no C++ compiler ({', '.join(compilers)})")
    try:
        source = SOURCE.read_bytes()
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
        made_of = (source, version, _processor().encode(), repr(_flags()).encode())
        key = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.glob(f"depthwise_pooling-{key}-*.so"):
            with contextlib.suppress(FileNotFoundError):  # damaged, and another process was quicker to remove it
                if path.name == _name(key, path.read_bytes()):
                    return ctypes.CDLL(str(path))
                path.unlink()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = _build(compiler, Path(scratch))
            path = folder / _name(key, built.read_bytes())
            os.replace(built, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(" ".join(str(error).split())) from error


def _name(key: str, content: bytes) -> str:
    return f"depthwise_pooling-{key}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def _build(compiler: str, scratch: Path) -> Path:
    """Compile and link with the first flags that work; the error, if none do, is that of the last, plainest ones."""
    compiled, linked = scratch / "kernel.o", scratch / "kernel.so"
    for compile_flags, link_flags in _flags():
        for arguments in (
            [*compile_flags, "-c", str(SOURCE), "-o", str(compiled)],
            [str(compiled), "-shared", *link_flags, "-o", str(linked)],
        ):
            done = subprocess.run([compiler, *arguments], capture_output=True, text=True, timeout=COMPILE_SECONDS)
            if done.returncode:
                break
        else:
            return linked
    said = " ".join(done.stderr.split())[:500]
    raise BuildError(f"{compiler} failed with exit code {done.returncode}: {said}")


def _flags() -> list[tuple[list[str], list[str]]]:
    """Flags of compiling and of linking, the best first.

    The threads are those of torch: linked is the OpenMP that lies beside torch, so that no second one is loaded. Where
    none does, or where the compiler wants another one, it is the compiler's; last, one thread.
    """
    common = ["-std=c++17", "-O3", "-fPIC"]
    openmp = ["-fopenmp"] if sys.platform == "linux" else ["-Xpreprocessor", "-fopenmp"]
    whole = ["-Wl,-z,defs"] if sys.platform == "linux" else []  # missing symbols are errors of the linker
    beside_torch = sorted(map(str, (Path(torch.__file__).parent / "lib").glob("lib*omp*")))[:1]
    threads = [(openmp, beside_torch)] * bool(beside_torch) + [(openmp, ["-fopenmp"]), ([], [])]
    processor = (["-march=native"], [])
    return [([*common, *p, *c], [*whole, *link]) for (c, link), p in itertools.product(threads, processor)]


def _processor() -> str:
    """What this processor can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(told)])
