"""Pooling as torch computes it in float64, and how far another operator is from that."""

import torch
from torch import Tensor
from torch.nn import functional as F

from revvideo.models.depthwise_pooling import depthwise_pool


def tokens(channels, grid, dtype, batch=2) -> Tensor:
    """Random tokens as a volume (B, D, T, H, W), channels_last_3d."""
    return torch.randn(batch, *grid, channels).to(dtype).permute(0, 4, 1, 2, 3)


def reference(volume, weight, stride, padding) -> Tensor:
    """The convolution in float64, of a contiguous volume."""
    weight = weight.double().repeat(volume.shape[1] // len(weight), 1, 1, 1, 1)
    return F.conv3d(volume.double().contiguous(), weight, stride=stride, padding=padding, groups=volume.shape[1])


def pool_by(operator):
    return lambda *arguments: depthwise_pool(*arguments, operator=operator)


def error(ours, theirs) -> float:
    return ((ours.detach().double().cpu() - theirs.detach()).norm() / theirs.detach().norm()).item()


def errors(pool, volume, weight, stride, padding) -> list[float]:
    """Relative errors of the pooled volume, of the volume's gradient and of the weight's."""
    exact = [x.detach().double().cpu().requires_grad_() for x in (volume, weight)]
    volume, weight = volume.detach().requires_grad_(), weight.detach().requires_grad_()
    ours, theirs = pool(volume, weight, stride, padding), reference(*exact, stride, padding)
    grad = torch.randn(ours.shape, device=ours.device).to(ours.dtype).to(memory_format=torch.channels_last_3d)
    our_grads = torch.autograd.grad(ours, (volume, weight), grad)
    their_grads = torch.autograd.grad(theirs, exact, grad.double().cpu())
    assert [x.dtype for x in (ours, *our_grads)] == [volume.dtype, volume.dtype, weight.dtype]
    return [error(a, b) for a, b in zip((ours, *our_grads), (theirs, *their_grads), strict=True)]
