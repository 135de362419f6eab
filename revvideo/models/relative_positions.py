"""Decomposed relative positions (Li et al. 2022, "MViTv2", equation 4), without a bias of the size of the scores.

The score of query i and key j gets ``q_i . (R^t[d_t(i, j)] + R^h[d_h(i, j)] + R^w[d_w(i, j)])``. Along each axis that
is a number for each query and each coordinate of the keys, so it is a dot product as well: the query is extended by
these numbers, the key by its coordinates as one-hot vectors. Attention then runs on slightly wider queries and keys,
and nothing of the size (queries x keys) is ever kept.

B batch, M heads, d head width, (T, H, W) the grid of the queries, (T', H', W') that of the keys.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from revvideo.models.resize_positions import Grid


def relative_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """The rows of a table for every pair of coordinates along one axis: ``(L, d) -> (queries, keys, d)``.

    The coarser axis is stretched to the finer one; the distance is truncated to a whole number. A table of another
    length than ``2 max(queries, keys) - 1`` is interpolated linearly: the official tables are made for sizes halved by
    floor division, while a strided convolution halves odd sizes by rounding up (MViTv2-L: 39 -> 20, table for 19).
    """
    length = 2 * max(queries, keys) - 1
    if table.shape[0] != length:
        table = F.interpolate(table.t().unsqueeze(0), size=length, mode="linear")[0].t()
    to_query, to_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
    distance = (
        torch.arange(queries, device=table.device)[:, None] * to_query
        - torch.arange(keys, device=table.device)[None, :] * to_key
        + (keys - 1) * to_key
    )
    return table[distance.long()]


def extend_queries(
    q: Tensor, grid: Grid, key_grid: Grid, tables: list[Tensor | None], *, factor: float, width: int
) -> Tensor:
    """What the relative positions add to the scores, for each query and each coordinate of the keys.

    Args:
        q: ``(B, T, H, W, M, d)``, not scaled.
        grid: (T, H, W).
        key_grid: (T', H', W').
        tables: of (T, H, W), each (L, d), or None for an axis without relative positions.
        factor: multiplies the result.
        width: channels of the result, at least the sum of the keys' sizes along the axes that have a table; the
            channels beyond it are zero.

    Returns:
        ``(B, THW, M, width)``.
    """
    axes = ("bthwmc,tkc->bthwmk", "bthwmc,hkc->bthwmk", "bthwmc,wkc->bthwmk")
    terms = [
        torch.einsum(equation, q, (relative_rows(table, queries, keys) * factor).to(q.dtype))
        for equation, table, queries, keys in zip(axes, tables, grid, key_grid, strict=True)
        if table is not None
    ]
    rest = width - sum(term.shape[-1] for term in terms)
    if rest:
        terms.append(q.new_zeros(()).expand(*q.shape[:-1], rest))
    return torch.cat(terms, dim=-1).flatten(1, 3)


def key_coordinates(key_grid: Grid, tables: list[Tensor | None], like: Tensor) -> Tensor:
    """One-hot coordinates of the keys along the axes that have a table: ``(T'H'W', e)``, of the dtype of ``like``."""
    axes = []
    for axis, (size, table) in enumerate(zip(key_grid, tables, strict=True)):
        if table is not None:
            shape = [1, 1, 1, size]
            shape[axis] = size
            axes.append(torch.eye(size, dtype=like.dtype, device=like.device).view(shape).expand(*key_grid, size))
    return torch.cat(axes, dim=-1).flatten(0, 2)
