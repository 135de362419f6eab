"""Checkpoints: written whole or not at all, read without executing anything, loaded strictly.

Names and keys are PySlowFast's: `checkpoint_epoch_00010.pyth` (the 10th epoch) holds `epoch` (9, counted from 0),
`model_state`, `optimizer_state`, `cfg` (YAML text) and, with mixed precision, `scaler_state`; further keys are ours. So
are the names of those written in the middle of an epoch, `checkpoint_epoch_00010_step_000037.pyth`: 37 steps of the
11th epoch are done. `epoch` is always the last epoch that is finished, -1 before the first.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from revvideo.engine.checksums import (
    checksum,
    checksum_path,
    name_without_checkpoint,
    read_checksums,
    write_checksums,
)
from revvideo.errors import InputError
from revvideo.paths import make_folder, replace_file
from revvideo.torch_file import first_line, local_file, read_torch_file, write_torch_file

logger = logging.getLogger(__name__)

NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")
PLAIN = (dict, OrderedDict, list, tuple, str, bytes, int, float, bool, type(None), torch.Size)
LISTED = 8


def checkpoint_name(epoch: int, steps: int = 0) -> str:
    """File name after `epoch`, the last finished one, counted from 0 (-1: none), and `steps` steps of the next one.

    The name counts epochs from 1, as in PySlowFast; where the alphabet decides, as there, later ones come later.
    """
    return f"checkpoint_epoch_{epoch + 1:05d}{f'_step_{steps:06d}' if steps else ''}.pyth"


def checkpoint_position(path: Path) -> tuple[int, int] | None:
    """(finished epochs, steps of the next one) by the file's name; None for other names."""
    match = NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


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

    The data go to a temporary file in the same folder, their checksum beside `path`; both are forced to the disk, then
    the temporary file is renamed and the rename is forced too. While one content takes the place of another, the file
    of checksums lists both, so that no moment leaves a checkpoint with a wrong checksum.

    Args:
        path: local path; the folder is made if needed.
        state: tensors and plain values, nested in dicts, lists and tuples.

    Returns:
        The path written.

    Raises:
        TypeError: something in `state` could not be read back with `weights_only=True`; it is named.
        OSError: the disk is full, read-only, ... ; no temporary file is left and `path` is untouched, or, where only
            the last forcing to the disk failed, holds `state`.
    """
    _check_plain(state, "state")
    path = Path(path)
    make_folder(path.parent)
    digest, before = hashlib.sha256(), _possible_checksums(path)

    def write(temporary: Path) -> None:
        write_torch_file(temporary, state, digest=digest)
        write_checksums(path, [*before, digest.hexdigest()])

    try:
        # The name of what a kill leaves must not make PySlowFast believe that there is a checkpoint.
        replace_file(path, write, durable=True, temporary_name=f".{name_without_checkpoint(path)}.tmp")
    except OSError:
        if not os.path.lexists(path):
            with contextlib.suppress(OSError):  # the error from before is what matters
                checksum_path(path).unlink(missing_ok=True)
        raise
    if before:
        write_checksums(path, [digest.hexdigest()])
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


def check_checkpoint(path: Path) -> None:
    """Read all of a local checkpoint: its checksum, where there is one, is right and it loads.

    Raises:
        InputError: it is damaged, cut off, no checkpoint, or would execute something.
    """
    local = Path(local_file(path))
    try:
        sums = read_checksums(local)
        found = checksum(local) if sums else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    if sums and found not in sums:
        raise InputError(
            f"{path}: damaged or cut off: its SHA-256 is {found}, {checksum_path(local).name} says "
            f"{' or '.join(sums)}; delete that file if the checkpoint was changed on purpose"
        )
    if not sums and checksum_path(local).exists():
        logger.warning("%s holds no checksum of %s: loading it has to be enough", checksum_path(local), local.name)
    load_checkpoint(local)


def list_checkpoints(folder: Path) -> list[Path]:
    """The files in `folder` that have a checkpoint's name, whole or not, newest first: by epochs, then by steps.

    Raises:
        InputError: the folder is there and cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if checkpoint_position(path) is not None]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{folder}: not a readable folder of checkpoints ({error.strerror})") from error
    return sorted(found, key=lambda path: (checkpoint_position(path), path.name), reverse=True)


def warn_of_passed_over(path: Path, error: InputError) -> None:
    """Log that a checkpoint does not count; its path stands in the error."""
    logger.warning("checkpoint passed over: %s", error)


def latest_checkpoint(
    folder: str | os.PathLike, *, passed_over: Callable[[Path, InputError], object] = warn_of_passed_over
) -> Path | None:
    """The newest valid checkpoint in `folder` by the numbers in the names, or None.

    Temporary files and other names do not count. A file is valid if it loads and has the checksum that stands beside
    it; without one, as PySlowFast writes them, loading is enough.

    Args:
        folder: local; it need not exist.
        passed_over: is told each newer file that is not valid, and why.
    """
    for path in list_checkpoints(Path(folder)):
        try:
            check_checkpoint(path)
        except InputError as error:
            passed_over(path, error)
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


def _possible_checksums(path: Path) -> list[str]:
    """The checksums that the content of `path` may have now; none where there is no such file, or an unreadable one."""
    try:
        return (read_checksums(path) or [checksum(path)]) if path.is_file() else []
    except OSError:  # what cannot be read need not be recognised
        return []


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
