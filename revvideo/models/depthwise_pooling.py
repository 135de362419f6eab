"""Depthwise pooling of tokens seen as a volume: the convolution of pooling attention (Fan et al. 2021, section 3.1).

    y[b, c, o] = sum_k  w[c % d, k]  x[b, c, o * stride - padding + k]

It is linear in x and in w, and so are both gradients in what they are made of. The three are operators of
``torch.library``, each the derivative of the others: compilers, export and fake tensors see through them, and they can
be differentiated any number of times.
"""

import functools
import logging
import math
import types
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from revvideo.models import compiled_pooling, taps_pooling

logger = logging.getLogger(__name__)

OPERATORS = ("auto", "aten", "taps", "compiled")


def depthwise_pool(
    volume: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], *, operator: str = "auto"
) -> Tensor:
    """Convolve each channel of ``volume`` by itself: channel c with kernel c % d, so that heads share kernels.

    Args:
        volume: (B, D, T, H, W), float32, float64, bfloat16 or float16, any strides. Tokens (B, N, D) viewed as a volume
            (``channels_last_3d``) are read where they lie, also in slices over the tokens or the channels.
        weight: (d, 1, kt, kh, kw), d divides D. It may be float32 beside a volume in half precision: sums are float32
            then, and the weight's gradient too.
        stride, padding: over (T, H, W).
        operator: who computes. ``"aten"``: torch's convolution and its gradients. ``"taps"``: plain torch with quicker
            gradients on the CPU. ``"compiled"``: a C++ kernel for float32 and bfloat16 on the CPU, taps for other
            dtypes. ``"auto"``: on the CPU compiled, or taps where it cannot be built; on other devices aten. On the
            meta device all are aten: nothing is computed there, and counters of FLOPs know it.

    Returns:
        (B, D, T', H', W') of the volume's dtype, ``channels_last_3d`` (aten: as torch chooses). Under autocast a
        float32 volume is cast, as torch's convolution does.

    Raises:
        ValueError: an unknown operator; ``"compiled"`` on another device than the CPU or without a compiler that works;
            shapes that do not fit.
    """
    _check(volume, weight, stride, padding, operator)
    device = volume.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and volume.dtype is torch.float32:
        volume = volume.to(torch.get_autocast_dtype(device))
    if operator == "aten" or device == "meta" or (operator == "auto" and device != "cpu"):
        return _aten(volume, weight, stride, padding)
    return _pool(volume, weight, list(stride), list(padding), operator)


def check_operator(operator: str, device: str) -> None:
    """Raise a ValueError unless the operator exists and works on this kind of device (``"cpu"``, ``"cuda"``)."""
    if operator not in OPERATORS:
        raise ValueError(f"pooling operator {operator!r}; expected one of {', '.join(OPERATORS)} (COMPILE.POOLING)")
    if operator != "compiled":
        return
    if device != "cpu":
        raise ValueError(f"pooling operator 'compiled' runs on the CPU, not on {device}; use 'auto' (COMPILE.POOLING)")
    try:
        compiled_pooling.library()
    except compiled_pooling.BuildError as error:
        raise ValueError(
            f"pooling operator 'compiled' cannot be built: {error}; install a C++ compiler or use 'auto' or 'taps' "
            "(COMPILE.POOLING)"
        ) from error


def _check(volume: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], operator: str) -> None:
    if operator not in OPERATORS:
        raise ValueError(f"pooling operator {operator!r}; expected one of {', '.join(OPERATORS)}")
    if operator == "compiled" and volume.device.type not in ("cpu", "meta"):
        raise ValueError(f"pooling operator 'compiled' runs on the CPU, not on {volume.device}; use 'auto'")
    sizes = f"volume {tuple(volume.shape)}, weight {tuple(weight.shape)}, padding {tuple(padding)}"
    if volume.ndim != 5 or weight.ndim != 5 or weight.shape[1] != 1 or volume.shape[1] % weight.shape[0]:
        raise ValueError(f"pooling, {sizes}: expected (B, D, T, H, W) and (d, 1, kt, kh, kw) where d divides D")
    if min(_pooled_size(volume.shape, weight.shape, stride, padding)[2:]) < 1:
        raise ValueError(f"pooling, {sizes}: the kernel is larger than the padded volume; use larger clips")


def _aten(volume: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    if volume.device.type == "cpu" and volume.dtype is torch.bfloat16:
        # torch 2.15: the weight gradient of this convolution is garbage in bfloat16 on the CPU when channels are
        # innermost and the volume has two frames (float32, float16 and contiguous volumes are right).
        volume = volume.contiguous()
    channels = volume.shape[1]
    # Repeated before it is cast: the gradients of all heads are then summed up in the weight's own precision.
    weight = weight.repeat(channels // weight.shape[0], 1, 1, 1, 1).to(volume.dtype)
    return F.conv3d(volume, weight, stride=stride, padding=padding, groups=channels)


def _implementation(operator: str, tensor: Tensor) -> types.ModuleType:
    """The module that computes on ``tensor``: its ``pool``, ``input_gradient`` and ``weight_gradient``."""
    if tensor.dtype not in compiled_pooling.DTYPES or tensor.device.type != "cpu" or operator == "taps":
        return taps_pooling
    if operator == "auto":
        return compiled_pooling if _compiled_works() else taps_pooling
    check_operator(operator, "cpu")
    return compiled_pooling


@functools.cache
def _compiled_works() -> bool:
    """Whether ``"auto"`` is compiled on this machine; found out, and logged, once."""
    try:
        compiled_pooling.library()
    except compiled_pooling.BuildError as error:
        logger.warning("Pooling: plain torch, since the faster C++ kernel cannot be built: %s", error)
        return False
    logger.info("Pooling: the C++ kernel")
    return True


def _pooled_size(
    volume: Sequence[int], weight: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    """(B, D, T', H', W')."""
    sizes = zip(volume[2:], weight[2:], stride, padding, strict=True)
    return (*volume[:2], *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes))


def _empty(like: Tensor, size: Sequence[int]) -> Tensor:
    """``size`` (B, D, T, H, W), with the channels innermost."""
    batch, channels, *grid = size
    return like.new_empty(batch, *grid, channels).permute(0, 4, 1, 2, 3)


# The three operators. In each, `operator` chooses the implementation.


@torch.library.custom_op(
    "revvideo::depthwise_pool",
    mutates_args=(),
    schema="(Tensor volume, Tensor weight, SymInt[] stride, SymInt[] padding, str operator) -> Tensor",
)
def _pool(volume: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], operator: str) -> Tensor:
    return _implementation(operator, volume).pool(volume, weight, stride, padding)


@torch.library.custom_op(
    "revvideo::depthwise_pool_input_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor weight, SymInt[] size, SymInt[] stride, SymInt[] padding, str operator) -> Tensor",
)
def _input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], operator: str
) -> Tensor:
    return _implementation(operator, grad).input_gradient(grad, weight, size, stride, padding)


@torch.library.custom_op(
    "revvideo::depthwise_pool_weight_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor volume, SymInt[] size, SymInt[] stride, SymInt[] padding, str operator) -> Tensor",
)
def _weight_gradient(
    grad: Tensor, volume: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], operator: str
) -> Tensor:
    return _implementation(operator, grad).weight_gradient(grad, volume, size, stride, padding)


@_pool.register_fake
def _(volume, weight, stride, padding, operator):
    return _empty(volume, _pooled_size(volume.shape, weight.shape, stride, padding))


@_input_gradient.register_fake
def _(grad, weight, size, stride, padding, operator):
    return _empty(grad, size)


@_weight_gradient.register_fake
def _(grad, volume, size, stride, padding, operator):
    return grad.new_empty(size, dtype=taps_pooling.precision(grad.dtype))


# Derivatives. Each operator takes two tensors in which it is linear; a tensor is kept only for the other's gradient.


def _keep(ctx, inputs, output) -> None:
    first, second, *ctx.options = inputs
    ctx.shapes, ctx.dtypes = (first.shape, second.shape), (first.dtype, second.dtype)
    wanted = ctx.needs_input_grad
    ctx.save_for_backward(first if wanted[1] else None, second if wanted[0] else None)


def _pool_backward(ctx, grad):
    (volume, weight), (stride, padding, operator) = ctx.saved_tensors, ctx.options
    to_volume = to_weight = None
    if ctx.needs_input_grad[0]:
        to_volume = _input_gradient(grad, weight, ctx.shapes[0], stride, padding, operator)
    if ctx.needs_input_grad[1]:
        to_weight = _weight_gradient(grad, volume, ctx.shapes[1], stride, padding, operator).to(ctx.dtypes[1])
    return to_volume, to_weight, None, None, None


def _input_gradient_backward(ctx, grad_volume):
    (grad, weight), (_, stride, padding, operator) = ctx.saved_tensors, ctx.options
    to_grad = to_weight = None
    if ctx.needs_input_grad[0]:
        to_grad = _pool(grad_volume, weight, stride, padding, operator)
    if ctx.needs_input_grad[1]:
        to_weight = _weight_gradient(grad, grad_volume, ctx.shapes[1], stride, padding, operator).to(ctx.dtypes[1])
    return to_grad, to_weight, None, None, None, None


def _weight_gradient_backward(ctx, grad_weight):
    (grad, volume), (_, stride, padding, operator) = ctx.saved_tensors, ctx.options
    to_grad = to_volume = None
    if ctx.needs_input_grad[0]:
        to_grad = _pool(volume, grad_weight, stride, padding, operator)
    if ctx.needs_input_grad[1]:
        to_volume = _input_gradient(grad, grad_weight, ctx.shapes[1], stride, padding, operator)
    return to_grad, to_volume, None, None, None, None


_pool.register_autograd(_pool_backward, setup_context=_keep)
_input_gradient.register_autograd(_input_gradient_backward, setup_context=_keep)
_weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_keep)


# Two for each tap of each output, as torch counts its convolutions; the gradients have the same products.


@register_flop_formula(torch.ops.revvideo.depthwise_pool)
def _pool_flops(volume, weight, *options, out_shape, **rest) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[2:])


@register_flop_formula(torch.ops.revvideo.depthwise_pool_input_gradient)
def _input_gradient_flops(grad, weight, *options, out_shape, **rest) -> int:
    return 2 * math.prod(grad) * math.prod(weight[2:])


@register_flop_formula(torch.ops.revvideo.depthwise_pool_weight_gradient)
def _weight_gradient_flops(grad, volume, size, *options, out_shape, **rest) -> int:
    return 2 * math.prod(grad) * math.prod(size[2:])
