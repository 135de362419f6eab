"""The projection of an attention to queries, keys and values: one fused tensor ``qkv`` or three, ``q``, ``k``, ``v``.

The rows of the fused one are those of q, then of k, then of v: of the weight ``(3 D', D)`` and of the bias ``(3 D',)``.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_FUSED = re.compile(r"(.*\.)?qkv\.(weight|bias)")
_PART = re.compile(r"(.*\.)?[qkv]\.(weight|bias)")


def part_names(name: str) -> list[str] | None:
    """``a.qkv.weight`` -> ``[a.q.weight, a.k.weight, a.v.weight]``; None for other names."""
    match = _FUSED.fullmatch(name)
    return match and [f"{match[1] or ''}{part}.{match[2]}" for part in "qkv"]


def fused_name(name: str) -> str | None:
    """``a.k.weight`` -> ``a.qkv.weight``; None for names that are no part."""
    match = _PART.fullmatch(name)
    return match and f"{match[1] or ''}qkv.{match[2]}"


def separate_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with every ``qkv`` as three, which share its memory."""
    separated = {}
    for name, tensor in tensors.items():
        parts = part_names(name)
        if parts and tensor.shape[0] % 3 == 0:
            separated.update(zip(parts, tensor.chunk(3), strict=True))
        else:
            separated[name] = tensor
    return separated


def fuse_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with every ``q``, ``k``, ``v`` that are there together as one ``qkv``, in the place of the first."""
    fused = {}
    for name, tensor in tensors.items():
        whole = fused_name(name)
        parts = part_names(whole) if whole else None
        if parts and all(part in tensors for part in parts):
            if whole not in fused:
                fused[whole] = torch.cat([tensors[part] for part in parts])
        else:
            fused[name] = tensor
    return fused
