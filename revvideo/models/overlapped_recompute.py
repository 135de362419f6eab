"""PaReprop (Zhu and Mangalam 2023, "PaReprop: Fast Parallelized Reversible Backpropagation").

The backward of a half-step needs two things: the branch, computed again from the rebuilt stream, and the gradient
through it. The first of half-step t - 1 depends on what half-step t has *rebuilt*, not on its gradient; so it is
launched on another CUDA stream while the gradient of half-step t runs. Odd and even half-steps take turns on the two
streams.
"""

import contextlib
import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from revvideo.models.branch_call import BranchCall, Replayed, times

logger = logging.getLogger(__name__)


def can_overlap(device: torch.device) -> bool:
    """Whether a device has streams; where it has none, one log line says that the backward is serial."""
    if device.type != "cuda":
        _tell_serial(device.type)
    return device.type == "cuda"


@functools.cache
def _tell_serial(kind: str) -> None:
    logger.info("REV.PARALLEL has no effect on a %s: recomputation and gradients run one after the other", kind)


@functools.cache
def _side_stream(device: torch.device) -> "torch.cuda.Stream":
    """One for each device: the allocator keeps memory apart by streams."""
    return torch.cuda.Stream(device)


class OverlappedRecompute:
    """The backward of the half-steps of one forward call, each with the recomputation of the next one beside it.

    Args:
        side: the second stream; made on the first use on a CUDA device, where none is given.
    """

    def __init__(self, side: "torch.cuda.Stream | None" = None) -> None:
        self._calls: dict[int, tuple[BranchCall, Sequence[Tensor]]] = {}
        self._starts: set[int] = set()
        self._ready: dict[int, Replayed] = {}
        self._side = side

    def note(self, time: int, call: BranchCall, parameters: Sequence[Tensor]) -> None:
        """In the forward: the call of half-step ``time``."""
        self._calls[time] = (call, parameters)

    def starts_at(self, time: int) -> None:
        """In the forward: the streams after half-step ``time`` are kept, so it and the next one wait for these."""
        self._starts |= {time, time + 1}

    def pull_back(
        self,
        time: int,
        call: BranchCall,
        x: Tensor,
        parameters: Sequence[Tensor],
        grad: Tensor | None,
        mask: Tensor | None,
        *,
        needs_grad: Sequence[bool],
        subtract: tuple[Tensor, Tensor] | None,
    ) -> list[Tensor | None]:
        """As `BranchCall.pull_back`, for half-step ``time``; launches the recomputation of ``time - 1``."""
        main = torch.cuda.current_stream(x.device) if x.is_cuda else None
        if main is not None and self._side is None:
            self._side = _side_stream(x.device)
        mine, other = (main, self._side) if time % 2 else (self._side, main)
        replayed = self._ready.pop(time, None)
        if replayed is None:
            replayed = self._replay(call, x, parameters, mine, needs_grad)
        _wait(main, mine)
        if subtract is not None:
            result, out = subtract
            with torch.cuda.stream(mine) if mine is not None else contextlib.nullcontext():
                value = _used_on(main, replayed.take_value())  # on its own stream: the gradient passes through here
            torch.sub(result, times(value, mask), out=out)
        masked = None if grad is None else _used_on(mine, times(grad, mask))
        _wait(mine, main)  # before the next recomputation is queued: the gradient does not wait for that
        if subtract is not None and time - 1 in self._calls and time - 1 not in self._starts:
            before, before_parameters = self._calls[time - 1]
            needs = [True, *(p.requires_grad for p in before_parameters)]
            self._ready[time - 1] = self._replay(before, subtract[1], before_parameters, other, needs)
        with torch.cuda.stream(mine) if mine is not None else contextlib.nullcontext():
            grads = replayed.gradients(masked)
        _wait(main, mine)
        return [_used_on(main, g) if want else None for g, want in zip(grads, needs_grad, strict=True)]

    def _replay(self, call, x, parameters, stream, needs_grad) -> Replayed:
        if stream is None:
            return call.replay([x], parameters, needs_grad=needs_grad)
        _wait(stream, torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            return call.replay([_used_on(stream, x)], parameters, needs_grad=needs_grad)


def _wait(stream: "torch.cuda.Stream | None", before: "torch.cuda.Stream | None") -> None:
    """What is queued on ``stream`` from now on runs after all that is queued on ``before``."""
    if stream is not None and before is not None and stream != before:
        stream.wait_stream(before)


def _used_on(stream: "torch.cuda.Stream | None", x: Tensor | None) -> Tensor | None:
    """Tells the allocator that the memory of ``x`` is in use on another stream, too."""
    if stream is not None and x is not None:
        x.record_stream(stream)
    return x
