"""The tokens that a strided pooling reads at all: with a stride above the kernel the others are not needed.

With kernel 3 and stride 8 these are 13 % of the tokens. Keys and values need to be computed for them only; put side by
side they form a smaller grid on which the same kernel with stride 3 gives the same outputs.
"""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

from revvideo.models.resize_positions import Grid

WORTH_IT = 0.8  # above this share of all tokens a gather costs more than it saves


@dataclasses.dataclass(frozen=True)
class TouchedTokens:
    """A pooling of ``whole`` by windows ``kernel``, and the one of ``grid`` that gives the same outputs.

    Args:
        whole: (T, H, W) of all tokens.
        kept: of each axis the indices of the tokens that a window reads; all of them where windows overlap.
        grid: (T, H, W) of the tokens that are read.
        stride, padding: over (T, H, W), of the pooling of ``grid``; its kernel is the same.
    """

    whole: Grid
    kept: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    grid: Grid
    stride: Grid
    padding: Grid

    def index(self, device: torch.device | str | None = None) -> Tensor:
        """Which of all tokens are read, int64 (N'',), ascending."""
        times, rows, columns = (torch.tensor(kept, device=device) for kept in self.kept)
        rows = times[:, None] * self.whole[1] + rows  # (T'', H'')
        return (rows[..., None] * self.whole[2] + columns).flatten()


def touched_tokens(grid: Grid, kernel: Grid, stride: Grid, padding: Grid) -> TouchedTokens | None:
    """What the pooling of tokens of ``grid`` reads; None where that is nearly everything (`WORTH_IT`).

    Args:
        grid, kernel, stride, padding: over (T, H, W).
    """
    axes = [_axis(*numbers) for numbers in zip(grid, kernel, stride, padding, strict=True)]
    kept, strides = tuple(axis for axis, _ in axes), tuple(s for _, s in axes)
    smaller = tuple(len(axis) for axis in kept)
    if math.prod(smaller) > WORTH_IT * math.prod(grid):
        return None
    return TouchedTokens(tuple(grid), kept, smaller, strides, tuple(padding))


def gather_tokens(x: Tensor, touched: TouchedTokens, *, class_token: bool = False) -> Tensor:
    """The tokens of ``touched.grid`` from all tokens, behind the class token: (B, N, D) to (B, N'', D), contiguous.

    The backward writes into one tensor of zeros of the size of ``x``; nothing is kept for it but the indices.
    """
    index = touched.index(x.device)
    return x.index_select(1, functional.pad(index + 1, (1, 0)) if class_token else index)


def _axis(size: int, kernel: int, stride: int, padding: int) -> tuple[tuple[int, ...], int]:
    """The indices that are read along one axis, and the stride of the same windows over them."""
    if stride <= kernel or padding >= kernel:
        return tuple(range(size)), stride
    # Windows do not overlap, so side by side they lie `kernel` apart. What hangs over the front is padding there too.
    starts = range(-padding, size + padding - kernel + 1, stride)
    return tuple(i for start in starts for i in range(start, start + kernel) if 0 <= i < size), kernel
