"""Whether a reversible model rebuilds its inputs well enough to go on with training."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from revvideo.engine.events import EventLog
from revvideo.errors import CheckFailed


class InversionErrors(Protocol):
    """What a check has found: the relative errors ``||x - x_rebuilt|| / ||x||`` of (block, stream)."""

    errors: Mapping[tuple[int, int], float]


CheckInversion = Callable[[], contextlib.AbstractContextManager[InversionErrors]]


@contextlib.contextmanager
def inversion_checked(check_inversion: CheckInversion, *, step: int, limit: float, events: EventLog) -> Iterator[None]:
    """Around the forward and the backward of a step; writes an event `inversion_check`.

    Args:
        check_inversion: makes the context in which a model compares what it rebuilds.
        step: number of the step, for the event and the message.
        limit: of the error.
        events: the diary.

    Raises:
        CheckFailed: on leaving, an error is above the limit or not a number.
    """
    with check_inversion() as check:
        yield
    errors = dict(sorted(check.errors.items()))
    fields = {"limit": limit, "errors": {f"block {b}, stream {s}": error for (b, s), error in errors.items()}}
    worst = max(errors, key=lambda key: _rank(errors[key]), default=None)
    if worst is not None:
        fields |= {"block": worst[0], "stream": worst[1], "error": errors[worst]}
    events.write("inversion_check", step=step, **fields)
    wrong = [key for key, error in errors.items() if not error <= limit]  # so that NaN is wrong
    if wrong:
        # Rounding is passed on towards the input: it began in the last block that shows it.
        last = max(block for block, _ in wrong)
        block, stream = max((key for key in wrong if key[0] == last), key=lambda key: _rank(errors[key]))
        raise CheckFailed(
            f"at step {step} the inputs of block {block} were not rebuilt well enough: the relative error of stream "
            f"{stream} is {errors[block, stream]:.2e}, the limit {limit:.2e} (REV.CHECK_INVERSION_LIMIT), so the "
            "gradients from there on are not to be trusted; keep the inputs of more blocks (REV.BUFFER_EVERY 1 keeps "
            "those of all) or train with REV.BACKPROP plain"
        )


def _rank(error: float) -> tuple[bool, float]:
    return math.isnan(error), error
