"""Checkpoints: written whole or not at all, read without executing anything, loaded strictly.

Names and keys are PySlowFast's: `checkpoint_epoch_00010.pyth` (the 10th epoch) holds `epoch` (9, counted from 0),
`model_state`, `optimizer_state`, `cfg` (YAML text) and, with mixed precision, `scaler_state`; further keys are ours.
"""

import logging
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from revvideo.errors import InputError
from revvideo.paths import replace_file
from revvideo.torch_file import read_torch_file, write_torch_file

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint_epoch_(\d+)\.pyth")
PLAIN = (dict, OrderedDict, list, tuple, str, bytes, int, float, bool, type(None), torch.Size)
LISTED = 8


def checkpoint_name(epoch: int) -> str:
    """File name after the epoch numbered `epoch`, counted from 0; the name counts from 1, as in PySlowFast."""
    return f"checkpoint_epoch_{epoch + 1:05d}.pyth"


def checkpoint_state(
    *,
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    cfg: str,
    scaler: torch.amp.GradScaler | None = None,
    **extra,
) -> dict:
    """The content of a checkpoint.

    Args:
        epoch: the finished epoch, counted from 0.
        model: the network; the prefix `module.` of a DDP wrapper is left out of the names.
        optimizer: its state goes into `optimizer_state`.
        cfg: the resolved config as YAML text.
        scaler: loss scaler of mixed precision; None leaves `scaler_state` out.
        extra: what else the caller wants to keep (random state, best metric, ...): tensors and plain values.
    """
    state = {"epoch": epoch, "model_state": _without_module(model.state_dict())}
    state.update(optimizer_state=optimizer.state_dict(), cfg=cfg)
    if scaler is not None:
        state["scaler_state"] = scaler.state_dict()
    return {**state, **extra}


def save_checkpoint(path: str | os.PathLike, state: dict) -> Path:
    """Write `state` so that `path` holds either what it held before or all of `state`, whenever the process dies.

    The data go to a temporary file in the same folder, are forced to disk and renamed; then the rename is forced too.

    Args:
        path: local path; the folder is made if needed.
        state: tensors and plain values, nested in dicts, lists and tuples.

    Returns:
        The path written.

    Raises:
        TypeError: something in `state` could not be read back with `weights_only=True`; it is named.
        OSError: the disk is full, read-only, ... ; no temporary file is left and `path` is untouched.
    """
    _check_plain(state, "state")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    replace_file(path, lambda temporary: write_torch_file(temporary, state), durable=True)
    return path


def load_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint onto the CPU without executing anything in it (`weights_only=True`), memory-mapped if possible.

    Args:
        path: local, or remote through the path manager.

    Raises:
        InputError: no such file, a file that is cut off or no checkpoint, or one that holds more than tensors and
            plain values.
    """
    state = read_torch_file(path)
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: holds a {type(state).__name__}; a checkpoint is a dict")
    return state


def latest_checkpoint(folder: str | os.PathLike) -> Path | None:
    """The readable checkpoint with the largest epoch number in `folder`, or None.

    Temporary files and other names do not count; a file that cannot be read is passed over with a warning.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    numbered = [(int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    for _, path in sorted(numbered, reverse=True):
        try:
            load_checkpoint(path)
        except InputError as error:
            logger.warning("checkpoint passed over: %s", error)
        else:
            return path
    return None


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load weights into `model`, all or nothing: a tensor missing, unexpected or of another shape is an error.

    Args:
        model: the network, wrapped in DDP or not.
        state: name -> tensor; a prefix `module.` on all names is dropped.
        source: where the weights come from, for the message.

    Raises:
        InputError: the names or shapes differ; the first few are listed, with counts.
    """
    state = _without_module(state)
    target = model.state_dict()
    wrapped = _without_module(target) is not target
    want = {name: _shape(value) for name, value in _without_module(target).items()}
    have = {name: _shape(value) for name, value in state.items()}
    differences = {
        "missing": [f"{name} {shape}" for name, shape in want.items() if name not in have],
        "unexpected": [f"{name} {shape}" for name, shape in have.items() if name not in want],
        "of another shape": [
            f"{name} {have[name]} instead of {shape}"
            for name, shape in want.items()
            if name in have and have[name] != shape
        ],
    }
    if any(differences.values()):
        lines = [f"{source}: the weights do not fit the model ({len(have)} tensors, the model has {len(want)})"]
        for kind, entries in differences.items():
            if entries:
                more = f", ... ({len(entries) - LISTED} more)" if len(entries) > LISTED else ""
                lines.append(f"  {len(entries)} {kind}: {', '.join(entries[:LISTED])}{more}")
        lines.append("  Is it a checkpoint of another architecture, or of other NUM_CLASSES?")
        raise InputError("\n".join(lines))
    model.load_state_dict({f"module.{name}": value for name, value in state.items()} if wrapped else dict(state))


def random_state() -> dict[str, Tensor]:
    """State of torch's generators as uint8 tensors: `cpu`, and `cuda` of the current device where CUDA is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Set torch's generators to what `random_state` returned; a CUDA state is ignored where there is no CUDA."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def _check_plain(value, where: str) -> None:
    """Raise TypeError for what `weights_only=True` would refuse, so that it is found at writing, not at resuming."""
    if isinstance(value, Tensor):
        return
    if type(value) not in PLAIN:
        raise TypeError(f"{where} is a {type(value).__name__}; checkpoints hold tensors and plain Python values only")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")


def _without_module(state: Mapping) -> Mapping:
    """`state` itself, or, if every name begins with `module.`, a copy without that prefix."""
    prefix = "module."
    if state and all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: value for name, value in state.items()}
    return state


def _shape(value) -> tuple | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
