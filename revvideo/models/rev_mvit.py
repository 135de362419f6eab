"""Reversible Multiscale Vision Transformer (Mangalam et al. 2022, section 3.3).

Runs of reversible blocks (equal width and resolution) are joined by stage transitions, which are not reversible: they
fuse the two streams, pool the tokens, widen them, and start the next run with two copies. A transition keeps only its
input, which is the kept output of the run before; its F and G are recomputed in the backward, one after the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revvideo.models.layers import ClassificationHead, LayerNorm, Mlp, drop_path_mask
from revvideo.models.mvit import BlockSpec, VideoTransformer
from revvideo.models.pooling_attention import Grid
from revvideo.models.reversible import ReversibleBlock, check_backprop, run_blocks

STAGE_DROP_PATH_MODES = ("branches", "output")


class AttentionBranch(nn.Module):
    """F: LayerNorm and pooling attention, without a skip; ``(B, N, D) -> (B, N', D')``."""

    def __init__(self, spec: BlockSpec, *, dropout: float):
        super().__init__()
        self.norm = LayerNorm(spec.dim)
        self.attn = spec.attention(spec.dim_out, class_token=False, dropout=dropout)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.attn(self.norm(x), grid)


class MlpBranch(nn.Module):
    """G: LayerNorm and MLP, without a skip; ``(B, N, D) -> (B, N, D)``."""

    def __init__(self, dim: int, mlp_ratio: float):
        super().__init__()
        self.norm = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x))


class StageTransition(nn.Module):
    """Fuses both streams, pools and widens: two ``(B, N, D)`` streams to one ``(B, N', D')``.

    ``z = (x1 + x2) / 2``, ``h = pool_q(res_proj(z)) + F(z)``, ``y = h + G(h)``. The skip path shares the depthwise
    convolution and the norm that pool the queries.

    Args:
        spec: the block; it pools the queries.
        dropout: in F.
        drop_path_mode: ``"branches"`` drops F and G of a sample; ``"output"`` drops the finished output, skip included,
            as PySlowFast does: the sample is zero from here on, and LayerNorm magnifies the rounding of its rebuilt
            streams by up to ``1 / sqrt(eps) = 1000``, so its gradients are not those of plain backprop.

    Raises:
        ValueError: ``spec`` does not pool, or an unknown ``drop_path_mode``.
    """

    def __init__(self, spec: BlockSpec, *, dropout: float = 0.0, drop_path_mode: str = "branches"):
        super().__init__()
        if drop_path_mode not in STAGE_DROP_PATH_MODES:
            raise ValueError(f"REV.STAGE_DROPPATH is {drop_path_mode!r}; expected one of {STAGE_DROP_PATH_MODES}")
        if not spec.pools_queries:
            raise ValueError("a stage transition (MVIT.REV.BUFFER_LAYERS) needs a q stride (MVIT.POOL_Q_STRIDE)")
        self.F = AttentionBranch(spec, dropout=dropout)
        self.G = MlpBranch(spec.dim_out, spec.mlp_ratio)
        self.res_proj = nn.Linear(spec.dim, spec.dim_out) if spec.dim_out != spec.dim else nn.Identity()
        self.drop_path, self.drop_path_mode = spec.drop_path, drop_path_mode

    def forward(self, x1: Tensor, x2: Tensor, grid: Grid, *, recompute: bool) -> tuple[Tensor, Grid]:
        """Returns ``y`` (B, N', D') and its grid; ``recompute`` saves memory at the cost of a second forward."""
        attention = self.F.attn
        rate = self.drop_path if self.training else 0.0
        by_branch = rate if self.drop_path_mode == "branches" else 0.0
        masks = [drop_path_mask(x1, p) for p in (by_branch, by_branch, rate - by_branch)]

        def attend(x1: Tensor, x2: Tensor) -> Tensor:
            fused = (x1 + x2) * 0.5
            skip = attention.pool(self.res_proj(fused), grid, attention.pool_q, attention.norm_q)
            return _add(skip, self.F(fused, grid), masks[0])

        def mix(h: Tensor) -> Tensor:
            return _add(h, self.G(h), masks[1])

        if recompute and torch.is_grad_enabled():
            y = checkpoint(mix, checkpoint(attend, x1, x2, use_reentrant=False), use_reentrant=False)
        else:
            y = mix(attend(x1, x2))
        return (y if masks[2] is None else y * masks[2]), attention.pooled_grid(grid)


def _add(skip: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
    return skip + branch if mask is None else skip + branch * mask


class RevBackbone(nn.Module):
    """Blocks and stage transitions in order, under the official names ``layers.N.{F,G,res_proj}``.

    Args:
        blocks: the architecture.
        transitions: indices of the blocks that are stage transitions; every block that pools queries or widens must be.
        backprop: ``"reversible"`` or ``"plain"``, see `ReversibleSequence`.
        dropout: in F and after the last block.
        drop_path_mode: see `StageTransition`.
        shared_mask: one drop-path mask for F and G of a block, as in PySlowFast.

    Raises:
        ValueError: a transition that does not exist, or a block that changes width or resolution and is none.
    """

    def __init__(
        self,
        blocks: Sequence[BlockSpec],
        transitions: Sequence[int],
        *,
        backprop: str,
        dropout: float,
        drop_path_mode: str,
        shared_mask: bool,
    ):
        super().__init__()
        if not set(transitions) <= set(range(len(blocks))):
            raise ValueError(
                f"MVIT.REV.BUFFER_LAYERS {list(transitions)} names a block outside 0..{len(blocks) - 1} (MVIT.DEPTH)"
            )
        self.backprop = check_backprop(backprop)
        self.layers = nn.ModuleList()
        for i, spec in enumerate(blocks):
            if i in transitions:
                self.layers.append(StageTransition(spec, dropout=dropout, drop_path_mode=drop_path_mode))
            elif spec.pools_queries or spec.dim_out != spec.dim:
                raise ValueError(
                    f"block {i} changes the width ({spec.dim} -> {spec.dim_out}) or the resolution (q stride "
                    f"{spec.q_stride}), so it cannot be reversible; list it in MVIT.REV.BUFFER_LAYERS "
                    f"{list(transitions)}"
                )
            else:
                F, G = AttentionBranch(spec, dropout=dropout), MlpBranch(spec.dim, spec.mlp_ratio)
                self.layers.append(ReversibleBlock(F, G, drop_path=spec.drop_path, shared_mask=shared_mask))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """``(B, N, D) -> (B, N', 2 D')``: both streams of the last run, concatenated."""
        x1 = x2 = x
        run: list[ReversibleBlock] = []
        for layer in [*self.layers, None]:
            if isinstance(layer, ReversibleBlock):
                run.append(layer)
                continue
            if run:
                (x1, x2), _ = run_blocks(run, x1, x2, backprop=self.backprop, f_args=(grid,))
                run = []
            if layer is not None:
                x1, grid = layer(x1, x2, grid, recompute=self.backprop == "reversible")
                x2 = x1
        return self.dropout(torch.cat([x1, x2], dim=-1))


class RevMViT(VideoTransformer):
    """Reversible MViT, ``(B, C, T, H, W) -> logits (B, K)``; it has no class token.

    Args:
        blocks: the architecture (see `plan_blocks`, with ``widen_in_attention``).
        transitions: indices of the stage transitions.
        num_classes: K.
        backprop: ``"reversible"``, or ``"plain"`` for the same network with ordinary backprop.
        head_dropout: before the last linear layer.
        dropout: in the attentions and after the last block.
        stage_drop_path: see `StageTransition`.
        shared_mask: see `RevBackbone`.
        **stem: see `VideoTransformer`.
    """

    blocks_name = "rev_backbone.layers"

    def __init__(
        self,
        *,
        blocks: Sequence[BlockSpec],
        transitions: Sequence[int],
        num_classes: int,
        backprop: str = "reversible",
        head_dropout: float = 0.0,
        dropout: float = 0.0,
        stage_drop_path: str = "branches",
        shared_mask: bool = False,
        **stem,
    ):
        super().__init__(embed_dim=blocks[0].dim, class_token=False, **stem)
        self.depth = len(blocks)
        self.pos_drop = nn.Dropout(dropout)
        self.rev_backbone = RevBackbone(
            blocks,
            transitions,
            backprop=backprop,
            dropout=dropout,
            drop_path_mode=stage_drop_path,
            shared_mask=shared_mask,
        )
        width = 2 * blocks[-1].dim_out
        self.norm = LayerNorm(width)
        self.head = ClassificationHead(width, num_classes, dropout=head_dropout)
        self.init_all()

    def forward_tokens(self, x: Tensor) -> Tensor:
        """``(B, N, D) -> (B, 2 D')``: norm over the concatenated streams, then the mean over the tokens."""
        return self.norm(self.rev_backbone(self.pos_drop(x), self.grid)).mean(1)
