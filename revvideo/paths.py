"""One PathManager for everything that revvideo opens: configs, lists, checkpoints, videos.

Local paths work as they are. A project that keeps its files elsewhere registers an iopath handler here once,
and every part of revvideo reads and writes through it.
"""

import os
from collections.abc import Callable
from pathlib import Path

from iopath.common.file_io import PathManager

path_manager = PathManager()


def replace_file(path: Path, write: Callable[[Path], object], *, durable: bool = False) -> None:
    """Write a local file so that `path` holds either what it held before or all that is new, whenever the process dies.

    Args:
        path: the file.
        write: fills the temporary neighbour whose path it gets, which is then moved into place; if it raises, no
            temporary file is left.
        durable: force the content and then the move to the disk before returning, so that a power cut cannot undo them.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a kill leaves is written over later
    try:
        write(temporary)
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
