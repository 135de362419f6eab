"""A tree of class folders without splits: a seeded, stratified split, written as PySlowFast lists and read from them.

Beside train.csv, val.csv and test.csv are written classes.txt (the class names) and split.json (seed, fractions,
counts), which says that the lists are ours. Which split a sample falls into follows from a hash of the seed and its
path below the tree, so the same tree gives the same split on every machine. Clips cut from one source video are not
known to belong together: a tree with such clips should bring its own lists.
"""

import hashlib
import json
import logging
import os
from dataclasses import replace

from revvideo.data.lists.class_names import number_classes
from revvideo.data.lists.pyslowfast import OWN_CLASS_FILE, SEPARATORS, SPLIT_RECORD
from revvideo.data.lists.pyslowfast import read as read_list
from revvideo.data.lists.request import SPLIT_NAMES, Manifest, Request
from revvideo.data.lists.text_files import read_json, write_lines
from revvideo.data.lists.trees import FORMATS, Tree, tree_manifest
from revvideo.errors import InputError
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)


def read_own_record(root: str) -> dict | None:
    """What split.json beside the lists says, or None: the lists, if there are any, are the user's."""
    path = os.path.join(root, SPLIT_RECORD)
    if not path_manager.isfile(path):
        return None
    record = read_json(path, "DATA.PATH_TO_DATA_DIR")
    if not isinstance(record, dict) or record.get("written_by") != "revvideo":
        raise InputError(f"{path} was not written by revvideo; expected no file of that name beside the lists")
    return record


def is_written(request: Request) -> bool:
    """Whether the list of the split has been written by us before."""
    own = os.path.join(request.root, f"{request.split}.csv")
    return path_manager.isfile(own) and read_own_record(request.root) is not None


def read_or_write_split(request: Request, tree: Tree, kind: str) -> Manifest:
    """Split the tree, write the lists to DATA.PATH_TO_DATA_DIR and return the part of `request.split`.

    Raises:
        InputError: fractions that leave nothing, lists of the user's in the place, or a folder that is not writable.
    """
    val, test = request.val_fraction, request.test_fraction
    if not (0 < val < 1 and 0 <= test < 1 and val + test < 1):
        raise InputError(
            f"the fractions of validation {val} and test {test}; expected val > 0, test >= 0, together less than 1"
        )
    if read_own_record(request.root) is None:
        for split in SPLIT_NAMES:
            path = os.path.join(request.root, f"{split}.csv")
            if path_manager.exists(path):
                raise InputError(
                    f"{path} stands where a split of {tree.folder} would be written; read the lists with "
                    "LOADER.LIST_FORMAT pyslowfast, or set DATA.PATH_TO_DATA_DIR to an empty folder and "
                    f"LOADER.VIDEO_FOLDER to {tree.folder}"
                )
    classes = number_classes(tree.classes, tree.folder, request.class_file, request.num_classes)
    whole = tree_manifest(tree, classes, kind)
    parts = divide(tree, request.seed, val, test)
    for path in whole.paths:
        if "\n" in path or path.encode("utf-8", "replace") != path.encode("utf-8", "surrogateescape"):
            raise InputError(f"{path!r} has a line break or is no UTF-8; such a path cannot stand in a list: rename it")
    paths = [os.path.abspath(path) if "://" not in path else path for path in whole.paths]
    whole = replace(whole, paths=tuple(paths))
    _write(request, tree, whole, parts, kind)
    rows = parts[request.split]
    logger.info(
        "split %s (seed %d): %s", tree.folder, request.seed, ", ".join(f"{k} {len(v)}" for k, v in parts.items())
    )
    return replace(
        whole,
        paths=tuple(whole.paths[row] for row in rows),
        labels=tuple(whole.labels[row] for row in rows),
        source=os.path.join(request.root, f"{request.split}.csv"),
    )


def divide(tree: Tree, seed: int, val_fraction: float, test_fraction: float) -> dict[str, list[int]]:
    """Split -> its rows of `tree.samples`, in their order.

    Of a class of n samples `round(n * fraction)` go to a split, but at least one if n is 3 or more; of two samples one
    is for validation, a single one for training. Without a test fraction the test split is the validation split.
    """
    by_class: dict[str, list[int]] = {}
    for row, (name, _) in enumerate(tree.samples):
        by_class.setdefault(name, []).append(row)
    parts: dict[str, list[int]] = {split: [] for split in SPLIT_NAMES}
    small = []
    for name, rows in by_class.items():
        count = len(rows)
        rows = sorted(rows, key=lambda row: _hash(tree, row, seed))
        num_val = max(1, round(count * val_fraction)) if count > 1 else 0
        num_test = max(1, round(count * test_fraction)) if count > 2 and test_fraction else 0
        if num_val + num_test >= count > 1:
            num_val, num_test = (1, 1 if test_fraction else 0) if count > 2 else (1, 0)
        if num_val == 0 or (test_fraction and num_test == 0):
            small.append(name)
        parts["val"] += rows[:num_val]
        parts["test"] += rows[num_val : num_val + num_test] if test_fraction else rows[:num_val]
        parts["train"] += rows[num_val + num_test :]
    if small:
        logger.warning("classes with too few samples for every split: %d, such as %s", len(small), small[0])
    if not parts["val"]:
        raise InputError(
            f"{tree.folder} cannot be split: no class has two samples; bring lists of your own (train.csv)"
        )
    return {split: sorted(rows) for split, rows in parts.items()}


def _hash(tree: Tree, row: int, seed: int) -> bytes:
    name, path = tree.samples[row]
    return hashlib.sha256(f"{seed}/{name}/{os.path.basename(path)}".encode("utf-8", "surrogateescape")).digest()


def _write(request: Request, tree: Tree, whole: Manifest, parts: dict[str, list[int]], kind: str) -> None:
    """The record first: it tells other processes of a run, which may look in between, whose lists these are."""
    separators = dict.fromkeys((request.separator, *SEPARATORS))
    free = (mark for mark in separators if mark and not any(mark in path or '"' in path for path in whole.paths))
    separator = next(free, None)
    if separator is None:
        raise InputError(
            f"the names below {tree.folder} hold double quotes or every separator of a list "
            f"({', '.join(map(repr, separators))}); rename them or set DATA.PATH_LABEL_SEPARATOR to another one"
        )
    record = {
        "written_by": "revvideo",
        "tree": os.path.abspath(tree.folder),
        "kind": kind,
        "seed": request.seed,
        "val_fraction": request.val_fraction,
        "test_fraction": request.test_fraction,
        "samples": {split: len(rows) for split, rows in parts.items()},
    }
    folder = request.root
    try:
        os.makedirs(folder, exist_ok=True)
        write_lines(os.path.join(folder, SPLIT_RECORD), json.dumps(record, indent=1).split("\n"))
        write_lines(os.path.join(folder, OWN_CLASS_FILE), whole.class_names)
        for split in ("test", "val", "train"):
            lines = (f"{whole.paths[row]}{separator}{whole.labels[row]}" for row in parts[split])
            write_lines(os.path.join(folder, f"{split}.csv"), lines)
    except OSError as error:
        raise InputError(
            f"{tree.folder} has no folders train/ and val/, so it is split by seed, but the lists cannot be written to "
            f"{folder} ({error.strerror or error}); set DATA.PATH_TO_DATA_DIR to a folder that you may write to (it "
            f"may be empty) and LOADER.VIDEO_FOLDER to {tree.folder}"
        ) from error


def read_lists(request: Request) -> Manifest:
    """PySlowFast lists: the user's, or those of a split that was written before.

    Seed and fractions of a written split stay, whatever is asked for now.
    """
    record = read_own_record(request.root)
    if record is None:
        return read_list(request)
    manifest = read_list(replace(request, guess_separator=True, prefix="", video_folder=""))
    asked = {"seed": request.seed, "val_fraction": request.val_fraction, "test_fraction": request.test_fraction}
    kept = {name: record.get(name) for name in asked}
    if kept != asked:
        logger.info(
            "%s was split with %s, which stays; to split again with %s, remove its train.csv, val.csv, test.csv and %s",
            request.root,
            kept,
            asked,
            SPLIT_RECORD,
        )
    kind = record.get("kind", "video")
    if kind not in FORMATS.values():
        raise InputError(f"{request.root}/{SPLIT_RECORD} has the kind {kind!r}; expected {', '.join(FORMATS.values())}")
    return replace(manifest, kind=kind)
