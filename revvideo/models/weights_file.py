"""Files of weights: what is in them, whoever wrote them, and writing them for PySlowFast or as safetensors."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from revvideo.errors import InputError
from revvideo.models.foreign_names import translate
from revvideo.paths import replace_file
from revvideo.torch_file import first_line, local_file, read_torch_file, write_torch_file

FORMATS = ("pyslowfast", "safetensors")
_WEIGHTS_KEYS = ("model_state", "state_dict", "model")  # PySlowFast, revvideo, pytorchvideo; mmpretrain; MAE
_WRAPPERS = ("module.", "_orig_mod.")
_OWN_KEYS = ("random_states", "best_top1")  # revvideo writes them, PySlowFast does not


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a file.

    Args:
        tensors: PySlowFast's name -> tensor, on the CPU, memory-mapped where the format allows.
        format: who wrote it: ``"pyslowfast"``, ``"revvideo"``, ``"pytorchvideo"``, ``"mmpretrain"``, or
            ``"safetensors"``, ``"tensors"`` (a bare state dict) where the names do not tell.
        source: the path.
        file_tensors: the same tensors under the file's own names.
        extra: what else the file holds (``epoch``, ``optimizer_state``, ``cfg``, ...).
        notes: what was changed or left out while reading.
    """

    tensors: Mapping[str, Tensor]
    format: str
    source: str
    file_tensors: Mapping[str, Tensor]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_weights(path: str | os.PathLike, *, clear_patterns: Sequence[str] = ()) -> Weights:
    """Read a file of weights of PySlowFast, revvideo, pytorchvideo (MViT), mmpretrain (RevViT) or safetensors.

    Nothing in it is executed. A prefix ``module.`` or ``_orig_mod.`` on all names, which DDP and torch.compile
    leave, is removed.

    Args:
        path: local, or remote through the path manager.
        clear_patterns: parts to remove from the names, each once, where it stands first
            (TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN).

    Raises:
        InputError: no such file, a damaged one, one that needs more than tensors and plain values, a Caffe2 file, or
            one without weights.
    """
    source, suffix = str(path), Path(path).suffix
    if suffix == ".pkl":
        raise InputError(
            f"{source}: not loaded: a pickle (PySlowFast's TRAIN.CHECKPOINT_TYPE caffe2), which could run code; "
            "convert it to a .pyth file with PySlowFast first"
        )
    extra: dict[str, Any] = {}
    if suffix == ".safetensors":
        tensors, extra["metadata"] = _read_safetensors(path)
        kind = "safetensors"
    else:
        tensors, extra, kind = _find_weights(read_torch_file(path), source)
    if not tensors:
        raise InputError(f"{source}: holds no weights")
    cleared = _clear(without_wrappers(tensors), clear_patterns, source)
    translated, project, notes = translate(cleared, source=source)
    if clear_patterns:
        changed = len(tensors.keys() - cleared.keys())
        notes = [f"{', '.join(clear_patterns)} removed from {changed} names", *notes]
    if project is not None:
        notes = [f"names of {project} translated", *notes]
    return Weights(translated, project or kind, source, cleared, extra, tuple(notes))


def write_weights(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    *,
    format: str | None = None,
    epoch: int | None = None,
) -> Path:
    """Write weights, so that ``path`` holds either what it held before or all of them.

    Args:
        path: local path; the folder is made if needed.
        tensors: name -> tensor, as in a state dict.
        format: ``"pyslowfast"`` (a .pyth file with the key ``model_state``) or ``"safetensors"``; default: by the
            suffix of ``path``.
        epoch: of PySlowFast's format, counted from 0; None leaves the key out, so that loaders start at epoch 0.

    Raises:
        ValueError: an unknown format, or a suffix that tells none.
        OSError: the file cannot be written; what ``path`` held is untouched.
    """
    path = Path(path)
    format = format or {".pyth": "pyslowfast", ".pt": "pyslowfast", ".pth": "pyslowfast"}.get(
        path.suffix, path.suffix.removeprefix(".")
    )
    if format not in FORMATS:
        raise ValueError(f"{path}: cannot write the format {format!r}; expected one of {', '.join(FORMATS)}")
    # Copies, because a part of a larger tensor would bring the whole of it into the file.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    content = {"model_state": copies} if epoch is None else {"epoch": epoch, "model_state": copies}
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(temporary: Path) -> None:
        if format == "safetensors":
            try:
                safetensors.torch.save_file(copies, temporary, metadata={"format": "pt"})
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error
        else:
            write_torch_file(temporary, content)

    replace_file(path, write, durable=True)
    return path


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefixes that DDP (``module.``) and torch.compile (``_orig_mod.``) put on all names."""
    tensors = dict(tensors)
    while prefix := next((p for p in _WRAPPERS if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    local = local_file(path)
    try:
        with safetensors.safe_open(local, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged, cut off, or no safetensors file ({first_line(error)})") from error


def _find_weights(content: object, source: str) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The tensors, the other keys, and the format of what torch.load returned."""
    if not isinstance(content, Mapping):
        raise InputError(f"{source}: holds a {type(content).__name__}; expected a dict with weights")
    if "blobs" in content:
        raise InputError(f"{source}: a Caffe2 file ('blobs'); convert it to a .pyth file with PySlowFast first")
    key = next((key for key in _WEIGHTS_KEYS if isinstance(content.get(key), Mapping)), None)
    if key is None:
        extra, found, kind = {}, content, "tensors"
    else:
        extra, found = {name: value for name, value in content.items() if name != key}, content[key]
        own = any(name in content for name in _OWN_KEYS)
        kind = "tensors" if key != "model_state" else "revvideo" if own else "pyslowfast"
    odd = [str(name) for name, value in found.items() if not isinstance(value, Tensor) or not isinstance(name, str)]
    if odd:
        raise InputError(
            f"{source}: holds no weights: expected the key 'model_state' (PySlowFast, revvideo, pytorchvideo), "
            f"'state_dict' (mmpretrain) or nothing but tensors, found {', '.join(odd[:8])}"
        )
    return dict(found), extra, kind


def _clear(tensors: Mapping[str, Tensor], patterns: Sequence[str], source: str) -> dict[str, Tensor]:
    """The tensors, ``patterns`` removed from their names."""
    cleared = {}
    for name, tensor in tensors.items():
        short = name
        for pattern in patterns:
            short = short.replace(pattern, "", 1)
        if short in cleared:
            raise InputError(f"{source}: two tensors are called {short!r} without {', '.join(patterns)}")
        cleared[short] = tensor
    return cleared
