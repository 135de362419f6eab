"""Multiscale Vision Transformers, version 1 (Fan et al. 2021) and 2 (Li et al. 2022), for video and images.

B batch, C channels, T frames, H height, W width, N tokens, D width, K classes.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revvideo.models.assemble import assemble, every_block, three_transitions
from revvideo.models.block_plan import BlockSpec, nominal_grids
from revvideo.models.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from revvideo.models.layers import DropPath, LayerNorm, Mlp
from revvideo.models.pooling_attention import DEFAULT_ATTENTION, AttentionOptions
from revvideo.models.registry import register_model
from revvideo.models.resize_positions import Grid
from revvideo.models.token_pooling import max_pool_tokens
from revvideo.models.video_transformer import PatchSpec, VideoTransformer


class MultiscaleBlock(nn.Module):
    """Pooling attention and MLP with pre-norm and skips.

    ``h = pool(s) + gamma_1 * attn(norm1(x))`` with ``s = x``, or ``proj(norm1(x))`` where the attention widens;
    ``y = t + gamma_2 * mlp(norm2(h))`` with ``t = h``, or ``proj(norm2(h))`` where the MLP widens.

    Args:
        spec: the block.
        grid: (T, H, W) that relative positions are made for.
        widen_in_attention: whether a change of the width happens in the attention or in the MLP.
        class_token: whether token 0 is a class token.
        dropout: after the attention and in the MLP.
        layer_scale: initial value of ``gamma_1`` and ``gamma_2`` (Touvron et al. 2021); 0: none.
        options: of the attention.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        grid: Grid,
        widen_in_attention: bool,
        class_token: bool,
        dropout: float = 0.0,
        layer_scale: float = 0.0,
        options: AttentionOptions = DEFAULT_ATTENTION,
    ):
        super().__init__()
        width = spec.dim_out if widen_in_attention else spec.dim  # between attention and MLP
        self.class_token, self.q_stride, self.pools = class_token, spec.q_stride, spec.pools_queries
        self.widen_in_attention = widen_in_attention
        self.norm1 = LayerNorm(spec.dim)
        self.attn = spec.attention(width, grid=grid, class_token=class_token, dropout=dropout, options=options)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, int(width * spec.mlp_ratio), spec.dim_out, dropout=dropout)
        self.proj = nn.Linear(spec.dim, spec.dim_out) if spec.dim_out != spec.dim else None
        self.drop_path = DropPath(spec.drop_path)
        self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None
        self.gamma_2 = nn.Parameter(torch.full((spec.dim_out,), layer_scale)) if layer_scale else None

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Tokens ``x`` (B, N, dim) of ``grid`` to (B, N', dim_out) and their grid."""
        normed = self.norm1(x)
        attended = self.attn(normed, grid)  # (B, N', width)
        if self.proj is not None and self.widen_in_attention:
            x = self.proj(normed)
        if self.pools:
            x = max_pool_tokens(x, grid, self.q_stride, class_token=self.class_token)  # (B, N', width)
        x = x + self.drop_path(attended if self.gamma_1 is None else self.gamma_1 * attended)
        normed = self.norm2(x)
        mixed = self.mlp(normed)  # (B, N', dim_out)
        if self.proj is not None and not self.widen_in_attention:
            x = self.proj(normed)
        x = x + self.drop_path(mixed if self.gamma_2 is None else self.gamma_2 * mixed)
        return x, self.attn.pooled_grid(grid)


class MViT(VideoTransformer):
    """Multiscale Vision Transformer, ``(B, C, T, H, W) -> logits (B, K)``; without pooling it is a plain ViT.

    Args:
        blocks: the architecture (see `plan_blocks`).
        num_classes: K.
        widen_in_attention: as in `plan_blocks`.
        mean_pooling: classify the mean of the tokens, then normed, instead of the normed class token.
        head_dropout: before the last linear layer.
        head_init_scale: factor on the classifier's initial weights.
        detach_head: train the classifier only.
        dropout: after the positions, in each attention and MLP.
        layer_scale: see `MultiscaleBlock`.
        attention: see `AttentionOptions`.
        checkpoint_blocks: recompute each block in the backward (activation checkpointing).
        **stem: see `VideoTransformer`.
    """

    blocks_name = "blocks"

    def __init__(
        self,
        *,
        blocks: Sequence[BlockSpec],
        num_classes: int,
        widen_in_attention: bool = False,
        mean_pooling: bool = False,
        head_dropout: float = 0.0,
        head_init_scale: float = 1.0,
        detach_head: bool = False,
        dropout: float = 0.0,
        layer_scale: float = 0.0,
        attention: AttentionOptions = DEFAULT_ATTENTION,
        checkpoint_blocks: bool = False,
        class_token: bool = True,
        **stem,
    ):
        super().__init__(blocks=blocks, class_token=class_token, dropout=dropout, **stem)
        self.checkpoint_blocks, self.mean_pooling = checkpoint_blocks, mean_pooling
        self.blocks = nn.ModuleList(
            MultiscaleBlock(
                spec,
                grid=grid,
                widen_in_attention=widen_in_attention,
                class_token=class_token,
                dropout=dropout,
                layer_scale=layer_scale,
                options=attention,
            )
            for spec, grid in zip(blocks, nominal_grids(blocks, self.grid), strict=True)
        )
        width = blocks[-1].dim_out
        self.norm = LayerNorm(width)
        self.add_head(width, num_classes, dropout=head_dropout, init_scale=head_init_scale, detach=detach_head)
        self.init_all()

    def run_blocks(self, x: Tensor, wanted: Collection[int] = ()) -> tuple[Tensor, list[tuple[Tensor, Grid]]]:
        grid, kept = self.grid, []
        for i, block in enumerate(self.blocks):
            if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
                x, grid = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x, grid = block(x, grid)
            if i in wanted:
                kept.append((x if self.cls_token is None else x[:, 1:], grid))
        return x, kept

    def pool_tokens(self, x: Tensor) -> Tensor:
        """The normed class token; or the norm of the mean of the other tokens; or, without either, the normed mean."""
        if self.mean_pooling:
            return self.norm((x if self.cls_token is None else x[:, 1:]).mean(1))
        x = self.norm(x)
        return x[:, 0] if self.cls_token is not None else x.mean(1)

    def block_width(self, block: int) -> int:
        return self.blocks[block].mlp.fc2.out_features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward instead of keeping its activations."""
        self.checkpoint_blocks = enable


# The official networks. MViT-B (Fan et al. 2021, table 3) and MViTv2 (Li et al. 2022, tables 1 and 10).

_V1 = {"embed_dim": 96, "num_heads": 1, "patch": PatchSpec(), "positions": "separable", "class_token": True}
_V2 = _V1 | {"positions": "none", "widen_in_attention": True, "residual_pooling": True, "relative_space": True}
_V2_VIDEO = _V2 | {"relative_time": True, "pool_kv_stride_adaptive": (1, 8, 8), "pool_kvq_kernel": (3, 3, 3)}
_IMAGE = {
    "input_spec": InputSpec(frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, image=True),
    "patch": PatchSpec((7, 7), (4, 4), (3, 3)),
    "num_classes": 1000,
    "pool_kvq_kernel": (1, 3, 3),
}
_V2_IMAGE = _V2 | _IMAGE | {"class_token": False}
_KINETICS = {"num_classes": 400, "head_dropout": 0.5}


@register_model
def mvit_b_16x4(*, depth: int = 16, **overrides) -> MViT:
    """MViT-B 16x4 of Kinetics-400: 36.61 M parameters, 70.8 GFLOPs (PySlowFast MVIT_B_16x4_CONV)."""
    pooling = {"pool_kv_stride_adaptive": (1, 8, 8), "pool_kvq_kernel": (3, 3, 3)}
    network = _V1 | _KINETICS | pooling | three_transitions(depth, 1, 3, -2)
    return assemble(MViT, network | {"input_spec": InputSpec(16, 4), "drop_path": 0.2}, overrides)


@register_model
def mvit_b_32x3(**overrides) -> MViT:
    """MViT-B 32x3 of Kinetics-400 with 16 blocks: 36.61 M parameters, 170 GFLOPs (as in PyTorchVideo's zoo)."""
    return mvit_b_16x4(**({"input_spec": InputSpec(32, 3), "drop_path": 0.3} | overrides))


@register_model
def mvit_b_32x3_d24(*, depth: int = 24, **overrides) -> MViT:
    """MViT-B-24 32x3: 53.12 M parameters, 236 GFLOPs (PySlowFast MVIT_B_32x3_CONV; pooling kernels of stride + 1)."""
    network = _V1 | _KINETICS | three_transitions(depth, 2, 5, -3)
    options = {"input_spec": InputSpec(32, 3), "drop_path": 0.3, "pool_kv_stride_adaptive": (1, 8, 8)}
    return assemble(MViT, network | options, overrides)


@register_model
def mvit_b(*, depth: int = 16, **overrides) -> MViT:
    """MViT-B of ImageNet-1K: 36.98 M parameters, 7.8 GFLOPs (PySlowFast MVIT_B_16_CONV)."""
    network = _V1 | _IMAGE | three_transitions(depth, 1, 3, -2)
    options = {"positions": "joint", "drop_path": 0.1, "pool_kv_stride_adaptive": (1, 4, 4)}
    return assemble(MViT, network | options, overrides)


@register_model
def mvitv2_s_16x4(*, depth: int = 16, **overrides) -> MViT:
    """MViTv2-S 16x4 of Kinetics-400: 34.54 M parameters, 64.5 GFLOPs (PySlowFast MVITv2_S_16x4)."""
    network = _V2_VIDEO | _KINETICS | every_block(three_transitions(depth, 1, 3, -2), depth)
    return assemble(MViT, network | {"input_spec": InputSpec(16, 4), "drop_path": 0.2}, overrides)


@register_model
def mvitv2_b_32x3(*, depth: int = 24, **overrides) -> MViT:
    """MViTv2-B 32x3 of Kinetics-400: 51.23 M parameters, 225 GFLOPs (PySlowFast MVITv2_B_32x3)."""
    network = _V2_VIDEO | _KINETICS | every_block(three_transitions(depth, 2, 5, -3), depth)
    return assemble(MViT, network | {"input_spec": InputSpec(32, 3), "drop_path": 0.3}, overrides)


@register_model
def mvitv2_l_40x3(*, depth: int = 48, **overrides) -> MViT:
    """MViTv2-L 40x3, 312 px, of Kinetics-400: 213.4 M parameters, 2823 GFLOPs (PySlowFast MVITv2_L_40x3_test)."""
    network = _V2_VIDEO | _KINETICS | every_block(three_transitions(depth, 2, 8, -4), depth)
    spec = InputSpec(40, 3, (312, 312), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    options = {"embed_dim": 144, "num_heads": 2, "checkpoint_blocks": True, "input_spec": spec, "drop_path": 0.75}
    return assemble(MViT, network | options, overrides)


@register_model
def mvitv2_t(*, depth: int = 10, **overrides) -> MViT:
    """MViTv2-T of ImageNet-1K: 24.17 M parameters, 4.7 GFLOPs (PySlowFast ImageNet/MVITv2_T)."""
    network = _V2_IMAGE | every_block(three_transitions(depth, 1, 3, -2), depth)
    return assemble(MViT, network | {"drop_path": 0.1, "pool_kv_stride_adaptive": (1, 4, 4)}, overrides)


@register_model
def mvitv2_s(*, depth: int = 16, **overrides) -> MViT:
    """MViTv2-S of ImageNet-1K: 34.87 M parameters, 7.0 GFLOPs (PySlowFast ImageNet/MVITv2_S)."""
    return mvitv2_t(depth=depth, **overrides)


@register_model
def mvitv2_b(*, depth: int = 24, **overrides) -> MViT:
    """MViTv2-B of ImageNet-1K: 51.47 M parameters, 10.2 GFLOPs (PySlowFast ImageNet/MVITv2_B)."""
    network = _V2_IMAGE | every_block(three_transitions(depth, 2, 5, -3), depth)
    return assemble(MViT, network | {"drop_path": 0.3, "pool_kv_stride_adaptive": (1, 4, 4)}, overrides)
