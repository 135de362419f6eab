"""Reading the text files of a data set, with errors for users; writing lists so that no half of one is ever seen."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from revvideo.errors import InputError
from revvideo.paths import path_manager

LISTS_KEY = "DATA.PATH_TO_DATA_DIR names the folder with train.csv, val.csv and test.csv, or with another data set"


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file, without their ends. A byte order mark and Windows' line ends are accepted.

    Raises:
        InputError: it cannot be read or is no text.
    """
    return _read(path, lambda file: file.read()).split("\n")


def first_lines(path: str, count: int = 3) -> list[str]:
    """The first lines that are not blank, shortened to 100 characters, for messages and for recognising a format."""
    lines = _read(path, lambda file: list(islice((line.strip() for line in file if line.strip()), count)))
    return [line if len(line) <= 100 else line[:100] + "..." for line in lines]


def read_json(path: str, key: str) -> Any:
    """The content of a json file.

    Raises:
        InputError: it cannot be read or is no json; names `key`.
    """
    text = _read(path, lambda file: file.read())
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not json ({error.msg}); see {key}") from error


def _read(path: str, read: Callable) -> Any:
    try:
        with path_manager.open(path, "r", encoding="utf-8-sig") as file:
            content = read(file)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the list {path} is not a text file (UTF-8 expected; byte {error.start} is "
            f"0x{error.object[error.start]:02x}): DATA.PATH_TO_DATA_DIR"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read the list {path}: {error.strerror or error}; {LISTS_KEY}") from error
    if isinstance(content, str) and "\0" in content:
        raise InputError(f"the list {path} is not a text file (UTF-8 expected, but it holds zero bytes)")
    return content


def is_comment(line: str) -> bool:
    """A lone '#' or one with a blank behind it starts a comment line; '#1.mp4' is a path."""
    return line.lstrip().startswith("# ") or line.strip() == "#"


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Write a local text file: it holds what it held before or all of the lines. Several processes may do so at once.

    Raises:
        OSError: the folder cannot be written to.
    """
    # Not `paths.replace_file`: its one temporary name would be shared by the processes of a run that write one split.
    folder, name = os.path.split(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder or os.curdir)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared data set's lists from everybody else
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
