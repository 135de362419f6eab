"""Multi-head pooling attention (Fan et al. 2021, "Multiscale Vision Transformers", section 3.1).

B batch, N tokens, D width, M heads, d = D / M. Tokens run over (T, H, W), with the class token, if any, in front.
A depthwise convolution with d channels, shared by the heads, pools q, k and v; it runs on the tokens' own memory, seen
as a ``channels_last_3d`` volume, since D is innermost.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revvideo.models.layers import LayerNorm

Grid = tuple[int, int, int]  # tokens along (T, H, W)


class PoolingAttention(nn.Module):
    """Self-attention whose queries, keys and values are pooled: ``(B, N, dim) -> (B, N', dim_out)``.

    Args:
        dim: width of the input.
        dim_out: width of q, k, v and of the output.
        num_heads: number of heads M; divides ``dim_out``.
        q_kernel, kv_kernel: pooling kernels over (T, H, W).
        q_stride, kv_stride: pooling strides over (T, H, W).
        qkv_bias: whether the projection to q, k and v has a bias.
        class_token: whether token 0 is a class token, which is not pooled.
        dropout: after the output projection.

    Raises:
        ValueError: ``dim_out`` is not divisible by ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        *,
        num_heads: int,
        q_kernel: Grid,
        kv_kernel: Grid,
        q_stride: Grid,
        kv_stride: Grid,
        qkv_bias: bool,
        class_token: bool,
        dropout: float = 0.0,
    ):
        super().__init__()
        if dim_out % num_heads:
            raise ValueError(
                f"attention width {dim_out} is not divisible by {num_heads} heads (MVIT.HEAD_MUL, DIM_MUL)"
            )
        self.num_heads, self.dim_out, self.class_token = num_heads, dim_out, class_token
        head_dim = dim_out // num_heads
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        self.proj_drop = nn.Dropout(dropout)
        self.pool_q, self.norm_q = _pool(head_dim, q_kernel, q_stride)
        self.pool_k, self.norm_k = _pool(head_dim, kv_kernel, kv_stride)
        self.pool_v, self.norm_v = _pool(head_dim, kv_kernel, kv_stride)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Attend over the tokens ``x`` (B, N, dim) of ``grid``; returns (B, N', dim_out), see `pooled_grid`."""
        q, k, v = self._project(x)  # each (B, N, dim_out)
        q = self.pool(q, grid, self.pool_q, self.norm_q)  # (B, N', dim_out)
        k = self.pool(k, grid, self.pool_k, self.norm_k)
        v = self.pool(v, grid, self.pool_v, self.norm_v)
        heads = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # each (B, M, N', d)
        out = F.scaled_dot_product_attention(*heads)  # (B, M, N', d)
        out = out.transpose(1, 2).flatten(2)  # (B, N', dim_out)
        return self.proj_drop(self.proj(out))

    def pooled_grid(self, grid: Grid) -> Grid:
        """The grid of the output for tokens of ``grid``."""
        if self.pool_q is None:
            return grid
        conv = self.pool_q
        sizes = zip(grid, conv.kernel_size, conv.stride, conv.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)

    def _project(self, x: Tensor) -> list[Tensor]:
        """q, k and v as three products, so that each is contiguous and can be viewed as a volume."""
        weights = self.qkv.weight.chunk(3)
        biases = self.qkv.bias.chunk(3) if self.qkv.bias is not None else (None,) * 3
        return [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]

    def pool(self, x: Tensor, grid: Grid, conv: nn.Conv3d | None, norm: nn.Module | None) -> Tensor:
        """Pool the tokens ``x`` (B, N, D): convolution over the grid, then LayerNorm of each head."""
        if conv is None:
            return x
        token, x = (x[:, :1], x[:, 1:]) if self.class_token else (None, x)
        batch, _, dim = x.shape
        volume = x.view(batch, *grid, dim).permute(0, 4, 1, 2, 3)  # (B, D, T, H, W), channels_last_3d
        if volume.device.type == "cpu" and volume.dtype is torch.bfloat16:
            # torch 2.15: the weight gradient of this convolution is garbage in bfloat16 on the CPU when channels are
            # innermost and the volume has two frames (float32, float16 and contiguous volumes are right).
            volume = volume.contiguous()
        weight = conv.weight.repeat(dim // conv.out_channels, 1, 1, 1, 1)  # one kernel of d channels for all heads
        volume = F.conv3d(volume, weight, stride=conv.stride, padding=conv.padding, groups=dim)
        x = volume.permute(0, 2, 3, 4, 1).reshape(batch, -1, dim)  # (B, N', D)
        if token is not None:
            x = torch.cat([token, x], dim=1)
        return norm(x.unflatten(-1, (-1, conv.out_channels))).flatten(2)


def _pool(head_dim: int, kernel: Grid, stride: Grid) -> tuple[nn.Conv3d | None, nn.Module | None]:
    """Depthwise pooling convolution and its norm; nothing where it would be the identity's shape."""
    if math.prod(kernel) == 1 and math.prod(stride) == 1:
        return None, None
    padding = tuple(k // 2 for k in kernel)
    return nn.Conv3d(head_dim, head_dim, kernel, stride, padding, groups=head_dim, bias=False), LayerNorm(head_dim)
