"""Linear projection and depthwise pooling as one step, head by head, where tokens are many before the pooling.

Depthwise pooling keeps heads apart, so the projection of one head is all that has to exist at a time. It is computed
again in the backward: nothing but the input is kept.
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
        dim = kernel.shape[0]
        heads = []
        for w, b in _heads(weight, bias, dim):
            heads.append(_pool(_project(x, w, b), grid, kernel, pooling))  # (B, N', d)
        return torch.cat(heads, dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, kernel = ctx.saved_tensors
        dim = kernel.shape[0]
        flat = x.flatten(0, 1)  # (B N, dim)
        grad_x = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias, grad_kernel = [], [], torch.zeros_like(kernel)
        for (w, b), g in zip(_heads(weight, bias, dim), grad.split(dim, dim=-1), strict=True):
            with torch.enable_grad():
                tokens, leaf = _project(x, w, b).detach().requires_grad_(), kernel.detach().requires_grad_()
                pooled = _pool(tokens, ctx.grid, leaf, ctx.pooling)
            g, g_kernel = torch.autograd.grad(pooled, (tokens, leaf), g)
            g = g.flatten(0, 1)  # (B N, d)
            del tokens, pooled
            grad_kernel += g_kernel
            grad_weight.append((g.t() @ flat).to(weight.dtype))
            if b is not None:
                grad_bias.append(g.sum(0).to(bias.dtype))
            if grad_x is not None:
                grad_x.addmm_(g, w.to(g.dtype))
        grads = (torch.cat(grad_weight), torch.cat(grad_bias) if grad_bias else None, grad_kernel)
        return None if grad_x is None else grad_x.view_as(x), *grads, None, None


def _heads(weight: Tensor, bias: Tensor | None, dim: int) -> list[tuple[Tensor, Tensor | None]]:
    weights = weight.split(dim)
    return list(zip(weights, (None,) * len(weights) if bias is None else bias.split(dim), strict=True))


def _project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _pool(x: Tensor, grid: Grid, kernel: Tensor, pooling: tuple[Grid, Grid, str]) -> Tensor:
    stride, padding, operator = pooling
    volume = x.unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B, d, T, H, W), channels_last_3d
    volume = depthwise_pool(volume, kernel, stride, padding, operator=operator)
    return volume.permute(0, 2, 3, 4, 1).flatten(1, 3)  # (B, N', d)
