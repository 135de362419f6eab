"""Multi-head pooling attention (Fan et al. 2021, "MViT", section 3.1; Li et al. 2022, "MViTv2", section 3).

B batch, N tokens, D width, M heads, d = D / M. Tokens run over (T, H, W), with the class token, if any, in front.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revvideo.models.depthwise_pooling import OPERATORS
from revvideo.models.project_and_pool import project_and_pool
from revvideo.models.relative_positions import extend_queries, key_coordinates
from revvideo.models.resize_positions import Grid, resize_relative
from revvideo.models.token_pooling import (
    POOL_MODES,
    make_pooling,
    normalise_heads,
    pool_tokens,
    pooled_grid,
    split_token,
)
from revvideo.models.touched_tokens import TouchedTokens, gather_tokens, touched_tokens


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """What all attentions of a network have in common.

    Args:
        pool_mode: ``"conv"``: depthwise convolution of d channels, shared by the heads, and LayerNorm of each head;
            ``"conv_unshared"``: depthwise convolution and LayerNorm over all channels; ``"avg"``, ``"max"``: pooling
            without parameters and without norm.
        pool_first: pool the input three times and project then, instead of projecting first.
        separate_qkv: three linear layers ``q``, ``k``, ``v`` instead of a fused ``qkv``; pool_first implies it.
        residual_pooling: add the pooled queries to the output (MViTv2, equation 5).
        relative_space, relative_time: decomposed relative positions (`relative_positions`).
        relative_zero_init: their tables start at zero instead of a truncated normal of 0.02.
        pooling: how depthwise convolutions are computed, see `depthwise_pool`.

    Raises:
        ValueError: an unknown ``pool_mode`` or ``pooling``.
    """

    pool_mode: str = "conv"
    pool_first: bool = False
    separate_qkv: bool = False
    residual_pooling: bool = False
    relative_space: bool = False
    relative_time: bool = False
    relative_zero_init: bool = False
    pooling: str = "auto"

    def __post_init__(self):
        if self.pool_mode not in POOL_MODES:
            raise ValueError(f"MVIT.MODE is {self.pool_mode!r}; expected one of {', '.join(POOL_MODES)}")
        if self.pooling not in OPERATORS:
            raise ValueError(f"pooling is {self.pooling!r}; expected one of {', '.join(OPERATORS)} (COMPILE.POOLING)")


DEFAULT_ATTENTION = AttentionOptions()


class PoolingAttention(nn.Module):
    """Self-attention whose queries, keys and values are pooled: ``(B, N, dim) -> (B, N', dim_out)``.

    Args:
        dim: width of the input.
        dim_out: width of q, k, v and of the output.
        num_heads: number of heads M; divides ``dim_out`` (with pool_first also ``dim``).
        grid: (T, H, W) that the tables of the relative positions are made for.
        q_kernel, kv_kernel: pooling kernels over (T, H, W).
        q_stride, kv_stride: pooling strides over (T, H, W).
        qkv_bias: whether the projection to q, k and v has a bias.
        class_token: whether token 0 is a class token, which is not pooled and has no relative positions.
        dropout: after the output projection.
        options: see `AttentionOptions`.

    Raises:
        ValueError: a width is not divisible by ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        num_heads: int,
        grid: Grid,
        q_kernel: Grid,
        kv_kernel: Grid,
        q_stride: Grid,
        kv_stride: Grid,
        qkv_bias: bool,
        class_token: bool,
        dropout: float = 0.0,
        options: AttentionOptions = DEFAULT_ATTENTION,
    ):
        super().__init__()
        pooled = dim if options.pool_first else dim_out
        for width in {dim_out, pooled}:
            if width % num_heads:
                raise ValueError(
                    f"attention width {width} is not divisible by {num_heads} heads (MVIT.HEAD_MUL, DIM_MUL)"
                )
        self.num_heads, self.dim_out, self.class_token, self.options = num_heads, dim_out, class_token, options
        self.head_dim = dim_out // num_heads
        if options.pool_first or options.separate_qkv:
            self.q, self.k, self.v = (nn.Linear(dim, dim_out, bias=qkv_bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        self.proj_drop = nn.Dropout(dropout)
        channels = pooled if options.pool_mode == "conv_unshared" else pooled // num_heads
        self.pool_q, self.norm_q = make_pooling(options.pool_mode, channels, q_kernel, q_stride)
        self.pool_k, self.norm_k = make_pooling(options.pool_mode, channels, kv_kernel, kv_stride)
        self.pool_v, self.norm_v = make_pooling(options.pool_mode, channels, kv_kernel, kv_stride)
        self.q_stride, self.kv_stride = q_stride, kv_stride
        self.skip_untouched = True  # False computes all keys and values, as the papers count them
        for axis, length in self._relative_lengths(grid).items():
            table = nn.Parameter(torch.zeros(length, self.head_dim)) if length else None
            if length and not options.relative_zero_init:
                nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(f"rel_pos_{axis}", table)

    def _relative_lengths(self, grid: Grid) -> dict[str, int]:
        """Rows of ``rel_pos_t``, ``rel_pos_h``, ``rel_pos_w``, 0 for none; by floor division, as official ones."""
        time, height, width = (
            size if axis == "t" else max(size // q, size // kv, 1)
            for axis, size, q, kv in zip("thw", grid, self.q_stride, self.kv_stride, strict=True)
        )
        in_time, in_space = self.options.relative_time, self.options.relative_space
        return {"t": in_time * (2 * time - 1), "h": in_space * (2 * height - 1), "w": in_space * (2 * width - 1)}

    def resize_relative_tables(self, grid: Grid) -> None:
        """Interpolate the tables of the relative positions to tokens of another ``grid``."""
        for axis, length in self._relative_lengths(grid).items():
            if length:
                table = getattr(self, f"rel_pos_{axis}")
                table.data = resize_relative(table.data, length)

    def forward(self, x: Tensor, grid: Grid, *, recompute: bool = False) -> Tensor:
        """Attend over the tokens ``x`` (B, N, dim) of ``grid``; returns (B, N', dim_out), see `pooled_grid`.

        With ``recompute`` projections that a convolution pools are computed again in the backward, head by head.
        """
        if self.options.pool_first:
            q = self.q(self._pool(x, grid, self.pool_q, self.norm_q))  # (B, N', dim_out)
            k = self.k(self._pool(x, grid, self.pool_k, self.norm_k))
            v = self.v(self._pool(x, grid, self.pool_v, self.norm_v))
        else:
            q, k, v = self._project_and_pool(x, grid, recompute)
        x = self._attend(q, k, v, self.pooled_grid(grid), self.key_grid(grid))  # (B, N', dim_out)
        if self.options.residual_pooling:
            x = self._add_queries(x, q)
        return self.proj_drop(self.proj(x))

    def _project_and_pool(self, x: Tensor, grid: Grid, recompute: bool) -> list[Tensor]:
        """q (B, N', dim_out), k and v (B, N'', dim_out)."""
        if self.options.separate_qkv:
            projections = [(linear.weight, linear.bias) for linear in (self.q, self.k, self.v)]
        else:
            # Three products, so that each result is contiguous and can be viewed as a volume.
            biases = self.qkv.bias.chunk(3) if self.qkv.bias is not None else (None,) * 3
            projections = list(zip(self.qkv.weight.chunk(3), biases, strict=True))
        q, *keys_values = ((self.pool_q, self.norm_q), (self.pool_k, self.norm_k), (self.pool_v, self.norm_v))
        result = [self._project_and_pool_one(x, grid, *projections[0], *q, recompute=recompute)]
        stride = None
        touched = self._touched(grid)
        if touched is not None:  # keys and values of the other tokens would meet no pooling window
            x = gather_tokens(x, touched, class_token=self.class_token)
            grid, stride = touched.grid, touched.stride
        for projection, pooling in zip(projections[1:], keys_values, strict=True):
            result.append(
                self._project_and_pool_one(x, grid, *projection, *pooling, stride=stride, recompute=recompute)
            )
        return result

    def read_grid(self, grid: Grid) -> Grid:
        """The grid of the tokens that keys and values are projected for."""
        touched = self._touched(grid)
        return grid if touched is None else touched.grid

    def _touched(self, grid: Grid) -> TouchedTokens | None:
        """The tokens that the pooling of keys and values reads, where it passes over many."""
        pool = self.pool_k
        if self.skip_untouched and isinstance(pool, nn.Conv3d):
            return touched_tokens(grid, pool.kernel_size, pool.stride, pool.padding)
        return None

    def _project_and_pool_one(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor,
        bias: Tensor | None,
        pool: nn.Module | None,
        norm: nn.Module | None,
        *,
        recompute: bool,
        stride: Grid | None = None,
    ) -> Tensor:
        if not recompute or not isinstance(pool, nn.Conv3d) or self.class_token or torch.compiler.is_compiling():
            return self._pool(F.linear(x, weight, bias), grid, pool, norm, stride=stride)
        pooling = {"stride": stride or pool.stride, "padding": pool.padding, "operator": self.options.pooling}
        return normalise_heads(project_and_pool(x, grid, weight, bias, pool.weight, **pooling), norm)

    def _add_queries(self, x: Tensor, q: Tensor) -> Tensor:
        """Residual pooling: all tokens but the class token get their query."""
        if not self.class_token:
            return x + q
        (token, x), (_, q) = split_token(x), split_token(q)
        return torch.cat([token, x + q], dim=1)

    def pooled_grid(self, grid: Grid) -> Grid:
        """The grid of the output for tokens of ``grid``."""
        return pooled_grid(self.pool_q, grid)

    def key_grid(self, grid: Grid) -> Grid:
        """The grid of the keys for tokens of ``grid``."""
        return pooled_grid(self.pool_k, grid)

    def _pool(
        self, x: Tensor, grid: Grid, pool: nn.Module | None, norm: nn.Module | None, *, stride: Grid | None = None
    ) -> Tensor:
        options = {"class_token": self.class_token, "operator": self.options.pooling, "stride": stride}
        return pool_tokens(x, grid, pool, norm, **options)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, key_grid: Grid) -> Tensor:
        """``softmax(q k^T / sqrt(d) + relative positions) v`` by heads: (B, N', dim_out)."""
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))  # each (B, N', M, d)
        tables = [self.rel_pos_t, self.rel_pos_h, self.rel_pos_w]
        if any(table is not None for table in tables):
            q, k, v = self._with_relative_positions(q, k, v, grid, key_grid, tables)  # each (B, N', M, d + e)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # each (B, M, N', d [+ e])
        x = F.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5)
        return x[..., : self.head_dim].transpose(1, 2).flatten(2)  # (B, N', dim_out)

    def _with_relative_positions(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, key_grid: Grid, tables: list[Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, N', M, d) with e more channels, whose products are the relative positions; v with zeros.

        The width is rounded up to a multiple of 8, which fused attention kernels want.
        """
        extra = sum(size for size, table in zip(key_grid, tables, strict=True) if table is not None)
        extra += -(self.head_dim + extra) % 8
        token, rest = split_token(q) if self.class_token else (None, q)
        positions = extend_queries(
            rest.unflatten(1, grid), grid, key_grid, tables, factor=self.head_dim**0.5, width=extra
        )  # (B, THW, M, e); attention divides by the factor
        coordinates = key_coordinates(key_grid, tables, k)  # (N'', e or less)
        first = int(self.class_token)
        coordinates = F.pad(coordinates, (0, extra - coordinates.shape[-1], first, 0))
        coordinates = coordinates[None, :, None].expand(k.shape[0], -1, self.num_heads, -1)
        if token is not None:
            positions = F.pad(positions, (0, 0, 0, 0, first, 0))
        return torch.cat([q, positions], -1), torch.cat([k, coordinates], -1), F.pad(v, (0, extra))
