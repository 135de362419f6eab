"""What the plain and the reversible transformers share: input, tokens, positions, head and the public interface.

B batch, C channels, T frames, H height, W width, N tokens, D width, K classes.
"""

import abc
import dataclasses
import logging
from collections.abc import Collection, Sequence

from torch import Tensor, nn

from revvideo.models.block_plan import BlockSpec, nominal_grids, stage_ends
from revvideo.models.input_spec import InputSpec
from revvideo.models.layers import ClassificationHead, LayerNorm, PatchEmbed, classifier, init_weights
from revvideo.models.pooling_attention import Grid, PoolingAttention
from revvideo.models.positions import PositionEmbedding

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PatchSpec:
    """Patch embedding: kernel, stride and padding over (T, H, W), or over (H, W) of images."""

    kernel: tuple[int, ...] = (3, 7, 7)
    stride: tuple[int, ...] = (2, 4, 4)
    padding: tuple[int, ...] = (1, 3, 3)

    @property
    def steps(self) -> Grid:
        """Frames, rows and columns from one token to the next."""
        return (1,) * (3 - len(self.stride)) + tuple(self.stride)


class VideoTransformer(PositionEmbedding, abc.ABC):
    """Base of `MViT` and `RevMViT`: ``(B, C, T, H, W) -> logits (B, K)``.

    A subclass implements `run_blocks` and `pool_tokens`, sets ``self.norm``, calls `add_head` and ends its constructor
    with `init_all`.

    Args:
        input_spec: what the network takes; the position tables are made for its size.
        blocks: the architecture (see `plan_blocks`).
        patch: the patch embedding.
        class_token: whether a class token is prepended.
        positions: see `PositionEmbedding`.
        norm_stem: LayerNorm after the positions.
        dropout: after the positions.
        init_scheme: see `init_weights`.
    """

    blocks_name: str  # prefix of the blocks' parameters
    reversible = False
    fixed_options: frozenset[str] = frozenset()  # arguments of this class that a subclass decides on

    def __init__(
        self,
        *,
        input_spec: InputSpec,
        blocks: Sequence[BlockSpec],
        patch: PatchSpec,
        class_token: bool,
        positions: str,
        norm_stem: bool = False,
        dropout: float = 0.0,
        init_scheme: str = "trunc_normal",
    ):
        super().__init__()
        if input_spec.image != (len(patch.kernel) == 2):
            kind = "an image" if input_spec.image else "a clip"
            raise ValueError(
                f"the patch kernel is {tuple(patch.kernel)}, but the input is {kind}; "
                "expected 2 numbers for images, 3 for clips (MVIT.PATCH_KERNEL, MVIT.PATCH_2D)"
            )
        dim = blocks[0].dim
        self.input_spec, self.init_scheme, self.depth = input_spec, init_scheme, len(blocks)
        self.patch_embed = PatchEmbed(input_spec.channels, dim, **dataclasses.asdict(patch))
        self.grid = self._token_grid(input_spec)
        self.add_position_tables(self.grid, dim, class_token=class_token, positions=positions)
        self.pos_drop = nn.Dropout(dropout)
        self.norm_stem = LayerNorm(dim) if norm_stem else None
        self._plan = tuple(blocks)
        self._stage_ends = stage_ends(blocks)
        self._stage_reductions = []
        reduction = patch.steps
        for i, spec in enumerate(blocks):
            reduction = tuple(r * s for r, s in zip(reduction, spec.q_stride, strict=True))
            if i in self._stage_ends:
                self._stage_reductions.append(reduction)

    def _token_grid(self, input_spec: InputSpec) -> Grid:
        grid = self.patch_embed.grid((input_spec.frames, *input_spec.size))
        if min(grid) < 1:
            raise ValueError(
                f"{input_spec.frames} frames of {input_spec.size} pixels give a token grid of {grid}; expected at "
                "least one token along each axis (DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE, MVIT.PATCH_STRIDE)"
            )
        return grid

    def add_head(self, width: int, num_classes: int, *, dropout: float, init_scale: float, detach: bool) -> None:
        """The classifier of features of ``width``; its initial values are multiplied by ``init_scale``."""
        self.num_features, self.num_classes = width, num_classes
        self.head_init_scale, self.detach_head = init_scale, detach
        self.head = ClassificationHead(width, num_classes, dropout=dropout)  # for 0 classes without a linear layer

    def init_all(self) -> None:
        """Initialise every weight (`init_weights`) and the position tables (truncated normal of 0.02)."""
        self.apply(lambda module: init_weights(module, self.init_scheme))
        for table in self.learned_tables():
            nn.init.trunc_normal_(table, std=0.02)
        self._scale_classifier()

    def _scale_classifier(self) -> None:
        for parameter in self.get_classifier().parameters():
            parameter.data.mul_(self.head_init_scale)

    # From clips to logits

    def embed(self, clips: Tensor) -> Tensor:
        """Tokens with positions: ``(B, C, T, H, W) -> (B, [1 +] N, D)``."""
        clips = self.input_spec.check(clips)
        x = self.pos_drop(self.add_positions(self.patch_embed(clips)))
        return x if self.norm_stem is None else self.norm_stem(x)

    @abc.abstractmethod
    def run_blocks(self, x: Tensor, wanted: Collection[int] = ()) -> tuple[Tensor, list[tuple[Tensor, Grid]]]:
        """Tokens (B, N, D) of the last block; those of the ``wanted`` ones, without class token, with their grids."""

    @abc.abstractmethod
    def pool_tokens(self, x: Tensor) -> Tensor:
        """What the head reads: tokens of the last block to ``(B, D)``."""

    def forward_features(self, clips: Tensor) -> Tensor:
        """Pooled features that the head reads: ``(B, C, T, H, W) -> (B, D)``."""
        return self.pool_tokens(self.run_blocks(self.embed(clips))[0])

    def forward_head(self, features: Tensor) -> Tensor:
        """``(B, D) -> logits (B, K)``."""
        return self.head(features.detach() if self.detach_head else features)

    def forward(self, clips: Tensor) -> Tensor:
        """Logits ``(B, K)`` of float clips ``(B, C, T, H, W)``, in training and in evaluation."""
        return self.forward_head(self.forward_features(clips))

    def feature_maps(self, clips: Tensor) -> list[Tensor]:
        """The output of the last block of each stage as volumes ``(B, C, T, H, W)``; see `feature_info`."""
        kept = self.run_blocks(self.embed(clips), self._stage_ends)[1]
        return [x.transpose(1, 2).unflatten(2, grid) for x, grid in kept]

    @property
    def feature_info(self) -> list[dict]:
        """Of each of the `feature_maps`: ``channels``, ``reduction`` (frames, rows, columns of a cell), ``name``."""
        return [
            {"channels": self.block_width(i), "reduction": reduction, "name": f"{self.blocks_name}.{i}"}
            for i, reduction in zip(self._stage_ends, self._stage_reductions, strict=True)
        ]

    @abc.abstractmethod
    def block_width(self, block: int) -> int:
        """Channels of the output of a block."""

    def set_input_size(self, frames: int, height: int, width: int) -> None:
        """Take clips of another size from now on; positions are interpolated, and a log line says so.

        Raises:
            ValueError: the size gives no token along an axis.
        """
        spec = self.input_spec.adapted((frames, height, width))
        source, target = self.grid, self._token_grid(spec)
        shapes = (self.input_spec.shape, spec.shape)
        self.input_spec, self.grid = spec, target
        self.resize_position_tables(source, self.grid)
        attentions = [module for module in self.modules() if isinstance(module, PoolingAttention)]
        for attention, grid in zip(attentions, nominal_grids(self._plan, self.grid), strict=True):
            attention.resize_relative_tables(grid)
        logger.info("input %s -> %s: positions interpolated from %s to %s tokens", *shapes, source, target)

    # What trainers and fine-tuning ask for

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an Identity where it was removed."""
        return self.head.projection

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier with fresh weights; 0 removes it, so that the model returns the pooled features."""
        self.num_classes = num_classes
        like = {"device": self.norm.weight.device, "dtype": self.norm.weight.dtype}
        self.head.projection = classifier(self.num_features, num_classes).to(**like).train(self.head.training)
        init_weights(self.head.projection, self.init_scheme)
        self._scale_classifier()

    def no_weight_decay(self) -> set[str]:
        """Fragments of the names of parameters that usually take no weight decay: positions and class token."""
        names = [name for name, _ in self.named_parameters()]
        return {part for part in ("pos_embed", "cls_token", "rel_pos") if any(part in name for name in names)}

    def layer_groups(self) -> list[list[str]]:
        """Parameter names from the input to the output: stem, one group for each block, the rest (norm and head)."""
        prefixes = [f"{self.blocks_name}.{i}." for i in range(self.depth)]
        names = [name for name, _ in self.named_parameters()]
        stem = [n for n in names if n.startswith(("patch_embed.", "pos_embed", "cls_token", "norm_stem."))]
        blocks = [[n for n in names if n.startswith(prefix)] for prefix in prefixes]
        placed = set(stem).union(*blocks)
        return [stem, *blocks, [n for n in names if n not in placed]]
