"""The peer of `PoolingAttention` in benchmarks: attention as most code bases write it, with every score kept.

Scores, the bias of the relative positions added to them, softmax, product with the values: four tensors of the size
(queries x keys). Same numbers, more memory and time.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from revvideo.models.pooling_attention import Grid, PoolingAttention
from revvideo.models.relative_positions import relative_rows


def explicit_attend(self: PoolingAttention, q: Tensor, k: Tensor, v: Tensor, grid: Grid, key_grid: Grid) -> Tensor:
    """As `PoolingAttention._attend`: q, k, v (B, N', D) to (B, N', D)."""
    q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # each (B, M, N', d)
    scores = (q * self.head_dim**-0.5) @ k.transpose(2, 3)  # (B, M, N', N'')
    bias = _bias(self, q, grid, key_grid)
    if bias is not None:
        first = int(self.class_token)
        scores[:, :, first:, first:] += bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)  # (B, N', D)


def _bias(attention: PoolingAttention, q: Tensor, grid: Grid, key_grid: Grid) -> Tensor | None:
    """Relative positions of every query and key but the class token, (B, M, THW, T'H'W')."""
    tables = (attention.rel_pos_t, attention.rel_pos_h, attention.rel_pos_w)
    axes = ("bmthwc,tkc->bmthwk", "bmthwc,hkc->bmthwk", "bmthwc,wkc->bmthwk")
    volume = q[:, :, int(attention.class_token) :].unflatten(2, grid)  # (B, M, T, H, W, d)
    bias = None
    for axis, (equation, table) in enumerate(zip(axes, tables, strict=True)):
        if table is None:
            continue
        term = torch.einsum(equation, volume, relative_rows(table, grid[axis], key_grid[axis]))
        term = term.view(*term.shape[:-1], *(size if a == axis else 1 for a, size in enumerate(key_grid)))
        bias = term if bias is None else bias + term  # (B, M, T, H, W, T', H', W')
    return None if bias is None else bias.flatten(2, 4).flatten(3)


@contextlib.contextmanager
def explicit_attention() -> Iterator[None]:
    """Every `PoolingAttention` keeps its scores for a while."""
    fused, PoolingAttention._attend = PoolingAttention._attend, explicit_attend
    try:
        yield
    finally:
        PoolingAttention._attend = fused
