"""Reversible Multiscale Vision Transformer (Mangalam et al. 2022, section 3.3).

Runs of reversible blocks (equal width and resolution) are joined by stage transitions, which are not reversible: they
fuse the two streams, pool the tokens, widen them, and start the next run with two copies. A transition keeps only its
input, which is the kept output of the run before; its F and G are recomputed in the backward, one after the other.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from revvideo.models.assemble import assemble, every_block, three_transitions
from revvideo.models.block_plan import BlockSpec, nominal_grids
from revvideo.models.branch_call import SAMPLE_CHUNKS, chunk_size
from revvideo.models.call_conditions import autocast_is_on
from revvideo.models.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from revvideo.models.inversion_check import InversionCheck
from revvideo.models.keep_plan import NOTHING, BlockMemory, KeepPlan, plan_keeping
from revvideo.models.layers import LayerNorm
from revvideo.models.pooling_attention import DEFAULT_ATTENTION, AttentionOptions
from revvideo.models.registry import register_model
from revvideo.models.resize_positions import Grid
from revvideo.models.rev_blocks import AttentionBranch, MlpBranch, StageTransition
from revvideo.models.reversible import DEFAULT_BACKPROP, BackpropOptions, ReversibleBlock, run_blocks
from revvideo.models.stream_fusion import StreamFusion
from revvideo.models.video_transformer import PatchSpec, VideoTransformer


class RevBackbone(nn.Module):
    """Blocks and stage transitions in order, under the official names ``layers.N.{F,G,res_proj}``.

    Args:
        blocks: the architecture.
        transitions: indices of the blocks that are stage transitions; every block that pools queries or widens must be.
        grids: (T, H, W) before each block, for relative positions.
        backprop: how it is trained.
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
        backprop: BackpropOptions,
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
        self.backprop = backprop
        self.inversion_check: InversionCheck | None = None  # of the forward that comes
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
        plan = self._keep_plan(x, grid)
        for start, end in self._segments:
            layers = [self.layers[i] for i in range(start, end)]
            if isinstance(layers[0], StageTransition):
                keep = {"keep_attention": start in plan.attention, "whole": start in plan.whole}
                x1, grid = layers[0](x1, x2, grid, options=self.backprop, **keep)
                x2 = x1
                kept += [(x1, x2, grid)] if start in wanted else []
                continue
            inside = [i - start for i in range(start, end) if i in wanted]
            (x1, x2), pairs = run_blocks(
                layers,
                x1,
                x2,
                options=self.backprop,
                f_args=(grid,),
                intermediates=inside,
                keep_attention=[i - start for i in range(start, end) if i in plan.attention],
                check=self.inversion_check,
                first_block=start,
            )
            kept += [(*pair, grid) for pair in pairs]
        return (x1, x2), kept

    def _keep_plan(self, x: Tensor, grid: Grid) -> KeepPlan:
        """What the blocks keep for the backward, for tokens ``x`` of ``grid``."""
        options = self.backprop
        if options.backprop != "reversible" or options.keep_mib == -1 or not torch.is_grad_enabled():
            return NOTHING
        itemsize = torch.get_autocast_dtype(x.device.type).itemsize if autocast_is_on(x.device.type) else 4
        batch, blocks = x.shape[0], []
        for i, layer in enumerate(self.layers):
            attention, mlp = layer.F.attn, layer.G.mlp
            dim, hidden = layer.F.norm.normalized_shape[0], mlp.fc1.out_features
            tokens, keys = batch * math.prod(grid), batch * math.prod(attention.key_grid(grid))
            projected = batch * (math.prod(grid) + 2 * math.prod(attention.read_grid(grid)))
            grid = attention.pooled_grid(grid)
            pooled = batch * math.prod(grid)
            starts_run = i == 0 or isinstance(self.layers[i - 1], StageTransition)
            kept = pooled if isinstance(layer, StageTransition) else 2 * tokens if starts_run else 0
            chunk = chunk_size(options.chunk_tokens, x.device, tokens) or tokens
            piece = min(tokens, max(tokens // batch, SAMPLE_CHUNKS * chunk)) if layer.F.samplewise else tokens
            blocks.append(
                BlockMemory(
                    transition=isinstance(layer, StageTransition),
                    kept=kept * attention.dim_out * 4,
                    attention=pooled * (attention.dim_out * itemsize + attention.num_heads * 4),
                    stream=tokens * dim * 4,
                    activation=piece * dim * itemsize,
                    keys=keys * piece // tokens * attention.dim_out * itemsize,
                    hidden=min(pooled, chunk) * hidden * itemsize,
                    weights=2 * attention.dim_out * hidden * 4,
                    projections=projected * piece // tokens * attention.dim_out * itemsize,
                )
            )
        return plan_keeping(blocks, None if options.keep_mib is None else int(options.keep_mib * 2**20))


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
        backprop: how the reversible blocks are trained.
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
        backprop: BackpropOptions = DEFAULT_BACKPROP,
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
        mode = "reversible" if enable else "plain"
        self.rev_backbone.backprop = dataclasses.replace(self.rev_backbone.backprop, backprop=mode)

    @contextlib.contextmanager
    def check_inversion(self) -> Iterator[InversionCheck]:
        """Within it, each backward compares the inputs of all blocks that it rebuilds with copies made in the forward.

        The copies go to the host; the result is in the check's ``errors``.
        """
        self.rev_backbone.inversion_check = check = InversionCheck()
        try:
            yield check
        finally:
            self.rev_backbone.inversion_check = None


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
