"""Outputs of attention that a recomputation takes from the forward instead of computing them again.

Of all that a branch computes, attention costs most time for each byte of its result. While a branch runs for the first
time, `RecordAttention` notes what the fused attention operators return (output, log-sum-exp, random state); when it
runs again, `ReuseAttention` returns these instead. Both act below autograd, so the second run builds the usual graph,
on the recomputed queries, keys and values. Attention without a fused operator is computed again.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_NAMES = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
_TENSOR = object()  # stands for a tensor in the layout of a result
_OPERATORS = {getattr(torch.ops.aten, name).default for name in _NAMES if hasattr(torch.ops.aten, name)}


class RecordAttention(TorchDispatchMode):
    """Notes the results of attention operators: ``tensors``, all in one list, and how they belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.layouts: list[tuple[list, object]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in _OPERATORS:
            return func(*args, **(kwargs or {}))
        result = func(*_with_log_sum_exp(func, args), **(kwargs or {}))
        leaves, structure = tree_flatten(result)
        self.layouts.append(([_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure))
        self.tensors += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return result


class ReuseAttention(TorchDispatchMode):
    """Returns, call after call, what a `RecordAttention` noted.

    Args:
        layouts: of the recorder.
        tensors: of the recorder.
    """

    def __init__(self, layouts: list[tuple[list, object]], tensors: list[Tensor]) -> None:
        super().__init__()
        self.layouts, self.tensors = iter(layouts), iter(tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in _OPERATORS:
            return func(*args, **(kwargs or {}))
        leaves, structure = next(self.layouts)
        # Aliases: autograd makes the result part of its graph.
        leaves = [next(self.tensors).detach() if leaf is _TENSOR else leaf for leaf in leaves]
        return tree_unflatten(leaves, structure)


def _with_log_sum_exp(func, args: tuple) -> tuple:
    """The arguments, asking for the log-sum-exp that the backward needs: without gradients some operators skip it."""
    names = [argument.name for argument in func._schema.arguments]
    if "compute_log_sumexp" not in names:
        return args
    position = names.index("compute_log_sumexp")
    return (*args[:position], True, *args[position + 1 :])
