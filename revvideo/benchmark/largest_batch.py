"""The largest batch of a training step that fits into memory."""

import contextlib
import dataclasses
import gc
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import nn

from revvideo.torch_file import first_line

CEILING = 2**16  # no search goes beyond


class DoesNotFit(RuntimeError):
    """A batch that is too large; the message says what stopped it."""


@dataclasses.dataclass(frozen=True)
class LargestBatch:
    """Answer of a search.

    Attributes:
        batch_size: the largest batch that was measured and fits; 0: not even one clip does.
        total_bytes: memory of a step at `batch_size`: parameters, gradients, clips and activations; no optimizer.
        too_large: the smallest batch that is known, or predicted, not to fit; None: the search ended at its ceiling.
        reason: why `too_large` does not fit.
        measured: total bytes of every batch that was measured and runs.
    """

    batch_size: int
    total_bytes: int
    too_large: int | None
    reason: str
    measured: dict[int, int]


def search_by_trial(attempt: Callable[[int], int], *, ceiling: int = CEILING) -> LargestBatch:
    """Doubling until a batch does not fit, then bisection, to 2 % of the answer (to one clip below 100).

    Args:
        attempt: runs a step of a batch and returns its total bytes.
            Raises:
                DoesNotFit: the batch is too large.
        ceiling: largest batch that is tried.
    """
    measured: dict[int, int] = {}
    fits, too_large, reason = 0, None, f"the search ends at {ceiling}"
    while fits < ceiling and (too_large is None or too_large - fits > max(1, fits // 50)):
        batch = min(max(1, 2 * fits), ceiling) if too_large is None else (fits + too_large) // 2
        try:
            measured[batch] = attempt(batch)
            fits = batch
        except DoesNotFit as error:
            too_large, reason = batch, str(error)
    return LargestBatch(fits, measured.get(fits, 0), too_large, reason, measured)


def search_by_extrapolation(
    total_bytes: Callable[[int], int], limit_bytes: int, *, ceiling: int = CEILING
) -> LargestBatch:
    """Batches 1 and 2 are measured, then always the one where the line through the two largest meets the limit.

    The answer has been measured; the batch above it has been too, or is beyond the limit by that line. No guess is more
    than four times what is known to fit: a line through few clips can be far too flat, and a batch beyond the memory of
    the machine would make it swap.

    Args:
        total_bytes: memory of a step of a batch, measured.
        limit_bytes: what there is.
        ceiling: largest batch that is considered.
    """
    measured = {batch: total_bytes(batch) for batch in (1, 2)}
    while True:
        fitting = [batch for batch, size in measured.items() if size <= limit_bytes]
        fits = max(fitting, default=0)
        too_large = min((batch for batch in measured if batch not in fitting), default=None)
        x = sorted(measured)[-2:]
        slope, start = statistics.linear_regression(x, [measured[batch] for batch in x])
        guess = int((limit_bytes - start) // slope) if slope > 0 else ceiling
        guess = min(guess, max(1, 4 * fits), ceiling if too_large is None else too_large - 1)
        if guess <= fits:
            break
        measured[guess] = total_bytes(guess)
    if fits == ceiling:
        return LargestBatch(fits, measured[fits], None, f"the search ends at {ceiling}", measured)
    how = "measured" if fits + 1 in measured else "predicted"
    next_bytes = measured.get(fits + 1, round(start + slope * (fits + 1)))
    reason = f"{next_bytes / 2**20:.1f} MiB {how}, of {limit_bytes / 2**20:.1f}"
    return LargestBatch(fits, measured.get(fits, 0), fits + 1, reason, measured)


def state_bytes(model: nn.Module) -> int:
    """Parameters, their gradients and buffers."""
    parameters = sum(p.nbytes * (2 if p.requires_grad else 1) for p in model.parameters())
    return parameters + sum(buffer.nbytes for buffer in model.buffers())


@contextlib.contextmanager
def cuda_memory_limit(limit_bytes: int | None, device: torch.device) -> Iterator[None]:
    """Let the CUDA allocator of this process take no more than `limit_bytes` (None: all) for a while."""
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    gc.collect()  # networks that were measured before are in reference cycles
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0 if limit_bytes is None else min(1.0, limit_bytes / total), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def attempt_on_cuda(make_step: Callable[[int], object], model: nn.Module, device: torch.device, batch: int) -> int:
    """Two steps of a batch, the second with gradients allocated; returns the allocator's peak in bytes.

    Args:
        make_step: batch size -> `TrainingStep` of `model`.

    Raises:
        DoesNotFit: out of memory, or an operator refuses tensors of such a size.
    """
    torch.cuda.reset_peak_memory_stats(device)
    reason = None
    try:
        step = make_step(batch)
        for _ in range(2):
            step.run()
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        reason = "out of memory"
    except RuntimeError as error:  # such as more elements than a kernel can index; a broken context fails again below
        reason = first_line(error)
    # Only here are the frames of the failed step gone, and with them its tensors.
    step = None
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    if reason is not None:
        raise DoesNotFit(reason)
    return torch.cuda.max_memory_allocated(device)
