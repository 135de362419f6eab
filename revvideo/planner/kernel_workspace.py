"""Buffers that CPU kernels take while they run, which no dispatcher sees: they decide the peak of small networks.

Each rule states what the kernel's source (ATen/native) allocates, on as many threads as this process uses.
"""

import functools

import torch
from torch import Tensor

from revvideo.planner.tracked_memory import bf16_products_are_native

aten = torch.ops.aten

FLOAT32_BYTES = 4
KEY_BLOCK = 512  # keys that the fused attention works on at a time
MIXED_TYPES = {
    *(aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor, aten.mul.Tensor, aten.mul_.Tensor),
    *(aten.div.Tensor, aten.div_.Tensor, aten.addcmul.default, aten.addcmul_.default),
}


def cpu_workspace(func, args: tuple, results) -> int:
    """Bytes that the CPU kernel of one call holds beside inputs and results."""
    rule = _RULES.get(func)
    if rule is not None:
        return rule(args, results)
    return _casts(args, results) if func in MIXED_TYPES else 0


def _casts(args: tuple, results) -> int:
    """TensorIterator works on copies of operands in another type than the common one."""
    tensors = [leaf for leaf in (*args, results) if isinstance(leaf, Tensor) and leaf.ndim]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.bool)
    return sum(tensor.numel() * dtype.itemsize for tensor in tensors if tensor.dtype != dtype)


def _sum(args: tuple, results) -> int:
    """A sum into another type casts its input first."""
    return args[0].numel() * results.itemsize if args[0].dtype != results.dtype else 0


def _strided(args: tuple, results) -> int:
    """LayerNorm reads contiguous copies of what is not contiguous."""
    tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_contiguous())


def _product(args: tuple, results) -> int:
    """oneDNN sums bfloat16 up in float32: where the CPU cannot do that itself, in a buffer, matrix by matrix."""
    if results.dtype is not torch.bfloat16 or bf16_products_are_native():
        return 0
    return FLOAT32_BYTES * results.shape[-2:].numel()


def _query_block(queries: int) -> int:
    return min(queries, 256 if queries >= 768 else 64 if queries >= 192 else 32)


def _attention(args: tuple, results) -> int:
    """Scores, running maximum and sum, and output of a block of queries (FlashAttentionKernel.cpp), for each thread."""
    query, key = args[:2]
    block, keys, width = _query_block(query.shape[-2]), min(KEY_BLOCK, key.shape[-2]), query.shape[-1]
    half = block * keys * query.itemsize if query.itemsize < FLOAT32_BYTES else 0
    return torch.get_num_threads() * (FLOAT32_BYTES * (block * keys + 2 * block + block * width) + half)


def _attention_backward(args: tuple, results) -> int:
    """Weights and their gradients for a block of queries, and a sum for each query, for each thread."""
    query, key = args[1:3]
    block, keys = _query_block(query.shape[-2]), min(KEY_BLOCK, key.shape[-2])
    half = 2 * block * keys * query.itemsize if query.itemsize < FLOAT32_BYTES else 0
    if query.dtype is torch.bfloat16 and not bf16_products_are_native():
        half += FLOAT32_BYTES * keys * query.shape[-1]  # as in `_product`, for the gradient of a block of keys
    return torch.get_num_threads() * (FLOAT32_BYTES * (2 * block * keys + block) + half)


_RULES = {
    **dict.fromkeys((aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default), _product),
    aten.sum.dim_IntList: _sum,
    aten.native_layer_norm.default: _strided,
    aten.native_layer_norm_backward.default: _strided,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
