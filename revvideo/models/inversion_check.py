"""How far the inputs that a reversible network rebuilds in its backward are from the true ones."""

import math

from torch import Tensor


class InversionCheck:
    """The relative errors ``||x - x_rebuilt|| / ||x||`` of the inputs of each reversible block.

    Inputs that are not finite themselves say nothing about the engine and are left out.

    Attributes:
        errors: of ``(block, stream)``, stream 1 or 2; the largest, where a block was called several times.
    """

    def __init__(self) -> None:
        self.errors: dict[tuple[int, int], float] = {}

    def compare(self, block: int, true_x1: Tensor, true_x2: Tensor, x1: Tensor, x2: Tensor) -> None:
        """Compare both streams, of one shape, with what was rebuilt of them."""
        for stream, (true, rebuilt) in enumerate(((true_x1, x1), (true_x2, x2)), start=1):
            true, rebuilt = true.double(), rebuilt.to("cpu").double()
            norm = true.norm().item()
            if not math.isfinite(norm):
                continue
            difference = (true - rebuilt).norm().item()
            error = difference / norm if norm else math.inf if difference else 0.0
            known = self.errors.get((block, stream), 0.0)
            self.errors[block, stream] = error if math.isnan(error) else max(known, error)

    def worst(self) -> tuple[int, int, float] | None:
        """``(block, stream, error)`` of the largest error, NaN before all numbers; None where nothing was compared."""
        if not self.errors:
            return None
        (block, stream), error = max(self.errors.items(), key=lambda item: (math.isnan(item[1]), item[1]))
        return block, stream, error
