"""The official lists of Kinetics-400, 600, 700 and 700-2020: csv, header label,youtube_id,time_start,time_end,split.

A clip is the file `{youtube_id}_{time_start:06d}_{time_end:06d}` with any video suffix, as CVDF's archives and
ActivityNet's crawler name it, in a flat folder or in class folders. CVDF's `replacement` folder (good copies of
corrupt training files) comes before every other one. Class numbers: the sorted names of the training list.
"""

import logging
import os
import re

from revvideo.data.lists.class_names import number_classes, plain_name
from revvideo.data.lists.folders import VideoIndex, look_into
from revvideo.data.lists.request import SPLIT_NAMES, Found, Manifest, Request
from revvideo.data.lists.text_files import csv_rows, first_lines, read_lines, shortened
from revvideo.errors import InputError
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)

_HEADER = ("youtube_id", "time_start", "time_end")
_ANY_SPLIT = "|".join(name for names in SPLIT_NAMES.values() for name in names)
_PREFIX = r"(?:(?:k|kinetics)[-_]?(?:\d{3})?(?:[-_]2020)?[-_])?"
_NAME = re.compile(rf"{_PREFIX}({_ANY_SPLIT})\.csv", re.IGNORECASE)
# Folders beside the lists that are looked through when LOADER.VIDEO_FOLDER is empty.
_VIDEO_FOLDERS = re.compile(rf"(videos?|clips|compress(ed)?)([-_].*)?|({_ANY_SPLIT})([-_]\d+(p|px)?)?")
_DEPTH = 3  # videos/train/CLASS/x.mp4


def find(request: Request) -> Found | None:
    """An official list in the folder or in its sub-folder annotations, if possible of the split that is asked for."""
    lists = _lists(request.root)
    for split in (request.split, *SPLIT_NAMES):
        if lists.get(split):
            return Found("kinetics", lists[split][0])
    return None


def _lists(root: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folder in (root, os.path.join(root, "annotations")):
        for name in look_into(folder).files:
            match, path = _NAME.fullmatch(name), os.path.join(folder, name)
            if match and all(column in "".join(first_lines(path, 1)).lower() for column in _HEADER):
                split = next(split for split, names in SPLIT_NAMES.items() if match[1].lower() in names)
                found.setdefault(split, []).append(path)
    return found


def read(request: Request) -> Manifest:
    """The list of the split, each clip with its file, or with the place where it was expected.

    Raises:
        InputError: no list or several, a bad line, an unknown class, or no video at all.
    """
    lists, split = _lists(request.root), request.split
    if split == "test" and "test" not in lists and "val" in lists:
        split = "val"
        logger.info("%s has no official list of the test split: the validation list is read", request.root)
    source = _only(lists, split, request)
    rows = _rows(source)
    labelled = any(row[0] for row in rows)
    names, labels = (), (0,) * len(rows)
    if labelled:
        names_from = _only(lists, "train", request) if "train" in lists and not request.class_file else source
        found = {row[0] for row in (rows if names_from == source else _rows(names_from))}
        classes = number_classes(found, names_from, request.class_file, request.num_classes)
        numbers = {}
        for label, _, line in rows:
            if label not in numbers:
                numbers[label] = classes.number(label, f"{source}, line {line}")
        names, labels = classes.names, tuple(numbers[label] for label, _, _ in rows)
    elif split == "train":
        raise InputError(f"{source} has no labels; training needs the column 'label'")
    else:
        logger.info("%s has no labels: they are all 0", source)
    paths = _find_videos(rows, request, split)
    return Manifest(paths, labels, source, class_names=names, labelled=labelled)


def _only(lists: dict[str, list[str]], split: str, request: Request) -> str:
    paths = lists.get(split, [])
    if len(paths) == 1:
        return paths[0]
    if not paths:
        raise InputError(
            f"{request.root} has no official Kinetics list of the split {split!r}; expected {split}.csv (or "
            f"{' or '.join(SPLIT_NAMES[split][1:])}.csv) with the header label,youtube_id,time_start,time_end,split "
            "(DATA.PATH_TO_DATA_DIR)"
        )
    shown = "\n".join(f"  {path}: {' | '.join(first_lines(path, 2))}" for path in paths)
    raise InputError(
        f"{request.root} has {len(paths)} official Kinetics lists of the split {split!r}; leave the right one there "
        f"(DATA.PATH_TO_DATA_DIR). Their first lines:\n{shown}"
    )


def _rows(source: str) -> list[tuple[str, str, int]]:
    """(label, name of the file without suffix, line) of each clip."""
    header: list[str] = []
    rows = []
    for line, columns in csv_rows(read_lines(source), source):
        columns = [column.strip() for column in columns]
        if not any(columns):
            continue
        if not header:
            header = [column.lower() for column in columns]
            lacking = [column for column in _HEADER if column not in header]
            if lacking:
                raise InputError(
                    f"{source}, line {line}: the header {shortened(','.join(columns))!r} has no column {lacking[0]!r}; "
                    "expected label,youtube_id,time_start,time_end,split, separated by commas"
                )
            label_column = header.index("label") if "label" in header else None
            where = [header.index(column) for column in _HEADER]
            continue
        try:
            video, start, end = (columns[i] for i in where)
            name = f"{video}_{int(float(start)):06d}_{int(float(end)):06d}"
            label = "" if label_column is None else columns[label_column]
        except (IndexError, ValueError, OverflowError) as error:
            raise InputError(
                f"{source}, line {line}: {shortened(','.join(columns))!r}; expected {','.join(header)} with times in "
                "seconds"
            ) from error
        rows.append((label.strip('"'), name, line))
    if not rows:
        raise InputError(f"the list {source} has no clips (DATA.PATH_TO_DATA_DIR)")
    unlabelled = [row for row in rows if not row[0]]
    if unlabelled and len(unlabelled) < len(rows):
        raise InputError(
            f"{source}, line {unlabelled[0][2]}: {unlabelled[0][1]} has no label, but other lines have one"
        )
    return rows


def _find_videos(rows: list[tuple[str, str, int]], request: Request, split: str) -> tuple[str, ...]:
    base, given = request.video_folder or request.prefix, bool(request.video_folder or request.prefix)
    if not given:
        base = request.root
        if os.path.basename(os.path.normpath(base)) == "annotations":
            base = os.path.dirname(os.path.normpath(base))
    elif not path_manager.isdir(base):
        raise InputError(
            f"LOADER.VIDEO_FOLDER (or DATA.PATH_PREFIX) is {base!r}, which is no folder; expected the one that holds "
            f"the videos of {request.root}"
        )
    classes = frozenset(plain_name(label) for label, _, _ in rows if label)
    first, later = _search_folders(base, given, split, classes)
    index = VideoIndex()
    for folder in first:
        index.add(folder, _DEPTH)
    if any(not index.all(name) for _, name, _ in rows):  # videos of another split: some take val.csv as test.csv
        index.add(base, 0)
        for folder in later:
            index.add(folder, _DEPTH, skip=frozenset(first))
    if not len(index):
        raise InputError(
            f"no videos were found for {request.root} in {base} (looked through: "
            f"{', '.join(map(os.path.basename, [*first, *later])) or 'no sub-folder'}); name the folder with files "
            f"like {rows[0][1]}.mp4 with LOADER.VIDEO_FOLDER"
        )
    expected_in = next((folder for folder in first if not _is_replacement(folder)), base)
    return tuple(_choose(index.all(name), label, os.path.join(expected_in, f"{name}.mp4")) for label, name, _ in rows)


def _search_folders(base: str, given: bool, split: str, classes: frozenset[str]) -> tuple[list[str], list[str]]:
    """Folders below `base` to look through: those of the split, replacements first, and then the others."""
    base = os.path.normpath(base) if "://" not in base else base
    replacements, own, others = [], [], []
    for name in look_into(base).folders:
        path = os.path.join(base, name)
        if _is_replacement(path):
            replacements.append(path)
        elif _is_of_split(name, split):
            own.append(path)
        elif re.fullmatch(r"videos?|clips|compress(ed)?", name):
            inner = [inner for inner in look_into(path).folders if _is_of_split(inner, split)]
            own += [os.path.join(path, name) for name in inner]
            others.append(path)
        elif given or _VIDEO_FOLDERS.fullmatch(name) or plain_name(name) in classes:
            others.append(path)
    if any(_is_of_split(os.path.basename(base), name) for name in SPLIT_NAMES):  # LOADER.VIDEO_FOLDER .../train
        above = os.path.dirname(base)
        replacements += [os.path.join(above, name) for name in look_into(above).folders if _is_replacement(name)]
    return replacements + own, others


def _is_of_split(name: str, split: str) -> bool:
    names = "|".join(SPLIT_NAMES[split])
    return re.fullmatch(rf"((videos?|clips)[-_])?({names})([-_]\d+(p|px)?)?", name) is not None


def _is_replacement(path: str) -> bool:
    return os.path.basename(path).startswith("replacement")


def _choose(paths: list[str], label: str, expected: str) -> str:
    """Of several files of a clip the replacement, else the one in its class folder, else the first."""
    if not paths:
        return expected
    if len(paths) == 1 or "/replacement" in paths[0].replace(os.sep, "/"):
        return paths[0]
    own = (path for path in paths if plain_name(os.path.basename(os.path.dirname(path))) == plain_name(label))
    return next(own, paths[0])
