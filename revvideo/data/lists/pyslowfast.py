"""PySlowFast's lists train.csv, val.csv, test.csv: a video a line, columns separated by DATA.PATH_LABEL_SEPARATOR.

    path label              the usual one
    path anything label     three columns: the middle one is ignored
    path                    one column on every line: all labels are 0 (for prediction without labels)

Blank lines, and lines that start with '# ', are skipped. A line with a double quote is read as csv does, so that a
quoted path may hold the separator. The paths may be frame folders or pictures instead of videos.
"""

import contextlib
import csv
import logging
import os
import re
from dataclasses import replace

from revvideo.data.lists.class_names import ClassNumbers, read_class_file
from revvideo.data.lists.folders import is_absolute, is_picture, is_video
from revvideo.data.lists.request import SPLIT_NAMES, Found, Manifest, Request
from revvideo.data.lists.text_files import first_lines, is_comment, read_lines, shortened
from revvideo.errors import InputError
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)

SEPARATORS = (" ", ",", "\t", ";")
OWN_CLASS_FILE = "classes.txt"  # class names beside the lists; written with a split of ours
SPLIT_RECORD = "split.json"  # beside lists that we have written

# Rows looked at to find out what relative paths are relative to: a stat each, slow on network file systems.
_PROBED_ROWS = 64
# Paths looked at to find out whether they are frame folders.
_PROBED_KINDS = 8

_Row = tuple[int, str, "int | None"]  # line number, path, label


def find(request: Request) -> Found | None:
    """A list of the split, or of another one if these are not lists of ours that are just being written."""
    paths = [os.path.join(request.root, f"{split}.csv") for split in SPLIT_NAMES]
    own = paths.pop(list(SPLIT_NAMES).index(request.split))
    others_count = not path_manager.exists(os.path.join(request.root, SPLIT_RECORD))
    for path in [own, *(paths if others_count else ())]:
        if path_manager.isfile(path) and not is_other_table(path):
            return Found("pyslowfast", path)
    return None


def is_other_table(path: str) -> bool:
    """Whether a csv file has the header of the official Kinetics lists or of PySlowFast's lists of frames."""
    header = "".join(first_lines(path, 1)).lower()
    return "youtube_id" in header or header.startswith("original_vido_id")


def read(request: Request) -> Manifest:
    """The list of the split; class names from the class file or from classes.txt beside the lists."""
    source = os.path.join(request.root, f"{request.split}.csv")
    lines = read_lines(source)
    separator = _guess_separator(lines, source, request.separator) if request.guess_separator else request.separator
    prefix = request.prefix or request.video_folder
    manifest = _parse(lines, source, separator, prefix, request.num_classes)
    manifest = replace(manifest, kind=_kind(manifest.paths))
    if not manifest.labelled and request.split == "train":
        raise InputError(
            f"{source} has one column, so no labels; training needs 'path{separator}label' on every line "
            f"(DATA.PATH_LABEL_SEPARATOR is {request.separator!r})"
        )
    return name_classes(manifest, request)


def read_manifest(path: str, *, separator: str = " ", prefix: str = "", num_classes: int | None = None) -> Manifest:
    """Read one list in PySlowFast's format.

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
    return _parse(read_lines(path), path, separator, prefix, num_classes)


def _parse(lines: list[str], path: str, separator: str, prefix: str, num_classes: int | None) -> Manifest:
    rows = [
        (number, *_parse_line(line, path, number, separator))
        for number, line in enumerate(lines, start=1)
        if line.strip() and not is_comment(line)
    ]
    if not rows:
        raise InputError(
            f"the list {path} is empty; expected one 'path{separator}label' a line (DATA.PATH_TO_DATA_DIR)"
        )
    labelled = [row for row in rows if row[2] is not None]
    if labelled and len(labelled) < len(rows):
        number, name, _ = next(row for row in rows if row[2] is None)
        raise InputError(
            f"{path}, line {number}: {shortened(name)!r} has no label, but other lines have one; expected "
            f"'path{separator}label' (DATA.PATH_LABEL_SEPARATOR is {separator!r})"
        )
    if not labelled:
        logger.info("%s has one column: all its labels are 0", path)
    check_labels(rows, path, num_classes)
    labels = tuple(row[2] or 0 for row in rows)
    paths = resolve_paths([row[1] for row in rows], prefix, path)
    return Manifest(paths, labels, path, labelled=bool(labelled))


def _parse_line(line: str, source: str, number: int, separator: str) -> tuple[str, int | None]:
    """(path, label); the label is None where the line has one column only."""
    columns = _columns(line, separator)
    where = f"{source}, line {number}: {shortened(line)!r}"
    if len(columns) == 1:
        other = re.search(r"([,;|\t ]+)-?\d+\s*$", line)
        if other:
            raise InputError(
                f"{where} looks like a path and a label separated by {other[1]!r}, but "
                f"DATA.PATH_LABEL_SEPARATOR is {separator!r}"
            )
        return columns[0].strip(), None
    broken_path = len(columns) == 3 and not _is_media(columns[0]) and _is_media(columns[1])
    if len(columns) > 3 or broken_path:
        raise InputError(
            f"{where} has {len(columns)} columns; expected 'path{separator}label'. A path must not contain the "
            f"separator {separator!r}: choose another one (DATA.PATH_LABEL_SEPARATOR)"
        )
    name, label = columns[0].strip(), columns[-1].strip()
    if not re.fullmatch(r"[+-]?\d{1,18}", label):
        raise InputError(
            f"{where}: {shortened(label)!r} is no integer label; expected 'path{separator}label' with a class number "
            f"from 0 (DATA.PATH_LABEL_SEPARATOR is {separator!r}; a path must not contain it), and no header line"
        )
    if not name:
        raise InputError(
            f"{where} has no path; expected 'path{separator}label' (DATA.PATH_LABEL_SEPARATOR is {separator!r})"
        )
    return name, int(label)


def _kind(paths: tuple[str, ...]) -> str:
    """What the first paths are: pictures by their suffix, frame folders where one is a folder, else videos."""
    for path in paths[:_PROBED_KINDS]:
        if is_picture(path):
            return "image"
        if not is_video(path) and path_manager.isdir(path):
            return "frames"
    return "video"


def _columns(line: str, separator: str) -> list[str]:
    line = line.rstrip("\r\n")
    if '"' in line and len(separator) == 1:
        # A column that is longer than csv takes: what a lone quote makes of a very long line. It has no columns then.
        with contextlib.suppress(csv.Error):
            return next(csv.reader([line.strip()], delimiter=separator))
        return [line]
    if separator == " ":
        return [column for column in line.split(" ") if column] or [""]  # blanks at the ends or in a row
    return line.split(separator)


def _is_media(name: str) -> bool:
    return is_video(name.strip()) or is_picture(name.strip())


def _guess_separator(lines: list[str], source: str, configured: str) -> str:
    """The configured separator if it fits every line, else the only other one that does; the configured one if none.

    Raises:
        InputError: several others fit.
    """
    rows = [line for line in lines if line.strip() and not is_comment(line)]
    if not rows or (configured and _fits(rows, configured)):
        return configured or " "
    fitting = [separator for separator in SEPARATORS if separator != configured and _fits(rows, separator)]
    if len(fitting) > 1:
        shown = "\n".join(f"    {line}" for line in first_lines(source))
        raise InputError(
            f"{source} can be read with the separators {' and '.join(map(repr, fitting))}; set "
            f"DATA.PATH_LABEL_SEPARATOR to the right one. Its first lines:\n{shown}"
        )
    if fitting:
        logger.info("%s is separated by %r (DATA.PATH_LABEL_SEPARATOR is %r)", source, fitting[0], configured)
        return fitting[0]
    if all(_is_media(line.strip().strip('"')) for line in rows):
        return "\0"  # paths with blanks and without labels: nothing separates
    return configured or " "


def _fits(rows: list[str], separator: str) -> bool:
    """Whether every row is read as a path with a label, or, where no row ends in a number, as a path."""
    labelled = 0
    for line in rows:
        try:
            name, label = _parse_line(line, "", 0, separator)
        except InputError:
            return False
        if name[-1] in ",;|":  # 'x.mp4, 5': the comma separates
            return False
        labelled += label is not None
    return labelled == len(rows) or (labelled == 0 and not any(re.search(r"[,;\t ]", line.strip()) for line in rows))


def check_labels(rows: list[_Row], source: str, num_classes: int | None) -> None:
    """Raises InputError with the first row whose label is not one of `num_classes` (None: is negative)."""
    largest = max(row[2] or 0 for row in rows)
    for number, name, label in rows:
        if label is not None and (label < 0 or (num_classes is not None and label >= num_classes)):
            expected = f"0..{num_classes - 1} (MODEL.NUM_CLASSES is {num_classes})" if num_classes else "0 or more"
            raise InputError(
                f"{source}, line {number}: {shortened(name)!r} has the label {label}; expected {expected}. "
                f"The largest label in this list is {largest}"
            )


def name_classes(manifest: Manifest, request: Request) -> Manifest:
    """The manifest of a list of numbers with the names of a class file: the one asked for, or classes.txt beside it.

    Raises:
        InputError: a label beyond the class file that was asked for.
    """
    beside = os.path.join(request.root, OWN_CLASS_FILE)
    path = request.class_file or (beside if path_manager.isfile(beside) else "")
    if not path:
        return manifest
    names = ClassNumbers(read_class_file(path), path).names
    largest = max(manifest.labels)
    if largest < len(names):
        return replace(manifest, class_names=names)
    problem = (
        f"{manifest.source} has the label {largest}, but {path} names {len(names)} classes (0 to {len(names) - 1})"
    )
    if request.class_file:
        raise InputError(f"{problem}; LOADER.CLASS_FILE names the file of the classes")
    logger.warning("%s: the file is not used", problem)
    return manifest


def resolve_paths(names: list[str], prefix: str, source: str) -> tuple[str, ...]:
    """Paths of a list as they are to be opened: as `read_manifest` says."""
    if prefix:
        return tuple(os.path.join(prefix, name) for name in names)
    folder = os.path.dirname(source)
    relative = [name for name in names if not is_absolute(name)]
    if not relative or not folder:
        return tuple(names)
    probed = relative[:: max(1, len(relative) // _PROBED_ROWS)]
    if any(os.path.exists(name) for name in probed):
        return tuple(names)
    if not any(path_manager.exists(os.path.join(folder, name)) for name in probed):
        return tuple(names)
    return tuple(name if is_absolute(name) else os.path.join(folder, name) for name in names)
