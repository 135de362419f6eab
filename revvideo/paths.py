"""One PathManager for everything that revvideo opens: configs, lists, checkpoints, videos.

Local paths work as they are. A project that keeps its files elsewhere registers an iopath handler here once,
and every part of revvideo reads and writes through it.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from iopath.common.file_io import PathManager

path_manager = PathManager()


def replace_file(
    path: Path, write: Callable[[Path], object], *, durable: bool = False, temporary_name: str | None = None
) -> None:
    """Write a local file so that `path` holds either what it held before or all that is new, whenever the process dies.

    Args:
        path: the file.
        write: fills the temporary neighbour whose path it gets, which is then moved into place; if it raises, no
            temporary file is left.
        durable: force the content and then the move to the disk before returning, so that a power cut cannot undo them.
        temporary_name: name of the temporary neighbour; default `.NAME.tmp`.
    """
    # One name: what a kill leaves is written over later.
    temporary = path.with_name(temporary_name or f".{path.name}.tmp")
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a local folder and those above it where they are missing, so that a power cut cannot undo it.

    Raises:
        OSError: it cannot be made, or a file is in its place.
    """
    missing = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(missing):
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a local folder to the disk: files made, moved and deleted there stay so after a power cut."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no fsync of a folder
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
