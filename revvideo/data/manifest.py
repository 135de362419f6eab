"""Which videos, which labels: reads the list of a split. Imports no torch.

PySlowFast's format, one video a line, columns separated by `DATA.PATH_LABEL_SEPARATOR`:

    path label              the usual one
    path anything label     three columns: the middle one is ignored
    path                    one column on every line: all labels are 0 (for prediction without labels)
"""

import os
import re
from dataclasses import dataclass

from revvideo.errors import InputError
from revvideo.paths import path_manager

# Rows looked at to find out what relative paths are relative to: a stat each, slow on network file systems.
_PROBED_ROWS = 64


@dataclass(frozen=True)
class Manifest:
    """The videos of one split.

    Attributes:
        paths: as they are to be opened (prefix already joined).
        labels: class numbers, one a path.
        source: the list that they came from, for messages.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    source: str

    def __len__(self) -> int:
        return len(self.paths)


def read_manifest(path: str, *, separator: str = " ", prefix: str = "", num_classes: int | None = None) -> Manifest:
    """Read a PySlowFast list.

    Paths are joined to `prefix` (an absolute path stays as it is). Without a prefix a relative path is relative to the
    current folder, as in PySlowFast; if none of the list's videos is found there but some are beside the list, then all
    its relative paths are taken relative to the list's folder (judged by up to 64 rows spread over the list).

    Args:
        path: the list, anything that `path_manager` opens.
        separator: DATA.PATH_LABEL_SEPARATOR.
        prefix: DATA.PATH_PREFIX.
        num_classes: MODEL.NUM_CLASSES, to check the labels against; None accepts any label >= 0.

    Raises:
        InputError: no such list, not text, empty, or a line that is not as expected; names file, line, text and key.
    """
    if not separator:
        raise InputError(
            "DATA.PATH_LABEL_SEPARATOR is empty; expected the text between path and label, such as ' ' or ','"
        )
    rows = [
        (number, *_parse_line(line, path, number, separator))
        for number, line in enumerate(_lines(path), start=1)
        if line.strip()
    ]
    if not rows:
        raise InputError(
            f"the list {path} is empty; expected one 'path{separator}label' a line (DATA.PATH_TO_DATA_DIR)"
        )
    labelled = [row for row in rows if row[2] is not None]
    if labelled and len(labelled) < len(rows):
        number, name, _ = next(row for row in rows if row[2] is None)
        raise InputError(
            f"{path}, line {number}: {name!r} has no label, but other lines have one; expected 'path{separator}label' "
            f"(DATA.PATH_LABEL_SEPARATOR is {separator!r})"
        )
    labels = tuple(row[2] or 0 for row in rows)
    _check_labels(rows, path, num_classes)
    return Manifest(_resolve([row[1] for row in rows], prefix, path), labels, path)


def _lines(path: str) -> list[str]:
    try:
        with path_manager.open(path, "r", encoding="utf-8") as file:
            return file.read().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"the list {path} is not a text file (UTF-8 expected): DATA.PATH_TO_DATA_DIR") from error
    except OSError as error:
        raise InputError(
            f"cannot read the list {path}: {error.strerror or error}; DATA.PATH_TO_DATA_DIR names the folder with "
            "train.csv, val.csv and test.csv"
        ) from error


def _parse_line(line: str, source: str, number: int, separator: str) -> tuple[str, int | None]:
    """(path, label); the label is None where the line has one column only."""
    columns = line.rstrip("\r\n").split(separator)
    where = f"{source}, line {number}: {line!r}"
    if len(columns) == 1:
        other = re.search(r"([,;|\t ]+)-?\d+\s*$", line)
        if other:
            raise InputError(
                f"{where} looks like a path and a label separated by {other[1]!r}, but "
                f"DATA.PATH_LABEL_SEPARATOR is {separator!r}"
            )
        return line.strip(), None
    if len(columns) > 3:
        raise InputError(
            f"{where} has {len(columns)} columns; expected 'path{separator}label'. A path must not contain the "
            f"separator {separator!r}: choose another one (DATA.PATH_LABEL_SEPARATOR)"
        )
    name, label = columns[0].strip(), columns[-1].strip()
    if not re.fullmatch(r"[+-]?\d+", label):
        raise InputError(
            f"{where}: {label!r} is no integer label; expected 'path{separator}label' with a class number from 0 "
            f"(DATA.PATH_LABEL_SEPARATOR is {separator!r}; a path must not contain it)"
        )
    if not name:
        raise InputError(
            f"{where} has no path; expected 'path{separator}label' (DATA.PATH_LABEL_SEPARATOR is {separator!r})"
        )
    return name, int(label)


def _check_labels(rows: list[tuple[int, str, int | None]], source: str, num_classes: int | None) -> None:
    largest = max(row[2] or 0 for row in rows)
    for number, name, label in rows:
        if label is not None and (label < 0 or (num_classes is not None and label >= num_classes)):
            expected = f"0..{num_classes - 1} (MODEL.NUM_CLASSES is {num_classes})" if num_classes else "0 or more"
            raise InputError(
                f"{source}, line {number}: {name!r} has the label {label}; expected {expected}. "
                f"The largest label in this list is {largest}"
            )


def _resolve(names: list[str], prefix: str, source: str) -> tuple[str, ...]:
    if prefix:
        return tuple(os.path.join(prefix, name) for name in names)
    folder = os.path.dirname(source)
    relative = [name for name in names if not _is_absolute(name)]
    if not relative or not folder:
        return tuple(names)
    probed = relative[:: max(1, len(relative) // _PROBED_ROWS)]
    if any(os.path.exists(name) for name in probed):
        return tuple(names)
    if not any(path_manager.exists(os.path.join(folder, name)) for name in probed):
        return tuple(names)
    return tuple(name if _is_absolute(name) else os.path.join(folder, name) for name in names)


def _is_absolute(name: str) -> bool:
    return os.path.isabs(name) or "://" in name


def check_files(manifest: Manifest) -> list[str]:
    """The paths of the list that do not exist, in its order. One stat a video."""
    return [path for path in manifest.paths if not path_manager.exists(path)]


def require_files(manifest: Manifest) -> list[str]:
    """Like `check_files`, for the start of a run: the caller counts and logs the missing ones that are returned.

    Raises:
        InputError: not one video of the list exists; names the first one and its folder.
    """
    missing = check_files(manifest)
    if missing and len(missing) == len(manifest):
        folder = os.path.dirname(missing[0]) or os.curdir
        state = "exists" if path_manager.isdir(folder) else "does not exist"
        raise InputError(
            f"none of the {len(manifest)} videos of {manifest.source} exists; the first is {missing[0]!r}, and its "
            f"folder {folder!r} {state}. Set DATA.PATH_PREFIX to the folder that the paths of the list are relative to"
        )
    return missing
