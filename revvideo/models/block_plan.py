"""The blocks of a network, from PySlowFast's lists: widths, heads, pooling and drop path of each."""

import dataclasses
import math
from collections.abc import Sequence

from revvideo.models.pooling_attention import AttentionOptions, Grid, PoolingAttention


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One transformer block: widths in and out, heads, pooling of q and of k and v, drop-path rate."""

    dim: int
    dim_out: int
    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    q_kernel: Grid
    kv_kernel: Grid
    q_stride: Grid
    kv_stride: Grid
    drop_path: float

    @property
    def pools_queries(self) -> bool:
        return math.prod(self.q_stride) > 1

    def attention(
        self, dim_out: int, *, grid: Grid, class_token: bool, dropout: float, options: AttentionOptions
    ) -> PoolingAttention:
        """The attention of this block, with output width ``dim_out``, for tokens of ``grid``."""
        return PoolingAttention(
            self.dim,
            dim_out,
            num_heads=self.num_heads,
            grid=grid,
            q_kernel=self.q_kernel,
            kv_kernel=self.kv_kernel,
            q_stride=self.q_stride,
            kv_stride=self.kv_stride,
            qkv_bias=self.qkv_bias,
            class_token=class_token,
            dropout=dropout,
            options=options,
        )


def plan_blocks(
    *,
    depth: int,
    embed_dim: int,
    num_heads: int,
    dim_mul: Sequence[Sequence[float]] = (),
    head_mul: Sequence[Sequence[float]] = (),
    pool_q_stride: Sequence[Sequence[int]] = (),
    pool_kv_stride: Sequence[Sequence[int]] = (),
    pool_kv_stride_adaptive: Sequence[int] | None = None,
    pool_kvq_kernel: Sequence[int] | None = None,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    drop_path: float = 0.0,
    widen_in_attention: bool = False,
    reversible: bool = False,
) -> list[BlockSpec]:
    """The blocks that PySlowFast's lists describe.

    ``dim_mul`` and ``head_mul`` hold ``[block, factor]``, the strides ``[block, t, h, w]``. The width changes in the
    attention of the listed block (``widen_in_attention``: MVIT.DIM_MUL_IN_ATT, and reversible models) or in the MLP of
    the block before it. ``pool_kv_stride_adaptive`` is divided by each q stride on the way. A width is rounded to
    a multiple of the heads times their factor at this block (``widen_in_attention``) or at the next one (otherwise, and
    for ``reversible`` networks), as in PySlowFast.

    Raises:
        ValueError: a list names a block that does not exist, or block 0 where nothing widens before it; or both kv
            strides are given; or a drop-path rate outside [0, 1).
    """
    lists = {"DIM_MUL": dim_mul, "HEAD_MUL": head_mul, "POOL_Q_STRIDE": pool_q_stride, "POOL_KV_STRIDE": pool_kv_stride}
    for name, entries in lists.items():
        if any(not 0 <= entry[0] < depth for entry in entries):
            raise ValueError(f"MVIT.{name} {list(entries)} names a block outside 0..{depth - 1} (MVIT.DEPTH {depth})")
    if not widen_in_attention and any(entry[0] == 0 for entry in dim_mul):
        raise ValueError(
            f"MVIT.DIM_MUL {list(dim_mul)} widens at block 0, but the width grows in the MLP of the block before; "
            "expected blocks from 1 on, or MVIT.DIM_MUL_IN_ATT True"
        )
    if not 0.0 <= drop_path < 1.0:
        raise ValueError(f"drop_path is {drop_path}; expected a probability from 0 to below 1 (MVIT.DROPPATH_RATE)")
    if pool_kv_stride and pool_kv_stride_adaptive:
        raise ValueError("MVIT.POOL_KV_STRIDE and MVIT.POOL_KV_STRIDE_ADAPTIVE are both given; keep one")
    one = (1, 1, 1)
    width_factor, head_factor = {int(b): f for b, f in dim_mul}, {int(b): f for b, f in head_mul}
    q_strides = {entry[0]: tuple(entry[1:]) for entry in pool_q_stride}
    kv_strides = {entry[0]: tuple(entry[1:]) for entry in pool_kv_stride}
    adaptive = tuple(pool_kv_stride_adaptive) if pool_kv_stride_adaptive else None
    full = tuple(pool_kvq_kernel) if pool_kvq_kernel else None

    def kernel(stride: Grid) -> Grid:
        return full or tuple(s + 1 if s > 1 else s for s in stride)

    blocks, dim, heads = [], embed_dim, num_heads
    for i in range(depth):
        heads = round_width(heads, head_factor.get(i, 1.0))
        widening = i if widen_in_attention else i + 1
        divisor = round_width(heads, head_factor.get(i if widen_in_attention and not reversible else i + 1, 1.0))
        dim_out = round_width(dim, width_factor.get(widening, 1.0), divisor=divisor)
        q_stride = q_strides.get(i, one)
        if adaptive is not None:
            adaptive = tuple(max(kv // q, 1) for kv, q in zip(adaptive, q_stride, strict=True))
        kv_stride = adaptive if adaptive is not None else kv_strides.get(i, one)
        has_kv_pool = adaptive is not None or i in kv_strides
        blocks.append(
            BlockSpec(
                dim=dim,
                dim_out=dim_out,
                num_heads=heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                q_kernel=kernel(q_stride) if i in q_strides else one,
                kv_kernel=kernel(kv_stride) if has_kv_pool else one,
                q_stride=q_stride,
                kv_stride=kv_stride,
                drop_path=drop_path * i / max(depth - 1, 1),
            )
        )
        dim = dim_out
    return blocks


def round_width(width: int, factor: float, *, divisor: int = 1, minimum: int = 1) -> int:
    """``width * factor`` to the nearest multiple of ``divisor`` (half up), never more than 10 % below it."""
    target = width * factor
    rounded = max(minimum, int(target + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * target else rounded)


def stage_ends(blocks: Sequence[BlockSpec]) -> list[int]:
    """The last block of each stage; a stage begins with a block that pools its queries."""
    return [i - 1 for i in range(1, len(blocks)) if blocks[i].pools_queries] + [len(blocks) - 1]


def nominal_grids(blocks: Sequence[BlockSpec], grid: Grid) -> list[Grid]:
    """The grid before each block, by floor division: what official tables of relative positions are made for."""
    grids = []
    for spec in blocks:
        grids.append(grid)
        grid = tuple(n // s for n, s in zip(grid, spec.q_stride, strict=True))
    return grids
