"""Names of other projects' checkpoints, translated to PySlowFast's.

Sources for the names: pytorchvideo 0.1.5 (models/vision_transformers.py, layers/attention.py); mmpretrain 1.x
(models/backbones/revvit.py and its converter from PySlowFast).
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor

from revvideo.errors import InputError

_PYTORCHVIDEO = (
    ("patch_embed.patch_model.", "patch_embed.proj."),
    ("cls_positional_encoding.", ""),
    ("norm_patch_embed.", "norm_stem."),
    ("norm_embed.", "norm."),
    ("head.proj.", "head.projection."),
)
_MMPRETRAIN = (
    (re.compile(r"backbone\.patch_embed\.projection\."), "patch_embed.proj."),
    (re.compile(r"backbone\.layers\.(\d+)\.ln1\."), r"rev_backbone.layers.\1.F.norm."),
    (re.compile(r"backbone\.layers\.(\d+)\.ln2\."), r"rev_backbone.layers.\1.G.norm."),
    (re.compile(r"backbone\.layers\.(\d+)\.attn\."), r"rev_backbone.layers.\1.F.attn."),
    (re.compile(r"backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\."), r"rev_backbone.layers.\1.G.mlp.fc1."),
    (re.compile(r"backbone\.layers\.(\d+)\.ffn\.layers\.1\."), r"rev_backbone.layers.\1.G.mlp.fc2."),
    (re.compile(r"backbone\.ln1\."), "norm."),
    (re.compile(r"backbone\.pos_embed$"), "pos_embed"),
    (re.compile(r"head\.(?:fc|layers\.head)\."), "head.projection."),
)
_MMPRETRAIN_BLOCK = re.compile(r"backbone\.layers\.\d+\.(ln1|attn|ffn)\.")


def translate(tensors: Mapping[str, Tensor], *, source: str) -> tuple[dict[str, Tensor], str | None, list[str]]:
    """Tensors under PySlowFast's names.

    Args:
        tensors: name -> tensor, as in the file.
        source: the file, for messages.

    Returns:
        The tensors, the project that the names are of (None: PySlowFast's own, or unknown ones, unchanged), and what
        was changed or left out besides names.

    Raises:
        InputError: names of mmpretrain, but of a network other than RevViT.
    """
    if any(name.startswith(("patch_embed.patch_model.", "cls_positional_encoding.")) for name in tensors):
        return {_replace_prefix(name): tensor for name, tensor in tensors.items()}, "pytorchvideo", []
    if any(_MMPRETRAIN_BLOCK.match(name) for name in tensors):
        return _from_mmpretrain(tensors, source)
    return dict(tensors), None, []


def _replace_prefix(name: str) -> str:
    for theirs, ours in _PYTORCHVIDEO:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def _from_mmpretrain(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str, list[str]]:
    """RevViT of mmpretrain: it adds a class token and its position, and takes both away again before the first block.

    Both streams end in one norm, which tells it from mmpretrain's plain ViT, whose blocks have the same names.
    """
    norm, patch = tensors.get("backbone.ln1.weight"), tensors.get("backbone.patch_embed.projection.weight")
    if norm is None or patch is None or norm.numel() != 2 * patch.shape[0]:
        raise InputError(
            f"{source}: holds a network of mmpretrain that is no RevViT (its last norm is not twice as wide as its "
            "tokens); of mmpretrain, only RevViT's files are read"
        )
    translated, notes = {}, []
    for name, tensor in tensors.items():
        if name == "backbone.cls_token":
            notes.append("cls_token left out: RevViT takes it away before its first block")
            continue
        if name == "backbone.pos_embed" and _is_square(tensor.shape[1] - 1):
            tensor = tensor[:, 1:]
            notes.append("row 0 of pos_embed left out: the position of the class token, which RevViT takes away")
        for pattern, ours in _MMPRETRAIN:
            name, found = pattern.subn(ours, name, count=1)
            if found:
                break
        translated[name] = tensor
    return translated, "mmpretrain", notes


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
