"""Pooling of tokens over (T, H, W): by a depthwise convolution, or by an average or a maximum.

It runs on the tokens' own memory: (B, N, D) with D innermost is a volume (B, D, T, H, W) in ``channels_last_3d``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from revvideo.models.depthwise_pooling import depthwise_pool
from revvideo.models.layers import LayerNorm
from revvideo.models.resize_positions import Grid

POOL_MODES = ("conv", "conv_unshared", "avg", "max")


def make_pooling(mode: str, channels: int, kernel: Grid, stride: Grid) -> tuple[nn.Module | None, nn.Module | None]:
    """Pooling over (T, H, W) and its norm; none where neither kernel nor stride is above 1."""
    if math.prod(kernel) == 1 and math.prod(stride) == 1:
        return None, None
    padding = tuple(k // 2 for k in kernel)
    if mode == "avg":
        return nn.AvgPool3d(kernel, stride, padding), None
    if mode == "max":
        return nn.MaxPool3d(kernel, stride, padding), None
    return nn.Conv3d(channels, channels, kernel, stride, padding, groups=channels, bias=False), LayerNorm(channels)


def pool_tokens(
    x: Tensor,
    grid: Grid,
    pool: nn.Module | None,
    norm: nn.Module | None,
    *,
    class_token: bool,
    operator: str,
    stride: Grid | None = None,
) -> Tensor:
    """Pool the tokens ``x`` (B, N, D) of ``grid``, all but the class token, then normalise all of them by heads.

    Args:
        x: tokens.
        grid: (T, H, W).
        pool, norm: of `make_pooling`.
        class_token: whether token 0 is a class token.
        operator: of the depthwise convolution, see `depthwise_pool`.
        stride: of the depthwise convolution instead of its own.

    Returns:
        ``(B, N', D)``, see `pooled_grid`.
    """
    if pool is None:
        return x
    token, x = split_token(x) if class_token else (None, x)
    batch, _, dim = x.shape
    volume = x.view(batch, *grid, dim).permute(0, 4, 1, 2, 3)  # (B, D, T, H, W), channels_last_3d
    if isinstance(pool, nn.Conv3d):
        volume = depthwise_pool(volume, pool.weight, stride or pool.stride, pool.padding, operator=operator)
    else:
        volume = _average(volume, pool) if isinstance(pool, nn.AvgPool3d) else pool(volume)
    x = volume.permute(0, 2, 3, 4, 1).reshape(batch, -1, dim)  # (B, N', D)
    if token is not None:
        x = torch.cat([token, x], dim=1)
    return normalise_heads(x, norm)


def normalise_heads(x: Tensor, norm: nn.LayerNorm | None) -> Tensor:
    """Normalise tokens (B, N, D) over the channels of each head, of which the norm has as many."""
    return x if norm is None else norm(x.unflatten(-1, (-1, *norm.normalized_shape))).flatten(2)


def pooled_grid(pool: nn.Module | None, grid: Grid) -> Grid:
    """The grid of the output for tokens of ``grid``."""
    if pool is None:
        return grid
    sizes = zip(grid, pool.kernel_size, pool.stride, pool.padding, strict=True)
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)


def split_token(x: Tensor) -> list[Tensor]:
    """The class token and the other tokens (dimension 1)."""
    # Not by two slices: in the backward each would fill a tensor of the whole size with zeros.
    return x.split([1, x.shape[1] - 1], dim=1)


def max_pool_tokens(x: Tensor, grid: Grid, stride: Grid, *, class_token: bool) -> Tensor:
    """Max pooling of a skip path, kernel s + 1: ``(B, N, D) -> (B, N', D)``; the class token is kept as it is."""
    token, x = split_token(x) if class_token else (None, x)
    kernel = [s + 1 if s > 1 else s for s in stride]
    volume = x.unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B, D, T, H, W)
    volume = F.max_pool3d(volume, kernel, stride, [k // 2 for k in kernel])
    x = volume.flatten(2).transpose(1, 2)  # (B, N', D)
    return x if token is None else torch.cat([token, x], dim=1)


def _average(volume: Tensor, pool: nn.AvgPool3d) -> Tensor:
    """Average pooling that counts the padding's zeros; torch's own refuses volumes smaller than the kernel."""
    padding = [p for p in reversed(pool.padding) for _ in range(2)]
    return F.avg_pool3d(F.pad(volume, padding), pool.kernel_size, pool.stride)
