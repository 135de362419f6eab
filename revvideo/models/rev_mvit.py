"""Reversible Multiscale Vision Transformer (Mangalam et al. 2022, section 3.3).

Runs of reversible blocks (equal width and resolution) are joined by stage transitions, which are not reversible: they
fuse the two streams, pool the tokens, widen them, and start the next run with two copies. A transition keeps only its
input, which is the kept output of the run before; its F and G are recomputed in the backward, one after the other.
"""

import dataclasses
import itertools
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revvideo.models.assemble import assemble, every_block, three_transitions
from revvideo.models.block_plan import BlockSpec, nominal_grids
from revvideo.models.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from revvideo.models.layers import LayerNorm, Mlp, drop_path_mask
from revvideo.models.pooling_attention import DEFAULT_ATTENTION, AttentionOptions, Grid, max_pool_tokens
from revvideo.models.registry import register_model
from revvideo.models.reversible import ReversibleBlock, check_backprop, run_blocks
from revvideo.models.stream_fusion import StreamFusion
from revvideo.models.video_transformer import PatchSpec, VideoTransformer

STAGE_DROP_PATH_MODES = ("branches", "output")
SKIP_POOLING_MODES = ("conv", "max")


class AttentionBranch(nn.Module):
    """F: LayerNorm and pooling attention, without a skip; ``(B, N, D) -> (B, N', D')``."""

    def __init__(self, spec: BlockSpec, *, grid: Grid, dropout: float, options: AttentionOptions):
        super().__init__()
        self.norm = LayerNorm(spec.dim)
        self.attn = spec.attention(spec.dim_out, grid=grid, class_token=False, dropout=dropout, options=options)

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

    ``z = fuse(x1, x2)``, ``h = pool(res_proj(z)) + F(z)``, ``y = h + G(h)`` (``res_proj(pool(z))`` where the attention
    pools first). The skip path is pooled by the convolution and the norm of the queries, or by max pooling.

    Args:
        spec: the block, of streams of width ``spec.dim``.
        grid: (T, H, W) that relative positions are made for.
        dropout: in F.
        options: of the attention.
        fusion: of the streams, see `StreamFusion`.
        skip_pooling: ``"conv"`` or ``"max"``.
        drop_path_mode: ``"branches"`` drops F and G of a sample; ``"output"`` drops the finished output, skip included,
            as PySlowFast does: the sample is zero from here on, and LayerNorm magnifies the rounding of its rebuilt
            streams by up to ``1 / sqrt(eps) = 1000``, so its gradients are not those of plain backprop.

    Raises:
        ValueError: an unknown ``drop_path_mode``, ``skip_pooling`` or ``fusion``.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        grid: Grid,
        dropout: float,
        options: AttentionOptions,
        fusion: str,
        skip_pooling: str,
        drop_path_mode: str,
    ):
        super().__init__()
        if drop_path_mode not in STAGE_DROP_PATH_MODES:
            raise ValueError(f"REV.STAGE_DROPPATH is {drop_path_mode!r}; expected one of {STAGE_DROP_PATH_MODES}")
        if skip_pooling not in SKIP_POOLING_MODES:
            raise ValueError(f"MVIT.REV.RES_PATH is {skip_pooling!r}; expected one of {SKIP_POOLING_MODES}")
        self.pre_q_fuse = StreamFusion(fusion, spec.dim)
        spec = dataclasses.replace(spec, dim=self.pre_q_fuse.width)
        self.F = AttentionBranch(spec, grid=grid, dropout=dropout, options=options)
        self.G = MlpBranch(spec.dim_out, spec.mlp_ratio)
        self.res_proj = nn.Linear(spec.dim, spec.dim_out) if spec.dim_out != spec.dim else nn.Identity()
        self.max_pool_stride = spec.q_stride if skip_pooling == "max" else None
        self.drop_path, self.drop_path_mode = spec.drop_path, drop_path_mode

    def forward(self, x1: Tensor, x2: Tensor, grid: Grid, *, recompute: bool) -> tuple[Tensor, Grid]:
        """Returns ``y`` (B, N', D') and its grid; ``recompute`` saves memory at the cost of a second forward."""
        rate = self.drop_path if self.training else 0.0
        by_branch = rate if self.drop_path_mode == "branches" else 0.0
        masks = [drop_path_mask(x1, p) for p in (by_branch, by_branch, rate - by_branch)]

        def attend(x1: Tensor, x2: Tensor) -> Tensor:
            fused = self.pre_q_fuse(x1, x2)
            return _add(self._skip(fused, grid), self.F(fused, grid), masks[0])

        def mix(h: Tensor) -> Tensor:
            return _add(h, self.G(h), masks[1])

        if recompute and torch.is_grad_enabled():
            y = checkpoint(mix, checkpoint(attend, x1, x2, use_reentrant=False), use_reentrant=False)
        else:
            y = mix(attend(x1, x2))
        return (y if masks[2] is None else y * masks[2]), self.F.attn.pooled_grid(grid)

    def _skip(self, z: Tensor, grid: Grid) -> Tensor:
        """The skip path: ``(B, N, dim) -> (B, N', dim_out)``."""
        attention = self.F.attn
        pools_first = attention.options.pool_first
        if not pools_first:
            z = self.res_proj(z)
        if self.max_pool_stride is None:
            z = attention.pool_like_queries(z, grid)
        else:
            z = max_pool_tokens(z, grid, self.max_pool_stride, class_token=False)
        return self.res_proj(z) if pools_first else z


def _add(skip: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
    return skip + branch if mask is None else skip + branch * mask


class RevBackbone(nn.Module):
    """Blocks and stage transitions in order, under the official names ``layers.N.{F,G,res_proj}``.

    Args:
        blocks: the architecture.
        transitions: indices of the blocks that are stage transitions; every block that pools queries or widens must be.
        grids: (T, H, W) before each block, for relative positions.
        backprop: ``"reversible"`` or ``"plain"``, see `ReversibleSequence`.
        dropout: in F.
        options: of the attentions.
        shared_mask: one drop-path mask for F and G of a block, as in PySlowFast.
        **transition: ``fusion``, ``skip_pooling`` and ``drop_path_mode`` of each `StageTransition`.

    Raises:
        ValueError: a transition that does not exist, or a block that changes width or resolution and is none.
    """

    def __init__(
        self,
        blocks: Sequence[BlockSpec],
        transitions: Sequence[int],
        *,
        grids: Sequence[Grid],
        backprop: str,
        dropout: float,
        options: AttentionOptions,
        shared_mask: bool,
        **transition,
    ):
        super().__init__()
        if len(set(transitions)) != len(transitions):
            raise ValueError(f"MVIT.REV.BUFFER_LAYERS {list(transitions)} names a block twice")
        if not set(transitions) <= set(range(len(blocks))):
            raise ValueError(
                f"MVIT.REV.BUFFER_LAYERS {list(transitions)} names a block outside 0..{len(blocks) - 1} (MVIT.DEPTH)"
            )
        self.backprop = check_backprop(backprop)
        self.widths = [spec.dim_out for spec in blocks]
        self.layers = nn.ModuleList()
        for i, (spec, grid) in enumerate(zip(blocks, grids, strict=True)):
            branch = {"grid": grid, "dropout": dropout, "options": options}
            if i in transitions:
                self.layers.append(StageTransition(spec, **branch, **transition))
            elif spec.pools_queries or spec.dim_out != spec.dim:
                raise ValueError(
                    f"block {i} changes the width ({spec.dim} -> {spec.dim_out}) or the resolution (q stride "
                    f"{spec.q_stride}), so it cannot be reversible; list it in MVIT.REV.BUFFER_LAYERS "
                    f"{list(transitions)}"
                )
            else:
                F, G = AttentionBranch(spec, **branch), MlpBranch(spec.dim, spec.mlp_ratio)
                self.layers.append(ReversibleBlock(F, G, drop_path=spec.drop_path, shared_mask=shared_mask))
        # First and end of each transition and of each run of reversible blocks.
        edges = sorted({0, len(blocks), *transitions, *(i + 1 for i in transitions)})
        self._segments = list(itertools.pairwise(edges))

    def forward(
        self, x: Tensor, grid: Grid, wanted: Collection[int] = ()
    ) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor, Grid]]]:
        """``(B, N, D)`` to both streams (B, N', D') of the last block, and those after the blocks ``wanted``."""
        x1 = x2 = x
        kept: list[tuple[Tensor, Tensor, Grid]] = []
        for start, end in self._segments:
            layers = list(self.layers[start:end])
            if isinstance(layers[0], StageTransition):
                x1, grid = layers[0](x1, x2, grid, recompute=self.backprop == "reversible")
                x2 = x1
                kept += [(x1, x2, grid)] if start in wanted else []
                continue
            inside = [i - start for i in range(start, end) if i in wanted]
            (x1, x2), pairs = run_blocks(layers, x1, x2, backprop=self.backprop, f_args=(grid,), intermediates=inside)
            kept += [(*pair, grid) for pair in pairs]
        return (x1, x2), kept


class RevMViT(VideoTransformer):
    """Reversible MViT, ``(B, C, T, H, W) -> logits (B, K)``; it has no class token. Without pooling it is a Rev-ViT.

    A reversible block is ``y1 = x1 + F(x2)``, ``y2 = x2 + G(y1)`` with F = attention of LayerNorm and G = MLP of
    LayerNorm. The reversible MViTv2 has the same equations: relative positions and residual pooling (the pooled queries
    added to what is attended, before the output projection) are parts of F and change nothing outside of it, so that F
    is still a function of ``x2`` alone and the block still inverts.

    Args:
        blocks: the architecture (see `plan_blocks`, with ``widen_in_attention``).
        transitions: indices of the stage transitions.
        num_classes: K.
        backprop: ``"reversible"``, or ``"plain"`` for the same network with ordinary backprop.
        respath_fuse: fusion of the streams before the head, see `StreamFusion`. The norm of the tokens comes before a
            concatenating fusion (as in PySlowFast) and after any other.
        pre_q_fusion, res_path, stage_drop_path: of the transitions, see `StageTransition`.
        shared_mask: see `RevBackbone`.
        mean_pooling: norm after the mean over the tokens instead of before.
        head_dropout: before the last linear layer.
        head_init_scale: factor on the classifier's initial weights.
        detach_head: train the classifier only.
        dropout: after the positions, in the attentions and after the last block.
        attention: see `AttentionOptions`.
        **stem: see `VideoTransformer`.
    """

    blocks_name = "rev_backbone.layers"
    reversible = True
    fixed_options = frozenset({"class_token"})

    def __init__(
        self,
        *,
        blocks: Sequence[BlockSpec],
        transitions: Sequence[int],
        num_classes: int,
        backprop: str = "reversible",
        respath_fuse: str = "concat",
        pre_q_fusion: str = "avg",
        res_path: str = "conv",
        stage_drop_path: str = "branches",
        shared_mask: bool = False,
        mean_pooling: bool = False,
        head_dropout: float = 0.0,
        head_init_scale: float = 1.0,
        detach_head: bool = False,
        dropout: float = 0.0,
        attention: AttentionOptions = DEFAULT_ATTENTION,
        **stem,
    ):
        super().__init__(blocks=blocks, class_token=False, dropout=dropout, **stem)
        self.mean_pooling = mean_pooling
        self.rev_backbone = RevBackbone(
            blocks,
            transitions,
            grids=nominal_grids(blocks, self.grid),
            backprop=backprop,
            dropout=dropout,
            options=attention,
            shared_mask=shared_mask,
            fusion=pre_q_fusion,
            skip_pooling=res_path,
            drop_path_mode=stage_drop_path,
        )
        self.final_drop = nn.Dropout(dropout)
        self.fuse = StreamFusion(respath_fuse, blocks[-1].dim_out)
        self.norm = LayerNorm(self.fuse.width)
        self.add_head(
            self.fuse.width, num_classes, dropout=head_dropout, init_scale=head_init_scale, detach=detach_head
        )
        self.init_all()

    def run_blocks(self, x: Tensor, wanted: Collection[int] = ()) -> tuple[Tensor, list[tuple[Tensor, Grid]]]:
        """Both streams, concatenated: ``(B, N', 2 D')``."""
        streams, kept = self.rev_backbone(x, self.grid, wanted)
        return torch.cat(streams, dim=-1), [(torch.cat([x1, x2], dim=-1), grid) for x1, x2, grid in kept]

    def pool_tokens(self, x: Tensor) -> Tensor:
        x = self.final_drop(x)
        if self.fuse.concatenates and not self.mean_pooling:
            return self.fuse.mix(self.norm(x)).mean(1)
        x = self.fuse(*x.chunk(2, dim=-1))  # (B, N', num_features)
        return self.norm(x.mean(1)) if self.mean_pooling else self.norm(x).mean(1)

    def block_width(self, block: int) -> int:
        return 2 * self.rev_backbone.widths[block]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Rebuild the activations in the backward (reversible backprop) instead of keeping them (plain backprop)."""
        self.rev_backbone.backprop = "reversible" if enable else "plain"


# The official networks (Mangalam et al. 2022, tables 1 and 2), and reversible twins of MViTv2, which are ours.

_V1 = {"embed_dim": 96, "num_heads": 1, "patch": PatchSpec(), "positions": "separable", "widen_in_attention": True}
_V1_VIDEO = _V1 | {"pool_kv_stride_adaptive": (1, 8, 8), "pool_kvq_kernel": (3, 3, 3)}
_V2_VIDEO = _V1_VIDEO | {"positions": "none", "residual_pooling": True, "relative_space": True, "relative_time": True}
_KINETICS = {"num_classes": 400, "head_dropout": 0.5}


@register_model
def rev_mvit_b_16x4(*, depth: int = 16, **overrides) -> RevMViT:
    """Rev-MViT-B 16x4 of Kinetics-400: 34.96 M parameters, 63.9 GFLOPs (PySlowFast REV_MVIT_B_16x4_CONV)."""
    network = _V1_VIDEO | _KINETICS | _stages(depth, 1, 3, -2)
    options = {"input_spec": InputSpec(16, 4), "drop_path": 0.05, "qkv_bias": False}
    return assemble(RevMViT, network | options, overrides)


@register_model
def rev_mvit_b(*, depth: int = 16, **overrides) -> RevMViT:
    """Rev-MViT-B of ImageNet-1K: 39.69 M parameters, 8.7 GFLOPs (PySlowFast ImageNet/REV_MVIT_B_16_CONV)."""
    spec = InputSpec(frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, image=True)
    options = {
        "input_spec": spec,
        "patch": PatchSpec((7, 7), (4, 4), (3, 3)),
        "positions": "joint",
        "pool_kv_stride_adaptive": (1, 4, 4),
        "pool_kvq_kernel": (1, 3, 3),
        "separate_qkv": True,
        "pre_q_fusion": "concat_linear_2",
        "drop_path": 0.1,
        "num_classes": 1000,
    }
    return assemble(RevMViT, _V1 | _stages(depth, 1, 3, -2) | options, overrides)


@register_model
def rev_mvitv2_s_16x4(*, depth: int = 16, **overrides) -> RevMViT:
    """Reversible MViTv2-S 16x4 (ours, see `RevMViT`), with the values of MViTv2-S: 34.9 M parameters."""
    network = _V2_VIDEO | _KINETICS | every_block(_stages(depth, 1, 3, -2), depth)
    return assemble(RevMViT, network | {"input_spec": InputSpec(16, 4), "drop_path": 0.2}, overrides)


@register_model
def rev_mvitv2_b_32x3(*, depth: int = 24, **overrides) -> RevMViT:
    """Reversible MViTv2-B 32x3 (ours, see `RevMViT`), with the values of MViTv2-B: 51.6 M parameters."""
    network = _V2_VIDEO | _KINETICS | every_block(_stages(depth, 2, 5, -3), depth)
    return assemble(RevMViT, network | {"input_spec": InputSpec(32, 3), "drop_path": 0.3}, overrides)


def _stages(depth: int, first: int, second: int, third: int) -> dict:
    layout = three_transitions(depth, first, second, third)
    return layout | {"transitions": [block for block, _ in layout["dim_mul"]]}
