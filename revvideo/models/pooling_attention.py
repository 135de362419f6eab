"""Multi-head pooling attention (Fan et al. 2021, "MViT", section 3.1; Li et al. 2022, "MViTv2", section 3).

B batch, N tokens, D width, M heads, d = D / M. Tokens run over (T, H, W), with the class token, if any, in front.
A depthwise convolution pools q, k and v; it runs on the tokens' own memory, seen as a ``channels_last_3d`` volume,
since D is innermost.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revvideo.models.layers import LayerNorm
from revvideo.models.relative_positions import extend_queries, key_coordinates
from revvideo.models.resize_positions import Grid, resize_relative

POOL_MODES = ("conv", "conv_unshared", "avg", "max")


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

    Raises:
        ValueError: an unknown ``pool_mode``.
    """

    pool_mode: str = "conv"
    pool_first: bool = False
    separate_qkv: bool = False
    residual_pooling: bool = False
    relative_space: bool = False
    relative_time: bool = False
    relative_zero_init: bool = False

    def __post_init__(self):
        if self.pool_mode not in POOL_MODES:
            raise ValueError(f"MVIT.MODE is {self.pool_mode!r}; expected one of {', '.join(POOL_MODES)}")


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
        self.pool_q, self.norm_q = _pool(options.pool_mode, channels, q_kernel, q_stride)
        self.pool_k, self.norm_k = _pool(options.pool_mode, channels, kv_kernel, kv_stride)
        self.pool_v, self.norm_v = _pool(options.pool_mode, channels, kv_kernel, kv_stride)
        self.q_stride, self.kv_stride = q_stride, kv_stride
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

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Attend over the tokens ``x`` (B, N, dim) of ``grid``; returns (B, N', dim_out), see `pooled_grid`."""
        if self.options.pool_first:
            q = self.q(self.pool(x, grid, self.pool_q, self.norm_q))  # (B, N', dim_out)
            k = self.k(self.pool(x, grid, self.pool_k, self.norm_k))
            v = self.v(self.pool(x, grid, self.pool_v, self.norm_v))
        else:
            q, k, v = self._project(x)  # each (B, N, dim_out)
            q = self.pool(q, grid, self.pool_q, self.norm_q)  # (B, N', dim_out)
            k = self.pool(k, grid, self.pool_k, self.norm_k)
            v = self.pool(v, grid, self.pool_v, self.norm_v)
        x = self._attend(q, k, v, self.pooled_grid(grid), _pooled_grid(self.pool_k, grid))  # (B, N', dim_out)
        if self.options.residual_pooling:
            x = self._add_queries(x, q)
        return self.proj_drop(self.proj(x))

    def _add_queries(self, x: Tensor, q: Tensor) -> Tensor:
        """Residual pooling: all tokens but the class token get their query."""
        if not self.class_token:
            return x + q
        (token, x), (_, q) = self._split_token(x), self._split_token(q)
        return torch.cat([token, x + q], dim=1)

    def pooled_grid(self, grid: Grid) -> Grid:
        """The grid of the output for tokens of ``grid``."""
        return _pooled_grid(self.pool_q, grid)

    def pool_like_queries(self, x: Tensor, grid: Grid) -> Tensor:
        """Pool the tokens ``x`` (B, N, D) as the queries are pooled, norm included."""
        return self.pool(x, grid, self.pool_q, self.norm_q)

    def _project(self, x: Tensor) -> list[Tensor]:
        """q, k and v as three products, so that each is contiguous and can be viewed as a volume."""
        if self.options.separate_qkv:
            return [self.q(x), self.k(x), self.v(x)]
        weights = self.qkv.weight.chunk(3)
        biases = self.qkv.bias.chunk(3) if self.qkv.bias is not None else (None,) * 3
        return [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]

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
        token, rest = self._split_token(q)
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

    def _split_token(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """The class token, if there is one, and the other tokens (dimension 1)."""
        # Not by two slices: in the backward each would fill a tensor of the whole size with zeros.
        return x.split([1, x.shape[1] - 1], dim=1) if self.class_token else (None, x)

    def pool(self, x: Tensor, grid: Grid, pool: nn.Module | None, norm: nn.Module | None) -> Tensor:
        """Pool the tokens ``x`` (B, N, D) of ``grid``, all but the class token, then normalise all of them."""
        if pool is None:
            return x
        token, x = self._split_token(x)
        batch, _, dim = x.shape
        volume = x.view(batch, *grid, dim).permute(0, 4, 1, 2, 3)  # (B, D, T, H, W), channels_last_3d
        volume = _POOL[type(pool)](volume, pool)  # (B, D, T', H', W')
        x = volume.permute(0, 2, 3, 4, 1).reshape(batch, -1, dim)  # (B, N', D)
        if token is not None:
            x = torch.cat([token, x], dim=1)
        return x if norm is None else norm(x.unflatten(-1, (-1, pool.out_channels))).flatten(2)


def _depthwise(volume: Tensor, conv: nn.Conv3d) -> Tensor:
    """Depthwise convolution of all D channels of ``volume`` (B, D, T, H, W) by kernels for d channels of each head."""
    if volume.device.type == "cpu" and volume.dtype is torch.bfloat16:
        # torch 2.15: the weight gradient of this convolution is garbage in bfloat16 on the CPU when channels are
        # innermost and the volume has two frames (float32, float16 and contiguous volumes are right).
        volume = volume.contiguous()
    channels = volume.shape[1]
    weight = conv.weight.repeat(channels // conv.out_channels, 1, 1, 1, 1)  # one kernel of d channels for all heads
    return F.conv3d(volume, weight, stride=conv.stride, padding=conv.padding, groups=channels)


def _average(volume: Tensor, pool: nn.AvgPool3d) -> Tensor:
    """Average pooling that counts the padding's zeros; torch's own refuses volumes smaller than the kernel."""
    padding = [p for p in reversed(pool.padding) for _ in range(2)]
    return F.avg_pool3d(F.pad(volume, padding), pool.kernel_size, pool.stride)


_POOL = {nn.Conv3d: _depthwise, nn.AvgPool3d: _average, nn.MaxPool3d: lambda volume, pool: pool(volume)}


def _pooled_grid(pool: nn.Module | None, grid: Grid) -> Grid:
    if pool is None:
        return grid
    sizes = zip(grid, pool.kernel_size, pool.stride, pool.padding, strict=True)
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)


def _pool(mode: str, channels: int, kernel: Grid, stride: Grid) -> tuple[nn.Module | None, nn.Module | None]:
    """Pooling over (T, H, W) and its norm; nothing where it would be the identity's shape."""
    if math.prod(kernel) == 1 and math.prod(stride) == 1:
        return None, None
    padding = tuple(k // 2 for k in kernel)
    if mode == "avg":
        return nn.AvgPool3d(kernel, stride, padding), None
    if mode == "max":
        return nn.MaxPool3d(kernel, stride, padding), None
    return nn.Conv3d(channels, channels, kernel, stride, padding, groups=channels, bias=False), LayerNorm(channels)


def max_pool_tokens(x: Tensor, grid: Grid, stride: Grid, *, class_token: bool) -> Tensor:
    """Max pooling of a skip path, kernel s + 1: ``(B, N, D) -> (B, N', D)``; the class token is kept as it is."""
    token, x = x.split([1, x.shape[1] - 1], dim=1) if class_token else (None, x)
    kernel = [s + 1 if s > 1 else s for s in stride]
    volume = x.unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B, D, T, H, W)
    volume = F.max_pool3d(volume, kernel, stride, [k // 2 for k in kernel])
    x = volume.flatten(2).transpose(1, 2)  # (B, N', D)
    return x if token is None else torch.cat([token, x], dim=1)
