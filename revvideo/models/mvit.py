"""Multiscale Vision Transformer for video (Fan et al. 2021), version 1: conv pooling, separable positions.

B batch, C channels, T frames, H height, W width, N tokens, D width, K classes.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from revvideo.models.layers import (
    ClassificationHead,
    DropPath,
    LayerNorm,
    Mlp,
    PatchEmbed,
    PositionEmbedding,
    init_weights,
)
from revvideo.models.pooling_attention import Grid, PoolingAttention


@dataclasses.dataclass(frozen=True)
class PatchSpec:
    """Patch embedding: kernel, stride and padding over (T, H, W)."""

    kernel: Grid = (3, 7, 7)
    stride: Grid = (2, 4, 4)
    padding: Grid = (1, 3, 3)


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """One transformer block: widths in and out, heads, pooling of q and of k and v, drop-path rate."""

    dim: int
    dim_out: int
    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    q_kernel: Grid
    kv_kernel: Grid
    q_stride: Grid
    kv_stride: Grid
    drop_path: float

    @property
    def pools_queries(self) -> bool:
        return math.prod(self.q_stride) > 1

    def attention(self, dim_out: int, *, class_token: bool, dropout: float) -> PoolingAttention:
        """The attention of this block, with output width ``dim_out``."""
        return PoolingAttention(
            self.dim,
            dim_out,
            num_heads=self.num_heads,
            q_kernel=self.q_kernel,
            kv_kernel=self.kv_kernel,
            q_stride=self.q_stride,
            kv_stride=self.kv_stride,
            qkv_bias=self.qkv_bias,
            class_token=class_token,
            dropout=dropout,
        )


def plan_blocks(
    *,
    depth: int,
    embed_dim: int,
    num_heads: int,
    dim_mul: Sequence[Sequence[float]] = (),
    head_mul: Sequence[Sequence[float]] = (),
    pool_q_stride: Sequence[Sequence[int]] = (),
    pool_kv_stride: Sequence[Sequence[int]] = (),
    pool_kv_stride_adaptive: Sequence[int] | None = None,
    pool_kvq_kernel: Sequence[int] | None = None,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    drop_path: float = 0.0,
    widen_in_attention: bool = False,
) -> list[BlockSpec]:
    """The blocks that PySlowFast's lists describe.

    ``dim_mul`` and ``head_mul`` hold ``[block, factor]``, the strides ``[block, t, h, w]``. The width changes in the
    attention of the listed block (``widen_in_attention``: reversible models) or in the MLP of the block before it.
    ``pool_kv_stride_adaptive`` is divided by each q stride on the way.

    Raises:
        ValueError: a list names a block that does not exist, or both kv strides are given.
    """
    for name, entries in (("DIM_MUL", dim_mul), ("HEAD_MUL", head_mul), ("POOL_Q_STRIDE", pool_q_stride)):
        if any(not 0 <= entry[0] < depth for entry in entries):
            raise ValueError(f"MVIT.{name} {list(entries)} names a block outside 0..{depth - 1} (MVIT.DEPTH {depth})")
    if pool_kv_stride and pool_kv_stride_adaptive:
        raise ValueError("MVIT.POOL_KV_STRIDE and MVIT.POOL_KV_STRIDE_ADAPTIVE are both given; keep one")
    one = (1, 1, 1)
    width_factor, head_factor = {int(b): f for b, f in dim_mul}, {int(b): f for b, f in head_mul}
    q_strides = {entry[0]: tuple(entry[1:]) for entry in pool_q_stride}
    kv_strides = {entry[0]: tuple(entry[1:]) for entry in pool_kv_stride}
    adaptive = tuple(pool_kv_stride_adaptive) if pool_kv_stride_adaptive else None

    def kernel(stride: Grid) -> Grid:
        return tuple(s + 1 if s > 1 else s for s in stride)

    blocks, dim, heads = [], embed_dim, num_heads
    for i in range(depth):
        heads = round_width(heads, head_factor.get(i, 1.0))
        widening = i if widen_in_attention else i + 1
        dim_out = round_width(
            dim, width_factor.get(widening, 1.0), divisor=_next_heads(heads, head_factor, widening, i)
        )
        q_stride = q_strides.get(i, one)
        if adaptive is not None:
            adaptive = tuple(max(kv // q, 1) for kv, q in zip(adaptive, q_stride, strict=True))
        kv_stride = adaptive if adaptive is not None else kv_strides.get(i, one)
        has_q_pool, has_kv_pool = i in q_strides, adaptive is not None or i in kv_strides
        full = tuple(pool_kvq_kernel) if pool_kvq_kernel else None
        blocks.append(
            BlockSpec(
                dim=dim,
                dim_out=dim_out,
                num_heads=heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                q_kernel=(full or kernel(q_stride)) if has_q_pool else one,
                kv_kernel=(full or kernel(kv_stride)) if has_kv_pool else one,
                q_stride=q_stride,
                kv_stride=kv_stride,
                drop_path=drop_path * i / max(depth - 1, 1),
            )
        )
        dim = dim_out
    return blocks


def _next_heads(heads: int, head_factor: dict[int, float], widening: int, block: int) -> int:
    """Heads that the widened features are split into: the divisor of their width."""
    return heads if widening == block else round_width(heads, head_factor.get(widening, 1.0))


def round_width(width: int, factor: float, *, divisor: int = 1, minimum: int = 1) -> int:
    """``width * factor`` to the nearest multiple of ``divisor`` (half up), never more than 10 % below it."""
    target = width * factor
    rounded = max(minimum, int(target + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * target else rounded)


class MultiscaleBlock(nn.Module):
    """Pooling attention and MLP with pre-norm and skips; the width, if it changes, changes in the MLP."""

    def __init__(self, spec: BlockSpec, *, class_token: bool, dropout: float = 0.0):
        super().__init__()
        self.class_token, self.q_stride = class_token, spec.q_stride
        self.norm1 = LayerNorm(spec.dim)
        self.attn = spec.attention(spec.dim, class_token=class_token, dropout=dropout)
        self.norm2 = LayerNorm(spec.dim)
        self.mlp = Mlp(spec.dim, int(spec.dim * spec.mlp_ratio), spec.dim_out, dropout=dropout)
        self.proj = nn.Linear(spec.dim, spec.dim_out) if spec.dim_out != spec.dim else None
        self.drop_path = DropPath(spec.drop_path)
        self.pools_queries = spec.pools_queries

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """``(B, N, D) -> (B, N', D')`` and the new grid."""
        branch, new_grid = self.attn(self.norm1(x), grid), self.attn.pooled_grid(grid)
        skip = self._pool_skip(x, grid) if self.pools_queries else x
        x = skip + self.drop_path(branch)
        normed = self.norm2(x)
        skip = x if self.proj is None else self.proj(normed)
        return skip + self.drop_path(self.mlp(normed)), new_grid

    def _pool_skip(self, x: Tensor, grid: Grid) -> Tensor:
        token, x = (x[:, :1], x[:, 1:]) if self.class_token else (None, x)
        kernel = [s + 1 if s > 1 else s for s in self.q_stride]
        volume = x.unflatten(1, grid).permute(0, 4, 1, 2, 3)  # (B, D, T, H, W)
        volume = F.max_pool3d(volume, kernel, self.q_stride, [k // 2 for k in kernel])
        x = volume.flatten(2).transpose(1, 2)  # (B, N', D)
        return x if token is None else torch.cat([token, x], dim=1)


class VideoTransformer(PositionEmbedding, nn.Module):
    """What the plain and the reversible MViT share: input, tokens, positions, head and the public interface.

    A subclass sets ``self.norm``, implements `forward_tokens` and ends its constructor with `init_all`.

    Args:
        input_size: clip size (frames, height, width) that the position tables are made for.
        in_channels: channels of the clip.
        embed_dim: width of the tokens.
        patch: the patch embedding.
        class_token: whether a class token is prepended.
        separable_positions: see `PositionEmbedding`.
        init_scheme: see `init_weights`.
    """

    def __init__(
        self,
        *,
        input_size: tuple[int, int, int],
        in_channels: int,
        embed_dim: int,
        patch: PatchSpec,
        class_token: bool,
        separable_positions: bool,
        init_scheme: str = "trunc_normal",
    ):
        super().__init__()
        self.init_scheme = init_scheme
        self.input_size, self.in_channels = tuple(input_size), in_channels
        self.patch_embed = PatchEmbed(in_channels, embed_dim, **dataclasses.asdict(patch))
        self.grid = self.patch_embed.grid(self.input_size)
        self.add_position_tables(self.grid, embed_dim, class_token=class_token, separable=separable_positions)

    def init_all(self) -> None:
        """Initialise every weight (`init_weights`) and the position tables (truncated normal of 0.02)."""
        self.apply(lambda module: init_weights(module, self.init_scheme))
        for table in self.position_tables():
            nn.init.trunc_normal_(table, std=0.02)

    def embed(self, clips: Tensor) -> Tensor:
        """Tokens with positions: ``(B, C, T, H, W) -> (B, N, D)``."""
        expected = (self.in_channels, *self.input_size)
        if clips.ndim != 5 or tuple(clips.shape[1:]) != expected:
            raise ValueError(
                f"clips have shape {tuple(clips.shape)}; this model takes (B, C, T, H, W) = (B, "
                f"{', '.join(map(str, expected))}) (DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE, DATA.INPUT_CHANNEL_NUM)"
            )
        return self.add_positions(self.patch_embed(clips))

    def forward_features(self, clips: Tensor) -> Tensor:
        """Pooled features that the head reads: ``(B, C, T, H, W) -> (B, D)``."""
        return self.forward_tokens(self.embed(clips))

    def forward_head(self, features: Tensor) -> Tensor:
        """``(B, D) -> logits (B, K)``."""
        return self.head(features)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits ``(B, K)`` of float clips ``(B, C, T, H, W)``, in training and in evaluation."""
        return self.forward_head(self.forward_features(clips))

    def no_weight_decay(self) -> set[str]:
        """Fragments of the names of parameters that usually take no weight decay: positions and class token."""
        return {"pos_embed", "cls_token"}

    def layer_groups(self) -> list[list[str]]:
        """Parameter names from the input to the output: stem, one group for each block, the rest (norm and head)."""
        prefixes = [f"{self.blocks_name}.{i}." for i in range(self.depth)]
        names = [name for name, _ in self.named_parameters()]
        stem = [n for n in names if n.startswith(("patch_embed.", "pos_embed", "cls_token"))]
        blocks = [[n for n in names if n.startswith(prefix)] for prefix in prefixes]
        placed = set(stem).union(*blocks)
        return [stem, *blocks, [n for n in names if n not in placed]]


class MViT(VideoTransformer):
    """Multiscale Vision Transformer, ``(B, C, T, H, W) -> logits (B, K)``.

    Args:
        blocks: the architecture (see `plan_blocks`).
        num_classes: K.
        head_dropout: before the last linear layer.
        dropout: after the positions, in each attention and MLP.
        checkpoint_blocks: recompute each block in the backward (activation checkpointing).
        **stem: see `VideoTransformer`.
    """

    blocks_name = "blocks"

    def __init__(
        self,
        *,
        blocks: Sequence[BlockSpec],
        num_classes: int,
        head_dropout: float = 0.0,
        dropout: float = 0.0,
        checkpoint_blocks: bool = False,
        **stem,
    ):
        super().__init__(embed_dim=blocks[0].dim, **stem)
        self.depth = len(blocks)
        self.checkpoint_blocks = checkpoint_blocks
        class_token = self.cls_token is not None
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(MultiscaleBlock(spec, class_token=class_token, dropout=dropout) for spec in blocks)
        self.norm = LayerNorm(blocks[-1].dim_out)
        self.head = ClassificationHead(blocks[-1].dim_out, num_classes, dropout=head_dropout)
        self.init_all()

    def forward_tokens(self, x: Tensor) -> Tensor:
        """``(B, N, D) -> (B, D')``: the class token, or else the mean over the tokens, of the last block's output."""
        x, grid = self.pos_drop(x), self.grid
        for block in self.blocks:
            if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
                x, grid = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x, grid = block(x, grid)
        x = self.norm(x)
        return x[:, 0] if self.cls_token is not None else x.mean(1)
