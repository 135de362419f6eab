"""The output of one block of a network as volumes of tokens, in the graph that leads to the logits.

The blocks of a plain network are modules that are called, so a hook sees their outputs. The reversible engine calls no
block, and keeps no output but those that it is asked for; these are part of the graph, and the gradient with respect to
them goes through the engine's Functions like any other.

B batch, C channels, T frames, H height, W width, K classes; a dash marks those of a volume of tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from revvideo.errors import InputError
from revvideo.models.baseline_networks import Baseline, MViTBaseline
from revvideo.models.resize_positions import Grid
from revvideo.models.rev_mvit import RevMViT
from revvideo.models.video_transformer import VideoTransformer

Axes = tuple[float, float, float]  # along T, H and W


@dataclass(frozen=True)
class BlockOutput:
    """What a block gives for a batch of clips, and what the network makes of it.

    Attributes:
        outputs: as they stand in the graph: both streams of a reversible block, else one tensor; tokens
            `(B, [1 +] N, C')` or a volume `(B, C', T', H', W')`.
        grid: (T', H', W').
        logits: `(B, K)`, which depend on the outputs.
        block: name of the block.
        first: position of the centre of the first cell, in frames, rows and columns of the clip (0: the first frame).
        step: frames, rows and columns from one cell to the next.
    """

    outputs: tuple[Tensor, ...]
    grid: Grid
    logits: Tensor
    block: str
    first: Axes
    step: Axes

    def volume(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """The outputs, or `tensors` of their shapes such as gradients: float32 `(B, C', T', H', W')`.

        Streams follow each other along the channels; a class token is left out.
        """
        return torch.cat([_as_volume(each, self.grid).float() for each in tensors or self.outputs], dim=1)


def block_names(model: nn.Module) -> list[str]:
    """Names of a network's blocks, from the input to the output; none for a network of a kind that revvideo lacks."""
    if isinstance(model, VideoTransformer):
        return [f"{model.blocks_name}.{i}" for i in range(model.depth)]
    return [name.rstrip(".") for name in model.block_names()] if isinstance(model, Baseline) else []


def choose_block(model: nn.Module, block: int | str | None = None) -> str:
    """The name of a block.

    Args:
        model: the network.
        block: its number, from the end if it is negative; its name; the name of any module of a plain network whose
            output is a volume `(B, C', T', H', W')`; or None: the last block whose tokens the logits depend on.

    Raises:
        InputError: there is no such block.
    """
    names = block_names(model)
    if block is None:
        if not names:
            raise InputError(f"the {type(model).__name__} has no blocks that revvideo knows; name a module (--block)")
        return names[-2 if reads_class_token(model) and len(names) > 1 else -1]
    if isinstance(block, int):
        if not -len(names) <= block < len(names):
            raise InputError(f"block {block} is asked for; the network has {len(names)} blocks, numbered from 0")
        return names[block]
    if block in names or (block in dict(model.named_modules()) and not isinstance(model, RevMViT)):
        return block
    known = f"a number below {len(names)}, or {names[0]} to {names[-1]}" if names else "the name of a module"
    raise InputError(f"there is no block {block!r} in the {type(model).__name__}; expected {known}")


def block_argument(word: str | None) -> int | str | None:
    """A block as the command line names it: a number, if it is one."""
    return int(word) if word is not None and word.removeprefix("-").isdecimal() else word


def reads_class_token(model: nn.Module) -> bool:
    """Whether the head reads the class token alone: no other token of the last block changes the logits."""
    if isinstance(model, MViTBaseline):
        return bool(model.cls_positional_encoding.cls_embed_on)
    return getattr(model, "cls_token", None) is not None and not getattr(model, "mean_pooling", False)


def run_to_block(model: nn.Module, clips: Tensor, block: int | str | None = None) -> BlockOutput:
    """Run clips through a network that is in evaluation mode, with or without a graph as the caller has set it.

    Args:
        model: the network.
        clips: float `(B, C, T, H, W)`, or `(B, C, H, W)` of an image model, on the model's device.
        block: see `choose_block`.

    Raises:
        InputError: no such block, or a module whose output is no volume of tokens.
    """
    name = choose_block(model, block)
    run = _run_reversible if isinstance(model, RevMViT) else _run_hooked
    outputs, grid, logits = run(model, clips, name)
    size = (clips.shape[2] if clips.ndim == 5 else 1, *clips.shape[-2:])
    return BlockOutput(outputs, grid, logits, name, *_cells(model, name, grid, size))


_Run = tuple[tuple[Tensor, ...], Grid, Tensor]


def _run_reversible(model: RevMViT, clips: Tensor, name: str) -> _Run:
    number = int(name.rpartition(".")[2])
    streams, ((x1, x2, grid),) = model.rev_backbone(model.embed(clips), model.grid, {number})
    logits = model.forward_head(model.pool_tokens(torch.cat(streams, dim=-1)))
    return (x1,) if x2 is x1 else (x1, x2), grid, logits  # a stage transition gives both streams the same tokens


def _run_hooked(model: nn.Module, clips: Tensor, name: str) -> _Run:
    found: list[object] = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        logits = model(clips)
    finally:
        hook.remove()
    if len(found) != 1:
        raise InputError(f"the module {name} is called {len(found)} times for a clip; expected one that is called once")
    output = found[0]
    if isinstance(output, Tensor) and output.ndim in (4, 5):
        return (output,), (1,) * (5 - output.ndim) + tuple(output.shape[2:]), logits
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor) and output[0].ndim == 3:
        return output[:1], tuple(output[1]), logits
    shape = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise InputError(f"the output of {name} is {shape}; expected a volume (B, C, T, H, W), as blocks give it")


def _as_volume(x: Tensor, grid: Grid) -> Tensor:
    """Tokens, behind a class token if there is one, or a volume or picture, as a volume (B, C', T', H', W')."""
    if x.ndim == 3:
        x = x[:, x.shape[1] - math.prod(grid) :].transpose(1, 2)
    return x.reshape(*x.shape[:2], *grid)


def _cells(model: nn.Module, name: str, grid: Grid, size: Grid) -> tuple[Axes, Axes]:
    """`first` and `step` of a `BlockOutput`.

    Kernels of poolings and convolutions are odd and centred, so only the patch embedding shifts the cells (c2d and i3d
    also pool pairs of frames; this half a frame is neglected). Of a network that revvideo does not know the cells are
    taken to divide the clip.
    """
    info = [each for each in getattr(model, "feature_info", []) if _place(name) <= _place(each["name"])]
    if name not in block_names(model) or not info:
        step = tuple(n / cells for n, cells in zip(size, grid, strict=True))
        return tuple((s - 1) / 2 for s in step), step
    if isinstance(model, VideoTransformer):
        patch = model.patch_embed.proj
    else:
        patch = model.patch_embed.patch_model if isinstance(model, MViTBaseline) else None
    first: Axes = (0.0, 0.0, 0.0)
    if patch is not None:
        offsets = [(k - 1) / 2 - p for k, p in zip(patch.kernel_size, patch.padding, strict=True)]
        first = (0.0,) * (3 - len(offsets)) + tuple(offsets)
    return first, tuple(map(float, info[0]["reduction"]))


def _place(name: str) -> int:
    """The number of a block, or of the stage that it is in: "blocks.3.res_blocks.1" is in 3."""
    return next(int(part) for part in name.split(".") if part.isdigit())
