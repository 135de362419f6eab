"""Files of torch.save: read without executing anything in them, written with the errors of the system."""

import os
import pickle
import struct
from typing import BinaryIO, Protocol

import torch

from revvideo.errors import InputError
from revvideo.paths import path_manager

# What torch.load raises for files that are not what they should be, besides the refusal of pickled objects.
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, struct.error)


class Digest(Protocol):
    """What hashlib's objects can do."""

    def update(self, data, /) -> None: ...


def local_file(path: str | os.PathLike) -> str:
    """The local path of a checkpoint, fetched through the path manager where it is remote.

    Raises:
        InputError: no such file, or a folder.
    """
    local = path_manager.get_local_path(str(path))
    if os.path.isdir(local):
        raise InputError(f"{path} is a folder; expected a checkpoint file")
    if not os.path.isfile(local):
        raise InputError(f"{path}: no such checkpoint file")
    return local


def read_torch_file(path: str | os.PathLike) -> object:
    """What torch.save wrote, on the CPU, read with `weights_only=True` and memory-mapped where the format allows.

    Args:
        path: local, or remote through the path manager.

    Raises:
        InputError: no such file, a file that is cut off or of another format, or one that holds more than tensors and
            plain values; nothing of such a file is executed.
    """
    local = local_file(path)
    try:
        return _read(local)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not loaded: it is no checkpoint, or holds Python objects beyond tensors and plain values, which "
            "could run code"
        ) from error
    except UNREADABLE as error:
        raise InputError(f"{path}: damaged, cut off, or no checkpoint ({first_line(error)})") from error


def write_torch_file(path: str | os.PathLike, content: object, *, digest: Digest | None = None) -> None:
    """torch.save to a local file.

    Args:
        path: local path.
        content: tensors and plain values, nested in dicts, lists and tuples.
        digest: one of hashlib's objects; it is given every byte of the file on its way there, so that the checksum
            needs no second reading, and is that of what was meant to be written.

    Raises:
        OSError: the disk is full, there is no such folder, ...
    """
    with open(path, "wb") as file:
        recorder = _Recorder(file, digest)
        try:
            torch.save(content, recorder)
        except RuntimeError as error:
            raise (recorder.error or error) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 200 characters; its type where there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _read(local: str) -> object:
    arguments = {"map_location": "cpu", "weights_only": True}
    try:
        return torch.load(local, **arguments, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(local, **arguments)  # the format before torch 1.6, which some published weights have


class _Recorder:
    """Hands writes on to `file` and `digest`; keeps an OSError, which torch's zip writer turns into a RuntimeError."""

    def __init__(self, file: BinaryIO, digest: Digest | None):
        self.file, self.digest, self.error = file, digest, None

    def write(self, data) -> int:
        if self.digest is not None:
            self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
