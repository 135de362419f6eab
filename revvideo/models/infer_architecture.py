"""What network a set of weights belongs to, read from names and shapes (PySlowFast's names)."""

import dataclasses
import itertools
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from revvideo.models.fixed_positions import fixed_grid
from revvideo.models.weights_file import Weights

logger = logging.getLogger(__name__)

_BLOCK = re.compile(r"(blocks|rev_backbone\.layers)\.(\d+)\.")
ELEMENTWISE = "elementwise"  # a fusion without weights that keeps the width: avg, add, max or min

# (reversible, image, relative positions, width of the tokens) -> depth -> official name
_OFFICIAL = {
    (False, False, False, 96): {16: "mvit_b_16x4", 24: "mvit_b_32x3_d24"},
    (False, True, False, 96): {16: "mvit_b"},
    (False, False, True, 96): {16: "mvitv2_s_16x4", 24: "mvitv2_b_32x3"},
    (False, False, True, 144): {48: "mvitv2_l_40x3"},
    (False, True, True, 96): {10: "mvitv2_t", 16: "mvitv2_s", 24: "mvitv2_b"},
    (False, True, False, 768): {12: "vit_b"},
    (False, False, False, 768): {12: "vit_b_16x4"},
    (False, False, False, 1024): {24: "vit_l_16x4"},
    (True, False, False, 96): {16: "rev_mvit_b_16x4"},
    (True, True, False, 96): {16: "rev_mvit_b"},
    (True, False, True, 96): {16: "rev_mvitv2_s_16x4", 24: "rev_mvitv2_b_32x3"},
    (True, True, False, 384): {12: "rev_vit_s"},
    (True, True, False, 768): {12: "rev_vit_b"},
    (True, True, False, 1024): {24: "rev_vit_l"},
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What names and shapes tell about a transformer of the official family.

    Args:
        reversible: Rev-MViT or Rev-ViT.
        image: for images, not clips.
        in_channels: of the input.
        embed_dim: width of the tokens before the first block.
        widths: width after each block.
        class_token: whether there is one.
        positions: ``"separable"``, ``"joint"``, ``"none"``, or ``"sincos"`` for fixed ones, by their numbers.
        relative: whether there are relative positions in space.
        separate_qkv: ``q``, ``k``, ``v`` or a fused ``qkv``.
        qkv_bias: whether those have a bias.
        num_classes: None without a head.
        pre_q_fusion, respath_fuse: of reversible networks, as in the config; `ELEMENTWISE` where no tensor tells more.
        grid: tokens along (T, H, W), None along the axes that tables do not tell.
    """

    reversible: bool
    image: bool
    in_channels: int
    embed_dim: int
    widths: tuple[int, ...]
    class_token: bool
    positions: str
    relative: bool
    separate_qkv: bool
    qkv_bias: bool
    num_classes: int | None
    pre_q_fusion: str | None
    respath_fuse: str | None
    grid: tuple[int | None, int | None, int | None]

    @property
    def depth(self) -> int:
        return len(self.widths)

    def __str__(self) -> str:
        runs = [f"{width} x {len(list(run))}" for width, run in itertools.groupby(self.widths)]
        parts = [
            f"{'reversible' if self.reversible else 'plain'} {'image' if self.image else 'video'} network",
            f"{self.depth} blocks",
            f"width {self.embed_dim}" + (f" (after the blocks: {', '.join(runs)})" if len(runs) > 1 else ""),
            "a class token" if self.class_token else "no class token",
            "no classifier" if self.num_classes is None else f"{self.num_classes} classes",
            ("separate q, k, v" if self.separate_qkv else "fused qkv") + (" with bias" if self.qkv_bias else ""),
            f"{self.positions} positions" if self.positions != "none" else "no position table",
        ]
        parts += ["relative positions"] * self.relative
        parts += [f"{self.in_channels} input channels"] * (self.in_channels != 3)
        if self.reversible:
            parts.append(f"PRE_Q_FUSION {self.pre_q_fusion}" if self.pre_q_fusion else "no stage transition")
            parts.append(f"RESPATH_FUSE {self.respath_fuse}")
        if None not in self.grid:
            parts.append(f"a grid of {' x '.join(map(str, self.grid))} tokens")
        return ", ".join(parts)

    @property
    def official_name(self) -> str | None:
        """The official model that is nearest; None for a width that none has."""
        depths = _OFFICIAL.get((self.reversible, self.image, self.relative, self.embed_dim))
        if depths is None:
            return None
        name = depths[min(depths, key=lambda depth: abs(depth - self.depth))]
        return "mvit_b_32x3" if name == "mvit_b_16x4" and self.grid[0] == 16 else name


def read_architecture(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """The architecture that ``tensors`` (under PySlowFast's names) belong to; None if they are of another family."""
    patch = tensors.get("patch_embed.proj.weight")
    matches = [match for name in tensors if (match := _BLOCK.match(name))]
    if patch is None or patch.ndim not in (4, 5) or not matches:
        return None
    prefix, depth = matches[0][1], 1 + max(int(match[2]) for match in matches)
    reversible = prefix != "blocks"
    attention, mlp = ("F.attn", "G.mlp") if reversible else ("attn", "mlp")
    outputs = [tensors.get(f"{prefix}.{i}.{mlp}.fc2.weight") for i in range(depth)]
    if any(output is None for output in outputs):
        return None
    widths = tuple(output.shape[0] for output in outputs)
    head = tensors.get("head.projection.weight")
    first = f"{prefix}.0.{attention}"
    fuse = _fusions(tensors, prefix, patch.shape[0], widths) if reversible else (None, None)
    class_token = "cls_token" in tensors
    fixed = fixed_grid(tensors["pos_embed"], int(class_token)) if "pos_embed" in tensors else None
    positions = "separable" if "pos_embed_spatial" in tensors else "joint" if "pos_embed" in tensors else "none"
    return Architecture(
        reversible=reversible,
        image=patch.ndim == 4,
        in_channels=patch.shape[1],
        embed_dim=patch.shape[0],
        widths=widths,
        class_token=class_token,
        positions="sincos" if fixed else positions,
        relative=f"{first}.rel_pos_h" in tensors,
        separate_qkv=f"{first}.q.weight" in tensors,
        qkv_bias=f"{first}.qkv.bias" in tensors or f"{first}.q.bias" in tensors,
        num_classes=None if head is None else head.shape[0],
        pre_q_fusion=fuse[0],
        respath_fuse=fuse[1],
        grid=fixed or _grid(tensors, first, image=patch.ndim == 4, class_token=class_token),
    )


def architecture_of(model: nn.Module) -> Architecture | None:
    """`read_architecture` of a model, which may be without memory and knows whether its positions are fixed."""
    built = read_architecture(model.state_dict())
    positions = getattr(model, "positions", None)
    if built is None or positions is None:
        return built
    return dataclasses.replace(built, positions=positions, grid=model.grid)


def infer_overrides(weights: Weights, name: str) -> dict[str, Any]:
    """The arguments with which ``create_model(name, ...)`` builds what ``weights`` hold, as far as they tell.

    Only what differs from the model's own values is returned, of ``num_classes``, ``depth``, ``class_token``,
    ``positions``, ``separate_qkv``, ``qkv_bias``, ``in_channels``, ``pre_q_fusion``, ``respath_fuse`` and
    ``input_size``. Another width or other stages are no arguments: loading names them. An image's weights say nothing
    about the size and the positions of a video model.

    Raises:
        ValueError: the model is of a family whose architecture cannot be read from weights.
    """
    overrides = find_overrides(weights, name)
    guessed = [key for key, value in overrides.items() if value == "avg"]
    if guessed:
        logger.warning(
            "%s: its streams are fused without weights, by average, sum, maximum or minimum, which cannot be told; "
            "the average is taken (%s)",
            *(weights.source, ", ".join(guessed)),
        )
    if overrides.get("positions") == "sincos_twice":
        logger.warning(
            "%s: its positions are fixed; whether they are added once, or twice as in PySlowFast unless "
            'MVIT.USE_ABS_POS is off, cannot be told: twice is assumed (pass positions="sincos" for once)',
            weights.source,
        )
    if overrides:
        logger.info("%s: %s is built with %s", weights.source, name, overrides)
    return overrides


def find_overrides(weights: Weights, name: str) -> dict[str, Any]:
    """`infer_overrides` without a log."""
    from revvideo.models.registry import create_model

    with torch.device("meta"):
        model = create_model(name)
    held, built = read_architecture(weights.tensors), architecture_of(model)
    if held is None or built is None:
        what = weights.source if held is None else name
        raise ValueError(
            f"infer_architecture: the architecture of {what} cannot be read, only that of (Rev-)MViT and (Rev-)ViT; "
            "pass the arguments of the model instead"
        )
    overrides = architecture_overrides(held, built)
    overrides = {key: "avg" if value == ELEMENTWISE else value for key, value in overrides.items()}
    if held.image == built.image and None not in held.grid and held.grid != built.grid:
        steps = model.patch_embed.proj.stride
        steps = (1,) * (3 - len(steps)) + tuple(steps)
        overrides["input_size"] = tuple(n * step for n, step in zip(held.grid, steps, strict=True))
    return overrides


def architecture_overrides(held: Architecture, built: Architecture) -> dict[str, Any]:
    """Arguments of a model's builder that turn ``built`` into ``held``, but for width, stages and input size."""
    if held.reversible != built.reversible:
        return {}
    names = ["num_classes", "depth", "separate_qkv", "qkv_bias", "in_channels"]
    names += ["pre_q_fusion", "respath_fuse"] if held.reversible else ["class_token"]
    names += ["positions"] if held.image == built.image else []
    overrides = {
        name: value for name in names if (value := getattr(held, name)) is not None and value != getattr(built, name)
    }
    if overrides.get("positions") == "sincos":  # the file does not tell whether they are added once or twice
        if built.positions == "sincos_twice":
            del overrides["positions"]
        else:
            overrides["positions"] = "sincos_twice"
    return overrides


def _fusions(
    tensors: Mapping[str, Tensor], prefix: str, embed_dim: int, widths: tuple[int, ...]
) -> tuple[str | None, str]:
    """PRE_Q_FUSION (None without a transition that tells) and RESPATH_FUSE of a reversible network."""
    before_transition = None
    for block, before in enumerate((embed_dim, *widths[:-1])):
        norm = tensors.get(f"{prefix}.{block}.F.norm.weight")
        if norm is None:
            continue
        if norm.shape[0] == 2 * before:
            before_transition = _concatenation(tensors, f"{prefix}.{block}.pre_q_fuse.fuse_fn")
            break
        if widths[block] != before:
            before_transition = ELEMENTWISE
    norm = tensors.get("norm.weight")
    concatenates = norm is not None and norm.shape[0] == 2 * widths[-1]
    return before_transition, _concatenation(tensors, "fuse.fuse_fn") if concatenates else ELEMENTWISE


def _concatenation(tensors: Mapping[str, Tensor], prefix: str) -> str:
    """``concat`` or ``[ln+]concat_linear[_MULT]`` by the MLP below ``prefix``."""
    for ln, mlp in (("", prefix), ("ln+", f"{prefix}.1")):
        first = tensors.get(f"{mlp}.fc1.weight")
        if first is not None:
            factor = first.shape[0] / first.shape[1]
            return f"{ln}concat_linear" + ("" if factor == 1 else f"_{factor:g}")
    return "concat"


def _grid(
    tensors: Mapping[str, Tensor], attention: str, *, image: bool, class_token: bool
) -> tuple[int | None, int | None, int | None]:
    """Tokens along (T, H, W) that the tables are made for; space must be square where one number stands for both."""
    frames, height, width = (1 if image else None), None, None
    if "pos_embed_spatial" in tensors:
        height = width = _side(tensors["pos_embed_spatial"].shape[1])
        frames = tensors["pos_embed_temporal"].shape[1] if "pos_embed_temporal" in tensors else frames
    elif "pos_embed" in tensors and image:
        height = width = _side(tensors["pos_embed"].shape[1] - class_token)
    elif f"{attention}.rel_pos_h" in tensors:
        height, width = ((tensors[f"{attention}.rel_pos_{axis}"].shape[0] + 1) // 2 for axis in "hw")
        if f"{attention}.rel_pos_t" in tensors:
            frames = (tensors[f"{attention}.rel_pos_t"].shape[0] + 1) // 2
    return frames, height, width


def _side(rows: int) -> int | None:
    side = math.isqrt(rows)
    return side if side * side == rows else None
