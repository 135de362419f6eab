"""Depthwise pooling in plain torch, for every device.

ATen's gradients of a depthwise convolution take ten times as long on a CPU as the convolution. Here the input gradient
is a few convolutions itself, one for each residue of the stride, and the weight gradient one sum for each tap of the
kernel. Half precision is computed in float32 on a CPU, in slabs: quicker there, and without a float32 copy of it all.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SLAB_BYTES = {"cpu": 2**21, "other": 2**26}  # what stays in the cache; what a launch of a kernel pays for


def pool(volume: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Convolve each channel of ``volume`` (B, D, T, H, W): channel c with kernel c % d of ``weight``.

    Args:
        volume: any strides; quick with neighbouring channels (``channels_last_3d``).
        weight: (d, 1, kt, kh, kw), d divides D, any floating dtype.
        stride, padding: over (T, H, W).

    Returns:
        (B, D, T', H', W') of the volume's dtype, ``channels_last_3d``.
    """
    tokens = as_tokens(volume)  # (B, T, H, W, D)
    sizes = zip(tokens.shape[1:4], weight.shape[2:], stride, padding)
    size = [(n + 2 * p - k) // s + 1 for n, k, s, p in sizes]
    taps = _taps(weight, tokens.shape[-1])
    if _in_float32(tokens):
        pooled = tokens.new_empty(len(tokens), *size, tokens.shape[-1])
        _fill(pooled, tokens, taps, stride, padding)
    else:
        pooled = _convolve(tokens, taps, stride, padding, size).contiguous()
    return pooled.permute(0, 4, 1, 2, 3)


def input_gradient(
    grad: Tensor, weight: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The gradient of a volume of ``size`` (B, D, T, H, W) from that of the pooled one, ``grad`` (B, D, T', H', W').

    Of an axis with stride s, the inputs r, r + s, r + 2 s, ... are read through the taps first, first + s, ... only,
    ``first = (r + padding) % s``: input ``r + s j`` by output ``j + (r + padding - first) / s - m`` through the m-th.

    Returns:
        ``size``, the dtype of ``grad``, ``channels_last_3d``.
    """
    batch, channels, *grid = size
    grad = as_tokens(grad)  # (B, T', H', W', D)
    taps = _taps(weight, channels).flip(0, 1, 2)  # (kt, kh, kw, D)
    if set(stride) == {1} and not _in_float32(grad):
        lead = [k - 1 - p for k, p in zip(taps.shape, padding)]
        return _convolve(grad, taps, stride, lead, grid).contiguous().permute(0, 4, 1, 2, 3)
    skips = any(s > k for s, k in zip(stride, taps.shape))  # inputs that no tap reads
    result = (grad.new_zeros if skips else grad.new_empty)(batch, *grid, channels)
    for residue in itertools.product(*(range(min(s, n)) for s, n in zip(stride, grid))):
        first = [(r + p) % s for r, p, s in zip(residue, padding, stride)]
        if any(f >= k for f, k in zip(first, taps.shape)):
            continue
        # Of the flipped taps, those that end at the first one.
        t, h, w = (slice((k - 1 - f) % s, None, s) for k, f, s in zip(taps.shape, first, stride))
        some = taps[t, h, w]
        lead = [k - 1 - (r + p - f) // s for k, r, p, f, s in zip(some.shape, residue, padding, first, stride)]
        t, h, w = (slice(r, None, s) for r, s in zip(residue, stride))
        _fill(result[:, t, h, w], grad, some, (1, 1, 1), lead)
    return result.permute(0, 4, 1, 2, 3)


def weight_gradient(
    grad: Tensor, volume: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The gradient of a weight of ``size`` (d, 1, kt, kh, kw) from those of the pooled volume and the volume.

    Returns:
        ``size``, float32 (float64 for float64).
    """
    kernels, _, *kernel = size
    grad, volume, precise = as_tokens(grad), as_tokens(volume), precision(grad.dtype)
    channels = grad.shape[-1]
    result = grad.new_zeros(*kernel, channels, dtype=precise)
    for clips, first, last in _slabs((*grad.shape[:2], *volume.shape[2:]), volume):
        shift = padding[0] - first * stride[0]
        for kt in range(kernel[0]):
            outputs, inputs = _meet(last - first, volume.shape[1], kt, stride[0], shift)
            frames, read = grad[clips, first:last][:, outputs].to(precise), volume[clips, inputs].to(precise)
            spaces = (grad.shape[2:4], volume.shape[2:4], stride[1:], padding[1:])
            for tap, (h, in_h), (w, in_w) in _in_space(result[kt], *spaces):
                tap += (frames[:, :, h, w] * read[:, :, in_h, in_w]).sum((0, 1, 2, 3))
    by_head = result.unflatten(-1, (-1, kernels)).sum(-2)  # (kt, kh, kw, d)
    return by_head.permute(3, 0, 1, 2).unsqueeze(1).contiguous()  # (d, 1, kt, kh, kw)


def as_tokens(volume: Tensor) -> Tensor:
    """(B, D, T, H, W) as (B, T, H, W, D) with neighbouring channels; copied only where they are not neighbours."""
    tokens = volume.permute(0, 2, 3, 4, 1)
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def precision(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of ``dtype`` are summed up."""
    return torch.promote_types(dtype, torch.float32)


def _slabs(shape: Sequence[int], tokens: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Clips, first and last frame of parts of ``shape`` (B, T, H, W, D) that take about `SLAB_BYTES` when precise."""
    batch, time = shape[:2]
    budget = SLAB_BYTES["cpu" if tokens.device.type == "cpu" else "other"]
    fit = max(1, budget // max(1, math.prod(shape[2:]) * precision(tokens.dtype).itemsize))  # frames
    clips, frames = max(1, fit // max(1, time)), max(1, min(fit, time))
    for clip in range(0, batch, clips):
        for frame in range(0, time, frames):
            yield slice(clip, clip + clips), frame, min(frame + frames, time)


def _meet(outputs: int, inputs: int, tap: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Which outputs read an input through ``tap``, and which inputs these are: ``output * stride - padding + tap``."""
    first = max(0, -((tap - padding) // stride))
    last = min(outputs, (inputs - 1 + padding - tap) // stride + 1)
    if last <= first:
        return slice(0), slice(0)
    start = first * stride - padding + tap
    return slice(first, last), slice(start, start + (last - first - 1) * stride + 1, stride)


def _in_space(
    taps: Tensor, outputs: Sequence[int], inputs: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Iterator[tuple[Tensor, tuple[slice, slice], tuple[slice, slice]]]:
    """For each of ``taps`` (kh, kw, D): the tap, what it joins along the height, what along the width."""
    for kh, row in enumerate(taps):
        height = _meet(outputs[0], inputs[0], kh, stride[0], padding[0])
        for kw, tap in enumerate(row):
            yield tap, height, _meet(outputs[1], inputs[1], kw, stride[1], padding[1])


def _taps(weight: Tensor, channels: int) -> Tensor:
    """(d, 1, kt, kh, kw) as (kt, kh, kw, D), precise, the same kernels for every head."""
    taps = weight.to(precision(weight.dtype)).permute(2, 3, 4, 1, 0).flatten(3)
    return taps.repeat(1, 1, 1, channels // len(weight))


def _in_float32(tokens: Tensor) -> bool:
    return tokens.device.type == "cpu" and tokens.dtype is not precision(tokens.dtype)


def _fill(result: Tensor, tokens: Tensor, taps: Tensor, stride: Sequence[int], lead: Sequence[int]) -> None:
    """`_convolve` into ``result`` (B, T', H', W', D), a view, slab by slab."""
    precise = precision(tokens.dtype) if _in_float32(tokens) else tokens.dtype
    for clips, first, last in _slabs((*result.shape[:2], *tokens.shape[2:]), tokens):
        start = first * stride[0] - lead[0]
        low = min(max(start, 0), tokens.shape[1])
        high = max(low, (last - 1) * stride[0] - lead[0] + len(taps))
        frames, part = tokens[clips, low:high].to(precise), result[clips, first:last]
        part.copy_(_convolve(frames, taps, stride, (low - start, *lead[1:]), part.shape[1:4]))


def _convolve(tokens: Tensor, taps: Tensor, stride: Sequence[int], lead: Sequence[int], size: Sequence[int]) -> Tensor:
    """``sum_k taps[k] tokens[o * stride - lead + k]`` for the outputs o of ``size``; zeros outside the tokens.

    Args:
        tokens: (B, T, H, W, D).
        taps: (kt, kh, kw, D); taken in the tokens' dtype.
        stride, lead, size: over (T, H, W); a negative ``lead`` begins inside.

    Returns:
        (B, *size, D), the tokens' dtype.
    """
    if taps.shape[1:3] == (1, 1) or not all(tokens.shape):
        return _add_up(tokens, taps[:, 0, 0], stride, lead, size)
    padding, skipped = [], []
    for n, k, s, before, outputs in zip(tokens.shape[1:4], taps.shape, stride, lead, size):
        after = (outputs - 1) * s - before + k - n
        skipped.append(-(min(0, before - after, before) // s))  # outputs that padding of equal sides adds in front
        padding.append(before + skipped[-1] * s)
    weight = taps.to(tokens.dtype).permute(3, 0, 1, 2).unsqueeze(1)  # (D, 1, kt, kh, kw)
    volume = tokens.permute(0, 4, 1, 2, 3)
    with torch.autocast(tokens.device.type, enabled=False):  # it would cast float32 slabs back
        x = F.conv3d(volume, weight, stride=stride, padding=padding, groups=len(weight))  # (B, D, T', H', W') or more
    x = x.permute(0, 2, 3, 4, 1)
    for axis, (first, outputs) in enumerate(zip(skipped, size), 1):
        x = x.narrow(axis, first, outputs)
    return x


def _add_up(tokens: Tensor, taps: Tensor, stride: Sequence[int], lead: Sequence[int], size: Sequence[int]) -> Tensor:
    """`_convolve` with taps (kt, D) in time only, for which torch on one thread copies its input several times."""
    result = tokens.new_zeros(len(tokens), *size, tokens.shape[-1])
    for kt, tap in enumerate(taps.to(tokens.dtype)):
        axes = zip(size, tokens.shape[1:4], (kt, 0, 0), stride, lead)
        (t, in_t), (h, in_h), (w, in_w) = (_meet(*axis) for axis in axes)
        result[:, t, h, w].addcmul_(tokens[:, in_t, in_h, in_w], tap)
    return result
