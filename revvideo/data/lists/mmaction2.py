"""mmaction2's lists: `kinetics400_train_list_videos.txt` with 'path label' lines, `..._rawframes.txt` with 'folder
total_frames label' lines. Columns are separated by blanks or tabs; a path may hold blanks.

The paths are relative to mmaction2's `data_prefix`: LOADER.VIDEO_FOLDER or DATA.PATH_PREFIX here; without them the
list's folder and its usual neighbours (videos_train, rawframes_train, videos, ...) are tried.
"""

import logging
import os
import re

from revvideo.data.lists.folders import is_absolute, look_into
from revvideo.data.lists.pyslowfast import check_labels, name_classes
from revvideo.data.lists.request import SPLIT_NAMES, Found, Manifest, Request
from revvideo.data.lists.text_files import first_lines, is_comment, read_lines, shortened
from revvideo.errors import InputError
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)

FORMATS = {"mmaction2_videos": "videos", "mmaction2_rawframes": "rawframes"}
_NAME = re.compile(r"(?:^|.*_)(train|val|test)_(?:list|split_?\d+)(?:_(videos|rawframes))?\.txt")
_PROBED_ROWS = 64


def find(request: Request, format: str) -> Found | None:
    """A list of the format in the folder, if possible of the split that is asked for."""
    lists = _lists(request, format)
    for split in (request.split, *SPLIT_NAMES):
        if lists.get(split):
            return Found(format, lists[split][0])
    return None


def _lists(request: Request, format: str) -> dict[str, list[str]]:
    """Split -> its lists; a name that does not say what it lists is one of videos."""
    found: dict[str, list[str]] = {}
    for folder in (request.root, os.path.join(request.root, "annotations")):
        for name in look_into(folder).files:
            match = _NAME.fullmatch(name)
            if match and (match[2] or "videos") == FORMATS[format]:
                found.setdefault(match[1], []).append(os.path.join(folder, name))
    return found


def read(request: Request, format: str) -> Manifest:
    """The list of the split; validation's for a test split that has none, as mmaction2 tests on it."""
    lists, split = _lists(request, format), request.split
    if split == "test" and "test" not in lists and "val" in lists:
        split = "val"
        logger.info("%s has no list of the test split: %s is read", request.root, lists["val"][0])
    kind = FORMATS[format]
    if split not in lists:
        raise InputError(
            f"{request.root} has no list of the split {split!r}; expected a file named like "
            f"kinetics400_{split}_list_{kind}.txt (DATA.PATH_TO_DATA_DIR, LOADER.LIST_FORMAT {format})"
        )
    if len(lists[split]) > 1:
        shown = "\n".join(f"  {path}: {' | '.join(first_lines(path, 2))}" for path in lists[split])
        raise InputError(
            f"{request.root} has {len(lists[split])} lists of the split {split!r}; leave the right one in the folder "
            f"(DATA.PATH_TO_DATA_DIR). Their first lines:\n{shown}"
        )
    source = lists[split][0]
    rows = [
        (number, *_parse_line(line, source, number, kind))
        for number, line in enumerate(read_lines(source), start=1)
        if line.strip() and not is_comment(line)
    ]
    if not rows:
        raise InputError(f"the list {source} is empty; expected {_expected(kind)}")
    check_labels(rows, source, request.num_classes)
    paths = _join([row[1] for row in rows], request, source, split)
    manifest = Manifest(paths, tuple(row[2] for row in rows), source, kind="frames" if kind == "rawframes" else "video")
    return name_classes(manifest, request)


def _expected(kind: str) -> str:
    return "'path label' on every line" if kind == "videos" else "'folder total_frames label' on every line"


def _parse_line(line: str, source: str, number: int, kind: str) -> tuple[str, int]:
    columns = line.rsplit(None, 1 if kind == "videos" else 2)
    numbers = columns[1:]
    if len(columns) != (2 if kind == "videos" else 3) or not all(re.fullmatch(r"-?\d{1,18}", text) for text in numbers):
        raise InputError(
            f"{source}, line {number}: {shortened(line)!r}; expected {_expected(kind)} (LOADER.LIST_FORMAT)"
        )
    if kind == "rawframes" and int(numbers[0]) < 1:
        raise InputError(f"{source}, line {number}: {shortened(line)!r} has {numbers[0]} frames; expected 1 or more")
    return columns[0].strip(), int(numbers[-1])


def _join(names: list[str], request: Request, source: str, split: str) -> tuple[str, ...]:
    folder = request.video_folder or request.prefix or _folder_beside(names, source, split)
    return tuple(name if is_absolute(name) else os.path.join(folder, name) for name in names)


def _folder_beside(names: list[str], source: str, split: str) -> str:
    """Of the list's folder and its neighbours the one that has most of some names, looked up spread over the list."""
    own = os.path.dirname(source)
    if os.path.basename(own) == "annotations":
        own = os.path.dirname(own)
    relative = [name for name in names if not is_absolute(name)]
    probed = relative[:: max(1, len(relative) // _PROBED_ROWS)]
    wanted = re.compile(rf"((raw)?frames|videos?|clips)([_-]{split})?|{split}")
    folders = [own, *(os.path.join(own, name) for name in look_into(own).folders if wanted.fullmatch(name))]
    counts = [sum(path_manager.exists(os.path.join(folder, name)) for name in probed) for folder in folders]
    best = folders[counts.index(max(counts))]
    if best != own:
        logger.info("the paths of %s are taken relative to %s", source, best)
    return best
