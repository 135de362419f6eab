"""One submission of a run folder at a time."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from revvideo.errors import InputError


@contextmanager
def submission_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which names this host and process; a dead process of this host holds none.

    Raises:
        InputError: another submission holds it.
    """
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    mine = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    mine.write_text(owner, encoding="utf-8")
    try:
        if not _take(path, mine):
            _remove_dead(path, mine)
            if not _take(path, mine):
                raise _held(path)
    finally:
        mine.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _take(path: Path, mine: Path) -> bool:
    """Whether the lock is ours now. A link, since it appears with its content, on network file systems too."""
    try:
        os.link(mine, path)
    except FileExistsError:
        return False
    return True


def _remove_dead(path: Path, mine: Path) -> None:
    """Take away the lock of a process that is dead.

    Raises:
        InputError: it may live.
    """
    seen = _read(path)
    if seen and _may_live(seen):
        raise _held(path)
    taken = mine.with_name(f"{mine.name}.dead")
    try:
        path.rename(taken)
    except FileNotFoundError:  # released, or taken away by another submission
        return
    if _read(taken) != seen:  # another submission was faster and this is its own
        _take(path, taken)
    taken.unlink()


def _may_live(owner: str) -> bool:
    try:
        found = json.loads(owner)
        host, pid = found["host"], int(found["pid"])
    except (ValueError, KeyError, TypeError):
        return True
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _held(path: Path) -> InputError:
    return InputError(
        f"another submission of this run folder is being made (lock {path}: {_read(path) or 'gone meanwhile'}); wait "
        "for it; if that process is dead, delete the file and submit again"
    )
