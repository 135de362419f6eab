"""The interface of our models around networks that pytorchvideo has built (`baselines` builds them).

The modules of the network are taken over, so the state dict has pytorchvideo's own names and the files of its model zoo
load as they are.

B batch, C channels, T frames, H height, W width, N tokens, D width of the features, K classes.
"""

import abc
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revvideo.models.input_spec import InputSpec

BATCH_NORMS = (nn.BatchNorm3d, nn.SyncBatchNorm)


class Baseline(nn.Module, abc.ABC):
    """Base of `ConvBaseline` and `MViTBaseline`: ``(B, C, T, H, W) -> logits (B, K)``.

    Args:
        input_spec: what the network was built for.
        num_classes: K.
        eval_size: (height, width) that is taken as well in evaluation mode, for fully convolutional testing.
    """

    def __init__(self, *, input_spec: InputSpec, num_classes: int, eval_size: Sequence[int] | None = None):
        super().__init__()
        self.input_spec, self.num_classes = input_spec, num_classes
        self.eval_spec = dataclasses.replace(input_spec, size=tuple(eval_size)) if eval_size else input_spec
        self.checkpointing = False
        self.detach_head = False  # True: only the classifier is trained

    @abc.abstractmethod
    def get_head(self) -> nn.Module:
        """pytorchvideo's head, with `dropout` and `proj`."""

    @abc.abstractmethod
    def forward_features(self, clips: Tensor) -> Tensor:
        """Pooled features that the classifier reads: ``(B, C, T, H, W) -> (B, D)``."""

    @abc.abstractmethod
    def feature_maps(self, clips: Tensor) -> list[Tensor]:
        """The output of each stage as a volume ``(B, C, T, H, W)``; see `feature_info`."""

    @property
    @abc.abstractmethod
    def feature_info(self) -> list[dict]:
        """Of each of the `feature_maps`: ``channels``, ``reduction`` (frames, rows, columns of a cell), ``name``."""

    @abc.abstractmethod
    def block_names(self) -> list[str]:
        """Prefixes of the parameters of the residual or transformer blocks, from the input to the output."""

    @abc.abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Fragments of the names of parameters that usually take no weight decay."""

    def check(self, clips: Tensor) -> Tensor:
        """``clips``, if they have the shape that the network takes in its present mode.

        Raises:
            ValueError: another shape.
        """
        evaluated = not self.training and tuple(clips.shape[-2:]) == self.eval_spec.size
        return (self.eval_spec if evaluated else self.input_spec).check(clips)

    def forward_head(self, features: Tensor) -> Tensor:
        """``(B, D) -> logits (B, K)``."""
        head = self.get_head()
        features = features.detach() if self.detach_head else features
        return head.proj(features if head.dropout is None else head.dropout(features))

    def forward(self, clips: Tensor) -> Tensor:
        """Logits ``(B, K)`` of float clips ``(B, C, T, H, W)``, in training and in evaluation."""
        return self.forward_head(self.forward_features(clips))

    def run_block(self, block: nn.Module, *inputs):
        """One block; with checkpointing its activations are computed again in the backward instead of kept."""
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return block(*inputs)
        contexts = partial(_recompute_contexts, block)
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)

    # What trainers and fine-tuning ask for

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an Identity where it was removed."""
        return self.get_head().proj

    def set_classifier(self, num_classes: int, weight_std: float, init: Callable[..., Tensor]) -> None:
        """Replace the last linear layer; 0 classes: by an Identity."""
        self.num_classes = num_classes
        reference = next(self.parameters())
        head = self.get_head()
        if not num_classes:
            head.proj = nn.Identity()
            return
        head.proj = nn.Linear(self.num_features, num_classes, device=reference.device, dtype=reference.dtype)
        init(head.proj.weight, std=weight_std)
        nn.init.zeros_(head.proj.bias)

    @abc.abstractmethod
    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier with fresh weights; 0 removes it, so that the model returns the pooled features."""

    def layer_groups(self) -> list[list[str]]:
        """Parameter names from the input to the output: stem, one group for each block, the rest (norm and head)."""
        names = [name for name, _ in self.named_parameters()]
        blocks = [[name for name in names if name.startswith(prefix)] for prefix in self.block_names()]
        first, last = names.index(blocks[0][0]), names.index(blocks[-1][-1])
        return [names[:first], *blocks, names[last + 1 :]]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of the blocks in training. Batch norm still counts each batch once."""
        self.checkpointing = enable


def _recompute_contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, ...]:
    return contextlib.nullcontext(), _frozen_statistics(block)


@contextlib.contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms in training normalise by the batch as ever, but do not add it to their running statistics."""
    norms = [module for module in block.modules() if isinstance(module, BATCH_NORMS) and module.training]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class ConvBaseline(Baseline):
    """A convolutional network: ``blocks`` are the stem, the stages (and a pooling of frames), the head."""

    def __init__(self, net: nn.Module, **options):
        super().__init__(**options)
        self.blocks = net.blocks
        self.num_features = self.get_classifier().in_features

    def get_head(self) -> nn.Module:
        return self.blocks[-1]

    def _run_stages(self, clips: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last volume, and those of all stages."""
        x, maps = self.blocks[0](self.check(clips)), []  # (B, C, T, H, W)
        for stage in self.blocks[1:-1]:
            if isinstance(stage, nn.MaxPool3d):
                x = stage(x)  # fewer frames
                continue
            for block in stage.res_blocks:
                x = self.run_block(block, x)
            maps.append(x)
        return x, maps

    def forward_features(self, clips: Tensor) -> Tensor:
        x = self.get_head().pool(self._run_stages(clips)[0])  # (B, D, 1, 1, 1); more cells for a larger eval_size
        return x.mean((2, 3, 4))  # the mean and the linear classifier commute

    def feature_maps(self, clips: Tensor) -> list[Tensor]:
        return self._run_stages(clips)[1]

    @property
    def feature_info(self) -> list[dict]:
        info, reduction = [], _strides(self.blocks[0])
        for i, stage in enumerate(self.blocks[1:-1], start=1):
            reduction = tuple(r * s for r, s in zip(reduction, _strides(stage), strict=True))
            if not isinstance(stage, nn.MaxPool3d):
                channels = stage.res_blocks[-1].branch2.conv_c.out_channels
                info.append({"channels": channels, "reduction": reduction, "name": f"blocks.{i}"})
        return info

    def block_names(self) -> list[str]:
        stages = [(i, stage) for i, stage in enumerate(self.blocks) if hasattr(stage, "res_blocks")]
        return [f"blocks.{i}.res_blocks.{j}." for i, stage in stages for j in range(len(stage.res_blocks))]

    def no_weight_decay(self) -> set[str]:
        """None by name; batch norms have their own weight decay (BN.WEIGHT_DECAY)."""
        return set()

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classifier(num_classes, 0.01, nn.init.normal_)


def _strides(module: nn.Module) -> tuple[int, int, int]:
    """Product of the strides along the main path of a stem, stage or pooling: frames, rows, columns."""
    total = (1, 1, 1)
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv3d, nn.MaxPool3d)) and "branch1" not in name:
            stride = layer.stride if isinstance(layer.stride, (tuple, list)) else (layer.stride,) * 3
            total = tuple(t * s for t, s in zip(total, stride, strict=True))
    return total


class MViTBaseline(Baseline):
    """pytorchvideo's MViT."""

    def __init__(self, net: nn.Module, **options):
        super().__init__(**options)
        self.patch_embed, self.cls_positional_encoding = net.patch_embed, net.cls_positional_encoding
        self.pos_drop, self.norm_patch_embed = net.pos_drop, net.norm_patch_embed
        self.blocks, self.norm_embed, self.head = net.blocks, net.norm_embed, net.head
        self.num_features = self.head.proj.in_features

    def get_head(self) -> nn.Module:
        return self.head

    def _run_blocks(self, clips: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens (B, [1 +] N, D) of the last block, and the volumes at the ends of the stages."""
        clips = self.check(clips)
        positions = self.cls_positional_encoding
        x = positions(self.patch_embed(clips.squeeze(2) if self.input_spec.image else clips))  # (B, [1 +] N, D)
        x = x if self.pos_drop is None else self.pos_drop(x)
        x = x if self.norm_patch_embed is None else self.norm_patch_embed(x)
        grid, maps, ends = positions.patch_embed_shape, [], self._stage_ends()
        for i, block in enumerate(self.blocks):
            x, grid = self.run_block(block, x, grid)
            if i in ends:
                tokens = x[:, 1:] if positions.cls_embed_on else x
                maps.append(tokens.transpose(1, 2).unflatten(2, tuple(grid)))  # (B, C, T, H, W)
        return x, maps

    def forward_features(self, clips: Tensor) -> Tensor:
        return self.head.sequence_pool(self.norm_embed(self._run_blocks(clips)[0]))

    def feature_maps(self, clips: Tensor) -> list[Tensor]:
        return self._run_blocks(clips)[1]

    def _stage_ends(self) -> list[int]:
        """The blocks before those that pool their queries, and the last block."""
        pooled = [i for i, block in enumerate(self.blocks) if math.prod(_query_stride(block)) > 1]
        return [i - 1 for i in pooled if i > 0] + [len(self.blocks) - 1]

    @property
    def feature_info(self) -> list[dict]:
        stride = self.patch_embed.patch_model.stride
        info, reduction, ends = [], (1,) * (3 - len(stride)) + tuple(stride), self._stage_ends()
        for i, block in enumerate(self.blocks):
            reduction = tuple(r * s for r, s in zip(reduction, _query_stride(block), strict=True))
            if i in ends:
                info.append({"channels": block.dim_out, "reduction": reduction, "name": f"blocks.{i}"})
        return info

    def block_names(self) -> list[str]:
        return [f"blocks.{i}." for i in range(len(self.blocks))]

    def no_weight_decay(self) -> set[str]:
        """Positions and class token."""
        return {"pos_embed", "cls_token"}

    def reset_classifier(self, num_classes: int) -> None:
        self.set_classifier(num_classes, 0.02, nn.init.trunc_normal_)


def _query_stride(block: nn.Module) -> Sequence[int]:
    return (1, 1, 1) if block.pool_skip is None else block.pool_skip.stride
