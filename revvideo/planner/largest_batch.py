"""The largest batch whose plan fits into a memory, with few plans: memory is nearly affine in the batch."""

from collections.abc import Callable

from revvideo.planner.plan import TrainingPlan

GIB = 2**30
# What a process takes on a GPU beside its tensors. Measured sizes differ by GPU and version; these leave room.
CUDA_CONTEXT_BYTES = GIB // 2  # driver, loaded kernels
CUDA_WORKSPACE_BYTES = GIB // 2  # cuBLAS, cuDNN and attention kernels, while they run
CUDA_FRAGMENTATION = 0.04  # of the whole: gaps between blocks of the caching allocator
GROWTH = 16  # no batch is planned that is more times what is known to fit: a line through few clips can be far too flat


class TooLittleMemory(ValueError):
    """Not even a batch of one clip fits; `plan` is that of one clip."""

    def __init__(self, plan: TrainingPlan, budget: int):
        super().__init__(f"a batch of 1 takes {plan.total} bytes of tensors; {budget} are there")
        self.plan = plan


def usable_gpu_bytes(gpu_gib: float) -> int:
    """Bytes for tensors on a GPU with `gpu_gib` GiB; the rest is set aside by the constants above."""
    return int(gpu_gib * GIB * (1 - CUDA_FRAGMENTATION)) - CUDA_CONTEXT_BYTES - CUDA_WORKSPACE_BYTES


def largest_batch(plan_batch: Callable[[int], TrainingPlan], budget: int, *, guess: int = 2) -> TrainingPlan:
    """The plan of the largest batch whose `total` is at most `budget` bytes; one clip more was planned, and is not.

    Args:
        plan_batch: plans a batch.
        budget: bytes.
        guess: where to look first, for instance the answer for a similar question.

    Raises:
        TooLittleMemory: a batch of one clip does not fit.
    """
    fits = plan_batch(1)
    if fits.total > budget:
        raise TooLittleMemory(fits, budget)
    too_large: TrainingPlan | None = None
    batch, gap = max(2, guess), float("inf")
    while gap > 1:
        plan = plan_batch(batch)
        per_clip = max(1.0, (plan.total - fits.total) / (plan.batch_size - fits.batch_size))
        if plan.total > budget:
            too_large = plan
        else:
            fits = plan
        batch = fits.batch_size + int((budget - fits.total) / per_clip)  # where the line through both meets the budget
        batch = min(max(batch, fits.batch_size + 1), GROWTH * fits.batch_size)
        if too_large is not None:
            before, gap = gap, too_large.batch_size - fits.batch_size
            bent = gap > before / 2  # no line at all: halve
            batch = fits.batch_size + gap // 2 if bent else min(batch, too_large.batch_size - 1)
    return fits
