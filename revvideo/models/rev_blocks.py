"""The parts of a reversible multiscale network: the branches F and G, and the transition between two stages.

B batch, N tokens, D width, (T, H, W) the grid of the tokens. See Mangalam et al. 2022, section 3.3.
"""

import dataclasses

import torch
from torch import Tensor, nn

from revvideo.models.block_plan import BlockSpec
from revvideo.models.branch_call import BranchCall
from revvideo.models.layers import LayerNorm, Mlp, drop_path_mask, in_autocast_dtype
from revvideo.models.pooling_attention import AttentionOptions, PoolingAttention
from revvideo.models.project_and_pool import project_and_pool
from revvideo.models.recomputed import plainly, recomputed
from revvideo.models.resize_positions import Grid
from revvideo.models.reversible import BackpropOptions
from revvideo.models.stream_fusion import StreamFusion
from revvideo.models.token_pooling import max_pool_tokens, normalise_heads, pool_tokens

STAGE_DROP_PATH_MODES = ("branches", "output")
SKIP_POOLING_MODES = ("conv", "max")


class AttentionBranch(nn.Module):
    """F: LayerNorm and pooling attention, without a skip; ``(B, N, D) -> (B, N', D')``."""

    def __init__(self, spec: BlockSpec, *, grid: Grid, dropout: float, options: AttentionOptions):
        super().__init__()
        self.samplewise = dropout == 0.0  # see `BranchCall`
        self.norm = LayerNorm(spec.dim)
        self.attn = spec.attention(spec.dim_out, grid=grid, class_token=False, dropout=dropout, options=options)

    def forward(self, x: Tensor, grid: Grid, recompute: bool = False) -> Tensor:
        """``recompute`` as in `PoolingAttention`."""
        return self.attn(in_autocast_dtype(self.norm(x)), grid, recompute=recompute)


class MlpBranch(nn.Module):
    """G: LayerNorm and MLP, without a skip; ``(B, N, D) -> (B, N, D)``."""

    tokenwise = True  # see `BranchCall`

    def __init__(self, dim: int, mlp_ratio: float):
        super().__init__()
        self.norm = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(in_autocast_dtype(self.norm(x)))


class SkipBranch(nn.Module):
    """The skip path of a transition, ``pool(res_proj(z))``, or ``res_proj(pool(z))`` where the attention pools first.

    It is made for one call and has no parameters of its own: the pooling is that of the attention's queries.
    """

    def __init__(self, res_proj: nn.Module, attention: PoolingAttention, max_pool_stride: Grid | None):
        super().__init__()
        self.samplewise = True  # see `BranchCall`
        self.res_proj, self.options, self.max_pool_stride = res_proj, attention.options, max_pool_stride
        self.pool, self.norm = (None, None) if max_pool_stride else (attention.pool_q, attention.norm_q)

    def forward(self, z: Tensor, grid: Grid, recompute: bool = False) -> Tensor:
        """``(B, N, dim) -> (B, N', dim_out)``; ``recompute`` as in `PoolingAttention`."""
        z = in_autocast_dtype(z)
        if self.options.pool_first:
            return self.res_proj(self._pool(z, grid))
        widens = isinstance(self.res_proj, nn.Linear) and isinstance(self.pool, nn.Conv3d)
        if not recompute or not widens or torch.compiler.is_compiling():
            return self._pool(self.res_proj(z), grid)
        projection = (self.res_proj.weight, self.res_proj.bias, self.pool.weight)
        pooling = {"stride": self.pool.stride, "padding": self.pool.padding, "operator": self.options.pooling}
        return normalise_heads(project_and_pool(z, grid, *projection, **pooling), self.norm)

    def _pool(self, z: Tensor, grid: Grid) -> Tensor:
        if self.max_pool_stride:
            return max_pool_tokens(z, grid, self.max_pool_stride, class_token=False)
        return pool_tokens(z, grid, self.pool, self.norm, class_token=False, operator=self.options.pooling)


class FusedBranch(nn.Module):
    """``branch(fuse(x1, x2))``, made for one call: what is kept of it are the streams, not what they are fused to."""

    def __init__(self, fuse: StreamFusion, branch: nn.Module):
        super().__init__()
        self.fuse, self.branch, self.samplewise = fuse, branch, branch.samplewise

    def forward(self, x1: Tensor, x2: Tensor, *args) -> Tensor:
        return self.branch(self.fuse(x1, x2), *args)


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

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        grid: Grid,
        *,
        options: BackpropOptions,
        keep_attention: bool = False,
        whole: bool = False,
    ) -> tuple[Tensor, Grid]:
        """Returns ``y`` (B, N', D') and its grid; ``keep_attention`` and ``whole`` as in `KeepPlan`.

        With reversible backprop only ``x1``, ``x2`` and ``h`` are kept, and ``z`` of a fusion that has weights; the
        skip path, F and G are computed again in the backward, one after the other.
        """
        rate = self.drop_path if self.training else 0.0
        by_branch = rate if self.drop_path_mode == "branches" else 0.0
        masks = [drop_path_mask(x1, p) for p in (by_branch, by_branch, rate - by_branch)]
        recompute = options.backprop == "reversible" and torch.is_grad_enabled()
        run = recomputed if recompute else plainly
        zs, branches = (x1, x2), [FusedBranch(self.pre_q_fuse, branch) for branch in (self._skip(), self.F)]
        if self.pre_q_fuse.fuse_fn is not None or not recompute:  # fused once: it has weights, or z is there anyway
            zs, branches = (run(BranchCall(self.pre_q_fuse), x1, x2),), [self._skip(), self.F]
        skip, attend = (
            BranchCall(b, (grid, recompute and not whole), chunk_tokens=options.chunk_tokens) for b in branches
        )
        attend.keep_attention = keep_attention
        mix = BranchCall(self.G, chunk_tokens=options.chunk_tokens)
        h = run(skip, *zs).to(x1.dtype)  # (B, N', D'), in the precision of the streams
        h = run(attend, *zs, base=h, mask=masks[0])
        y = run(mix, h, base=h, mask=masks[1])
        return (y if masks[2] is None else y * masks[2]), self.F.attn.pooled_grid(grid)

    def _skip(self) -> SkipBranch:
        return SkipBranch(self.res_proj, self.F.attn, self.max_pool_stride)
