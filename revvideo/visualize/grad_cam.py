"""Grad-CAM over space and time (Selvaraju et al. 2017), for plain and reversible networks.

With the output A of a block as a volume of cells, and y the logit of a class (equations 1 and 2 of the paper)::

    alpha[c] = mean over the cells of dy / dA[c]             map = relu(sum over c of alpha[c] A[c])

A video has one map for each frame of cells: the mean runs over time, too, so the maps of a clip share their channels'
weights and can be compared over time. A reversible block has two streams; their channels count like those of one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from revvideo.errors import InputError
from revvideo.visualize.block_output import Axes, block_names, choose_block, reads_class_token, run_to_block


@dataclass(frozen=True)
class GradCam:
    """Where a network finds the evidence for a class in each clip.

    Attributes:
        maps: float32 `(B, T', H', W')`, not negative; in the units of the logit, not scaled.
        logits: float32 `(B, K)`.
        classes: int64 `(B,)`, the class that each map explains.
        block: name of the block.
        size: (T, H, W) of the clips.
        first, step: where the cells are, see `BlockOutput`.
    """

    maps: Tensor
    logits: Tensor
    classes: Tensor
    block: str
    size: tuple[int, int, int]
    first: Axes
    step: Axes

    def upsample(self) -> Tensor:
        """The maps at every pixel of the clips: float32 `(B, T, H, W)`, linear between the centres of the cells."""
        maps = self.maps
        for axis, (length, first, step) in enumerate(zip(self.size, self.first, self.step, strict=True), start=1):
            weights = interpolation(length, maps.shape[axis], first, step).to(maps)
            maps = torch.tensordot(maps, weights, dims=([axis], [1])).movedim(-1, axis)
        return maps


def interpolation(length: int, cells: int, first: float, step: float) -> Tensor:
    """The weights of linear interpolation: float32 `(length, cells)`, rows of sum 1.

    Args:
        length: points 0, 1, 2, ... that are wanted.
        cells: values that are known, at `first`, `first + step`, ...; beyond them the outermost value holds.
    """
    places = ((torch.arange(length) - first) / step).clamp(0, cells - 1)
    return (1 - (places[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def grad_cam(
    model: nn.Module,
    clips: Tensor,
    classes: int | Sequence[int] | Tensor | None = None,
    *,
    block: int | str | None = None,
) -> GradCam:
    """Grad-CAM of each clip of a batch. The model is left as it was, gradients of its parameters included.

    Args:
        model: float clips to logits; used in evaluation mode.
        clips: `(B, C, T, H, W)`, or `(B, C, H, W)` of an image model, on the model's device.
        classes: the class of all clips, or of each; None: the one that the model gives each clip.
        block: whose output is looked at, see `choose_block`.

    Raises:
        InputError: no such block or class, another number of classes than clips, or the logits of the clips do not
            depend on what the block gives.
    """
    name = choose_block(model, block)
    if reads_class_token(model) and name == block_names(model)[-1]:
        raise InputError(
            f"the head reads the class token alone, and no other token of {name}; choose an earlier block (--block)"
        )
    with _explaining(model), torch.inference_mode(False), torch.enable_grad():
        # An input that wants a gradient, so that there is a graph although no parameter wants one.
        clips = clips.detach().clone().requires_grad_()
        output = run_to_block(model, clips, name)
        logits = output.logits
        chosen = _chosen(classes, logits)
        score = logits.gather(1, chosen[:, None]).sum()
        gradients = torch.autograd.grad(score, output.outputs, allow_unused=True)
    if any(gradient is None for gradient in gradients):
        raise InputError(f"the logits do not depend on what {name} gives; choose another block")
    with torch.no_grad():
        weights = output.volume(gradients).mean((2, 3, 4), keepdim=True)  # (B, C', 1, 1, 1)
        maps = (weights * output.volume()).sum(1).relu()  # (B, T', H', W')
    size = (clips.shape[2] if clips.ndim == 5 else 1, *clips.shape[-2:])
    return GradCam(maps, logits.detach().float(), chosen, name, size, output.first, output.step)


def _chosen(classes: int | Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """int64 (B,): a class for each clip."""
    count, num_classes = logits.shape
    if classes is None:
        return logits.detach().argmax(1)
    chosen = torch.as_tensor(classes, dtype=torch.int64, device=logits.device)
    if chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != count):
        raise InputError(f"classes of shape {tuple(chosen.shape)} for {count} clips; expected one, or one a clip")
    wrong = chosen[(chosen < 0) | (chosen >= num_classes)]
    if wrong.numel():
        raise InputError(
            f"class {int(wrong.flatten()[0])} is asked for; the model has the classes 0 to {num_classes - 1}"
        )
    return chosen.expand(count)


@contextlib.contextmanager
def _explaining(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients of parameters, and a head that passes gradients; all as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    detaching = [module for module in model.modules() if getattr(module, "detach_head", False)]
    model.eval()
    for parameter in wanting:
        parameter.requires_grad_(False)
    for module in detaching:
        module.detach_head = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in wanting:
            parameter.requires_grad_(True)
        for module in detaching:
            module.detach_head = True
