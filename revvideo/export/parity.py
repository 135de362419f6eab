"""Whether an exported file gives the model's own logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 1e-4  # of the largest logit; float32 kernels of other libraries differ by some 1e-6


@dataclass(frozen=True)
class Parity:
    """The comparison of two sets of logits of the same clips.

    Attributes:
        difference: the largest absolute difference of two logits.
        magnitude: the largest absolute logit of the model.
        num_clips: how many were compared.
    """

    difference: float
    magnitude: float
    num_clips: int

    @property
    def relative(self) -> float:
        """The difference over the magnitude; NaN where a logit is none, or all are 0."""
        return self.difference / self.magnitude if self.magnitude else float("nan")

    @property
    def holds(self) -> bool:
        """Whether the difference is at most `LIMIT` x the magnitude; never with NaN."""
        return self.difference <= LIMIT * self.magnitude

    def __str__(self) -> str:
        return (
            f"largest difference of logits {self.difference:.2e} = {self.relative:.2e} of the largest logit "
            f"({self.magnitude:.4g}) on {self.num_clips} clips; limit {LIMIT:.0e}"
        )


def compare(actual: Tensor, expected: Tensor) -> Parity:
    """Compare the logits of a file with the model's, both `(N, K)`."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    actual, expected = actual.double(), expected.double()
    return Parity((actual - expected).abs().max().item(), expected.abs().max().item(), len(expected))


def batches(num_clips: int, batch_size: int | None) -> list[range]:
    """The clips of each batch: of `batch_size`, or, where any size goes, of different sizes from 1 on."""
    sizes = [batch_size] * num_clips if batch_size else range(1, num_clips + 1)
    found: list[range] = []
    for size in sizes:
        first = found[-1].stop if found else 0
        if first < num_clips:
            found.append(range(first, min(first + size, num_clips)))
    return found


def logits(run: Callable[[Tensor], Tensor], clips: Tensor, parts: Sequence[range], batch_size: int | None) -> Tensor:
    """Logits `(N, K)` of clips `(N, ...)`, computed in batches.

    Args:
        run: clips of a batch to logits.
        clips: float32.
        parts: the clips of each batch.
        batch_size: that every batch is filled up to, with zeros whose logits are dropped; None: as they are.
    """
    rows = []
    for part in parts:
        batch = clips[part.start : part.stop]
        if batch_size is not None:
            batch = torch.cat([batch, batch.new_zeros(batch_size - len(part), *batch.shape[1:])])
        rows.append(run(batch)[: len(part)])
    return torch.cat(rows)
