"""Arithmetic of a forward pass: multiply-adds, which the papers call FLOPs, of every operator that has many.

fvcore traces the model and counts linear layers, matrix products, einsum, convolutions and norms. It does not know the
fused attention; that is counted here as its two products, queries with keys and weights with values.
"""

import copy
import dataclasses
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from revvideo.models.pooling_attention import PoolingAttention

ATTENTION = "aten::scaled_dot_product_attention"


@dataclasses.dataclass(frozen=True)
class Flops:
    """Multiply-adds of one forward pass in evaluation mode, of one clip or image.

    Args:
        by_operator: multiply-adds of each operator that is counted.
        not_counted: calls of each operator that fvcore has no rule for: additions, activations, pooling, ... What it
            passes over on purpose (softmax, and what only moves data) is not listed.
    """

    by_operator: dict[str, int]
    not_counted: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.by_operator.values())

    @property
    def giga(self) -> float:
        return self.total / 1e9


def count_flops(model: nn.Module) -> Flops:
    """Count a model without computing anything: on a copy whose parameters have shapes but no memory.

    Args:
        model: any model with an ``input_spec``, on any device, ``meta`` included; it is left as it is.

    Returns:
        The multiply-adds for a batch of one with the shape ``model.input_spec.shape``.

    Raises:
        ValueError: a convolution that is transposed, or padded by name (``"same"``).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore is built on torch.jit, of which torch 2.15 warns
        warnings.simplefilter("ignore", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        clip = torch.empty(1, *model.input_spec.shape, device="meta")
        analysis = FlopCountAnalysis(_without_memory(model).eval(), (clip,)).set_op_handle(ATTENTION, _attention)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        thread = ThreadPoolExecutor(1, initializer=torch.set_grad_enabled, initargs=(False,))
        with torch.no_grad(), thread, _Convolutions(), _PlainSizes(thread):
            by_operator = analysis.by_operator()
            not_counted = analysis.unsupported_ops()
    counted = {name: int(count) for name, count in by_operator.items() if count}
    return Flops(by_operator=counted, not_counted={name.removeprefix("aten::"): n for name, n in not_counted.items()})


class _Convolutions(TorchFunctionMode):
    """Calls each convolution by the operator that it is computed with.

    The tracer passes over the usual ones: what it records is this operator, to which they lead on other devices.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.conv1d, torch.conv2d, torch.conv3d):
            return _convolution(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    axes = weight.ndim - 2
    stride, padding, dilation = ([x] * axes if isinstance(x, int) else x for x in (stride, padding, dilation))
    if isinstance(padding, str):
        raise ValueError(f"padding {padding!r} of a convolution is not counted; write it as numbers")
    backend = (False,) * 4  # benchmark, deterministic, cudnn, TF32
    return torch._convolution(input, weight, bias, stride, padding, dilation, False, [0] * axes, groups, *backend)


class _PlainSizes(TorchDispatchMode):
    """Runs every operator that computes, when the tracer has recorded it, in a thread that traces nothing.

    Operators on the meta device are written in Python and expect sizes that are plain numbers; in the thread of the
    tracer each size would be a tensor.
    """

    def __init__(self, thread: ThreadPoolExecutor):
        super().__init__()
        self.thread = thread

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.is_view or func._schema.is_mutable:  # written in C++; autograd wants to see views here
            return func(*args, **kwargs)
        if func is torch.ops.aten.convolution.default:
            raise ValueError("a transposed convolution is not counted: the tracer passes over it")
        if func is torch.ops.aten._convolution.default:
            func, args = torch.ops.aten.convolution.default, args[:9]  # the same, without the choice of a backend
        return self.thread.submit(func, *args, **kwargs).result()


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy of the model on the meta device; no parameter's or buffer's memory is copied on the way.

    Attentions of the copy compute all keys and values, as those do whose FLOPs the papers state.
    """
    replaced = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    replaced |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    model = copy.deepcopy(model, replaced)
    for module in model.modules():
        if isinstance(module, PoolingAttention):
            module.skip_untouched = False
    return model


def _attention(inputs: list, outputs: list) -> Counter[str]:
    """Two products of (queries x keys) over the width of a head.

    ``inputs`` are (query, key, value, attn_mask, dropout_p, is_causal, scale, ...) of the trace. Our attentions append
    channels for relative positions and padding to all three; the scale, ``head_dim ** -0.5``, tells the width without
    them. Relative positions are counted where the queries meet their tables; one-hot keys only gather these numbers.
    """
    *leading, queries, width = inputs[0].type().sizes()
    keys, value_width = inputs[1].type().sizes()[-2], inputs[2].type().sizes()[-1]
    scale = inputs[6].toIValue()
    head_dim = round(scale**-2) if scale else width
    if 1 < head_dim < width:  # scale 1 is that of queries which are scaled already
        width = value_width = head_dim
    products = queries * keys
    for size in leading:
        products *= size
    return Counter({"scaled_dot_product_attention": products * (width + value_width)})
