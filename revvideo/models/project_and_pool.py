"""Linear projection and depthwise pooling as one step, some heads at a time, where tokens are many before the pooling.

Depthwise pooling keeps heads apart, so the projection of one head is all that has to exist at a time; as many are taken
together as the input is wide. They are computed again in the backward: nothing but the input is kept.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from revvideo.models.depthwise_pooling import depthwise_pool
from revvideo.models.resize_positions import Grid


def project_and_pool(
    x: Tensor,
    grid: Grid,
    weight: Tensor,
    bias: Tensor | None,
    kernel: Tensor,
    *,
    stride: Grid,
    padding: Grid,
    operator: str,
) -> Tensor:
    """``pool(x weight^T + bias)``, which can be differentiated once.

    Args:
        x: tokens (B, N, dim) of ``grid``, in the dtype to compute in.
        grid: (T, H, W).
        weight: (D, dim).
        bias: (D,).
        kernel: (d, 1, kt, kh, kw) of each of the D / d heads.
        stride, padding: of the pooling, over (T, H, W).
        operator: see `depthwise_pool`.

    Returns:
        ``(B, N', D)``.
    """
    return _ProjectAndPool.apply(x, weight, bias, kernel, grid, (stride, padding, operator))


class _ProjectAndPool(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, kernel, grid, pooling):
        ctx.grid, ctx.pooling = grid, pooling
        ctx.save_for_backward(x, weight, bias, kernel)
        groups = [_pool(_project(x, w, b), grid, kernel, pooling) for w, b in _groups(weight, bias, kernel)]
        return groups[0] if len(groups) == 1 else torch.cat(groups, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, kernel = ctx.saved_tensors
        flat, grad_x = x.flatten(0, 1), None  # (B N, dim)
        grad_weight, grad_bias, grad_kernel = [], [], torch.zeros_like(kernel)
        groups = _groups(weight, bias, kernel)
        for (w, b), g in zip(groups, grad.split([len(w) for w, _ in groups], dim=-1), strict=True):
            with torch.enable_grad():
                tokens, leaf = _project(x, w, b).detach().requires_grad_(), kernel.detach().requires_grad_()
                pooled = _pool(tokens, ctx.grid, leaf, ctx.pooling)
            g, g_kernel = torch.autograd.grad(pooled, (tokens, leaf), g)
            del tokens, pooled
            g = g.flatten(0, 1)  # (B N, channels)
            grad_kernel += g_kernel
            grad_weight.append((g.t() @ flat).to(weight.dtype))
            if b is not None:
                grad_bias.append(g.sum(0).to(bias.dtype))
            if ctx.needs_input_grad[0]:
                w = w.to(g.dtype)
                grad_x = g @ w if grad_x is None else grad_x.addmm_(g, w)
        grads = (torch.cat(grad_weight), torch.cat(grad_bias) if grad_bias else None, grad_kernel)
        return None if grad_x is None else grad_x.view_as(x), *grads, None, None


def _groups(weight: Tensor, bias: Tensor | None, kernel: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of some heads each: together as wide as the input, or one head."""
    channels = max(1, weight.shape[1] // len(kernel)) * len(kernel)
    weights = weight.split(channels)
    return list(zip(weights, (None,) * len(weights) if bias is None else bias.split(channels), strict=True))


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _pool(x: Tensor, grid: Grid, kernel: Tensor, pooling: tuple[Grid, Grid, str]) -> Tensor:
    stride, padding, operator = pooling
    volume = x.unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B, d, T, H, W), channels_last_3d
    volume = depthwise_pool(volume, kernel, stride, padding, operator=operator)
    return volume.permute(0, 2, 3, 4, 1).flatten(1, 3)  # (B, N', d)
