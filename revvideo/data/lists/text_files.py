"""Reading the text files of a data set, with errors for users; writing lists so that no half of one is ever seen."""

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TextIO

from revvideo.errors import InputError
from revvideo.paths import path_manager

LISTS_KEY = "DATA.PATH_TO_DATA_DIR names the folder with train.csv, val.csv and test.csv, or with another data set"


def read_lines(path: str, key: str = LISTS_KEY) -> list[str]:
    """The lines of a UTF-8 file, without their ends. A byte order mark and Windows' line ends are accepted.

    Raises:
        InputError: it cannot be read or is no text; names `key`.
    """
    return read_text(path, lambda file: file.read(), key).split("\n")


def first_lines(path: str, count: int = 3) -> list[str]:
    """The first lines that are not blank, shortened to 100 characters, for messages and for recognising a format."""
    lines = read_text(path, lambda file: list(islice((line.strip() for line in file if line.strip()), count)))
    return [shortened(line) for line in lines]


def shortened(text: str) -> str:
    """At most 100 characters of a line, for messages."""
    return text if len(text) <= 100 else text[:100] + "..."


def csv_rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns) of each row of a csv file that separates by commas.

    Raises:
        InputError: a column that never ends, which a lone double quote makes of the rest of a long file.
    """
    reader = csv.reader(lines, skipinitialspace=True)
    start = 1
    try:
        for columns in reader:
            yield reader.line_num, columns
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{source}, line {start}: a double quote opens there and does not close ({error})") from error


def read_json(path: str, key: str) -> Any:
    """The content of a json file.

    Raises:
        InputError: it cannot be read or is no json; names `key`.
    """
    text = read_text(path, lambda file: file.read(), key)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not json ({error.msg}); see {key}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise InputError(f"{path}: no json of a data set ({error}); see {key}") from error


def read_text(path: str, read: Callable[[TextIO], Any], key: str = LISTS_KEY) -> Any:
    """What `read` makes of the open UTF-8 file, for files that are too large to hold.

    Raises:
        InputError: it cannot be read or is no text; names `key`.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise OSError("not a regular file")  # reading a fifo would never end
        with path_manager.open(path, "r", encoding="utf-8-sig") as file:
            content = read(file)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the list {path} is not a text file (UTF-8 expected; byte {error.start} is "
            f"0x{error.object[error.start]:02x}); {key}"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read the list {path}: {error.strerror or error}; {key}") from error
    if isinstance(content, str) and "\0" in content:
        raise InputError(f"the list {path} is not a text file (UTF-8 expected, but it holds zero bytes); {key}")
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
