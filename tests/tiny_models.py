"""MViT and Rev-MViT with two stage transitions, small enough for any test: clips (B, 3, 8, 32, 32), 5 classes."""

import dataclasses

import torch

from revvideo.models.block_plan import BlockSpec, plan_blocks
from revvideo.models.input_spec import InputSpec
from revvideo.models.mvit import MViT
from revvideo.models.rev_mvit import RevMViT
from revvideo.models.reversible import BackpropOptions
from revvideo.models.video_transformer import PatchSpec

TRANSITIONS = [1, 3]
CLIP_SHAPE = (3, 8, 32, 32)
NUM_CLASSES = 5
_COMMON = {
    "num_classes": NUM_CLASSES,
    "input_spec": InputSpec(frames=8, size=(32, 32)),
    "patch": PatchSpec(),
    "positions": "separable",
}


def tiny_blocks(*, drop_path: float = 0.0, reversible: bool = True) -> list[BlockSpec]:
    """Six blocks; width and heads double, the resolution halves at blocks 1 and 3."""
    return plan_blocks(
        depth=6,
        embed_dim=8,
        num_heads=1,
        dim_mul=[[i, 2.0] for i in TRANSITIONS],
        head_mul=[[i, 2.0] for i in TRANSITIONS],
        pool_q_stride=[[i, 1, 2, 2] for i in TRANSITIONS],
        pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3],
        qkv_bias=not reversible,
        drop_path=drop_path,
        widen_in_attention=reversible,
    )


def tiny_rev_mvit(*, drop_path: float = 0.0, **options) -> RevMViT:
    """The same weights at every call, whatever the options; those of `BackpropOptions` by their names."""
    torch.manual_seed(0)
    backprop = {f.name: options.pop(f.name) for f in dataclasses.fields(BackpropOptions) if f.name in options}
    network = {"blocks": tiny_blocks(drop_path=drop_path), "transitions": TRANSITIONS, **_COMMON}
    return RevMViT(**network | options, backprop=BackpropOptions(**backprop))


def tiny_mvit(*, drop_path: float = 0.0, **options) -> MViT:
    """The same weights at every call, whatever the options."""
    torch.manual_seed(0)
    blocks = tiny_blocks(drop_path=drop_path, reversible=False)
    return MViT(**{"blocks": blocks, "class_token": True} | _COMMON | options)
