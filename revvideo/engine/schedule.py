"""The learning rate at a moment of training: PySlowFast's `cosine` and `steps_with_relative_lrs` with linear warm-up.

A pure function of numbers, called before every step with `epoch_exact = epoch + step / steps_per_epoch`.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from revvideo.errors import InputError

POLICIES = ("cosine", "steps_with_relative_lrs")


def learning_rate(
    epoch_exact: float,
    *,
    policy: str = "cosine",
    base_lr: float,
    max_epoch: float,
    end_lr: float = 0.0,
    warmup_epochs: float = 0.0,
    warmup_start_lr: float = 0.0,
    cosine_after_warmup: bool = False,
    steps: Sequence[float] = (),
    relative_lrs: Sequence[float] = (),
) -> float:
    """The learning rate at `epoch_exact`, before the multipliers of the parameter groups (layer decay).

    cosine: `end + (base - end) * (1 + cos(pi * (e - o) / (max_epoch - o))) / 2`, where `o` is `warmup_epochs` if
    `cosine_after_warmup`, else 0 (the cosine then runs, unseen, during the warm-up).
    steps_with_relative_lrs: `base * relative_lrs[i]` with i the last step that is not after `e`.
    Warm-up: for `e < warmup_epochs`, linear from `warmup_start_lr` to the policy's value at `warmup_epochs`.

    Args:
        epoch_exact: epochs done, with fraction.
        policy: one of `POLICIES` (SOLVER.LR_POLICY).
        base_lr: peak rate, after scaling with the number of machines (so are `end_lr` and `warmup_start_lr`).
        max_epoch: length of the training in epochs.
        end_lr: where the cosine ends (SOLVER.COSINE_END_LR).
        warmup_epochs: length of the warm-up in epochs; 0 for none.
        warmup_start_lr: where the warm-up starts.
        cosine_after_warmup: whether the cosine starts at the end of the warm-up.
        steps: epochs at which the factor changes, ascending, the first one 0 (SOLVER.STEPS).
        relative_lrs: the factor from each of `steps` on (SOLVER.LRS).

    Raises:
        InputError: unknown policy, or numbers that make no schedule.

    Source: PySlowFast, slowfast/utils/lr_policy.py.
    """

    def value(epoch: float) -> float:
        if policy == "cosine":
            offset = warmup_epochs if cosine_after_warmup else 0.0
            return _cosine(epoch - offset, max_epoch - offset, base_lr, end_lr)
        if policy == "steps_with_relative_lrs":
            return base_lr * _factor(epoch, steps, relative_lrs)
        raise InputError(f"SOLVER.LR_POLICY is {policy!r}; known: {', '.join(POLICIES)}")

    if epoch_exact < warmup_epochs:
        slope = (value(warmup_epochs) - warmup_start_lr) / warmup_epochs
        return epoch_exact * slope + warmup_start_lr
    return value(epoch_exact)


def _cosine(epoch: float, length: float, base_lr: float, end_lr: float) -> float:
    """Half a cosine from `base_lr` at 0 to `end_lr` at `length`."""
    if end_lr > base_lr:
        raise InputError(f"SOLVER.COSINE_END_LR {end_lr:g} is above SOLVER.BASE_LR {base_lr:g}: a cosine goes down")
    if length <= 0:  # the warm-up fills the whole training
        return base_lr
    return end_lr + (base_lr - end_lr) * (math.cos(math.pi * epoch / length) + 1.0) * 0.5


def _factor(epoch: float, steps: Sequence[float], relative_lrs: Sequence[float]) -> float:
    """The entry of `relative_lrs` for the last step that is not after `epoch`."""
    if not steps or len(steps) != len(relative_lrs):
        raise InputError(
            f"steps_with_relative_lrs needs one SOLVER.LRS for each of SOLVER.STEPS; "
            f"got {len(relative_lrs)} for {len(steps)}"
        )
    # PySlowFast takes the *last* factor before a first step other than 0; we refuse it.
    if steps[0] != 0 or any(later <= earlier for earlier, later in pairwise(steps)):
        raise InputError(f"SOLVER.STEPS must start with 0 and ascend; got {list(steps)}")
    return relative_lrs[sum(step <= epoch for step in steps) - 1]
