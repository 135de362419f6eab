"""Which videos, which labels: reads the list of a split in every known format. Imports no torch.

`read_split` takes a folder (DATA.PATH_TO_DATA_DIR) and recognises what is in it; docs/data.md shows every format:

    pyslowfast           train.csv, val.csv, test.csv with 'path label' lines
    mmaction2_videos     *_train_list_videos.txt with 'path label' lines
    mmaction2_rawframes  *_train_list_rawframes.txt with 'folder total_frames label' lines
    kinetics             official csv files: label,youtube_id,time_start,time_end,split
    ssv2                 Something-Something v2: train.json, validation.json, labels.json
    class_folders        CLASS/x.mp4, below train/ and val/ or split by seed
    frame_folders        CLASS/VIDEO/00001.jpg, below train/ and val/ or split by seed
    imagenet             train/CLASS/x.JPEG, val/CLASS/x.JPEG
"""

import difflib
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from revvideo.data.lists import kinetics, mmaction2, pyslowfast, something, trees, write_split
from revvideo.data.lists.folders import is_remote, look_into
from revvideo.data.lists.pyslowfast import read_manifest
from revvideo.data.lists.request import SPLIT_NAMES, Found, Manifest, Request
from revvideo.data.lists.text_files import first_lines, write_lines
from revvideo.errors import InputError
from revvideo.paths import path_manager

__all__ = ["LIST_FORMATS", "Manifest", "check_files", "read_manifest", "read_split", "require_files", "write_missing"]

logger = logging.getLogger(__name__)

# Lists come before trees: videos often lie in class folders beside their lists.
_FINDERS: tuple[Callable[[Request], Found | None], ...] = (
    pyslowfast.find,
    *(partial(mmaction2.find, format=name) for name in mmaction2.FORMATS),
    kinetics.find,
    something.find,
)
_READERS: dict[str, Callable[[Request], Manifest]] = {
    "pyslowfast": write_split.read_lists,
    **{name: partial(mmaction2.read, format=name) for name in mmaction2.FORMATS},
    "kinetics": kinetics.read,
    "ssv2": something.read,
    **{name: partial(trees.read, format=name) for name in trees.FORMATS},
}
LIST_FORMATS = ("auto", *_READERS)

# From so many paths in one folder on, its names are read at once instead of asking for each.
_PATHS_WORTH_A_SCAN = 8


def read_split(
    root: str,
    split: str,
    *,
    format: str = "auto",
    prefix: str = "",
    separator: str = " ",
    num_classes: int | None = None,
    video_folder: str = "",
    class_file: str = "",
    seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
) -> Manifest:
    """The videos or pictures of one split of a data set.

    Args:
        root: DATA.PATH_TO_DATA_DIR, the folder of the lists or of the tree.
        split: "train", "val" or "test". Where official lists, mmaction2 lists and trees have no test split, it is the
            validation split (logged).
        format: one of LIST_FORMATS (LOADER.LIST_FORMAT); "auto" recognises it, and the separator of a csv.
        prefix: DATA.PATH_PREFIX, what relative paths of a list start from. It and `video_folder` stand in for each
            other where only one is given.
        separator: DATA.PATH_LABEL_SEPARATOR.
        num_classes: MODEL.NUM_CLASSES, to check labels and classes against; None: no such check.
        video_folder: LOADER.VIDEO_FOLDER, the folder of the videos of official lists, the `data_prefix` of mmaction2
            lists, or the tree where `root` is only the place for its lists; "" looks beside the lists.
        class_file: LOADER.CLASS_FILE, the names of the class numbers; "": what the format brings, or sorted names.
        seed, val_fraction, test_fraction: of the split of a tree that has no split folders. A split that has been
            written before stays as it is.

    Raises:
        InputError: nothing recognised, or several formats (the message shows their first lines); a bad list, label or
            class; a split that cannot be written.
    """
    if split not in SPLIT_NAMES:
        raise InputError(f"the split is {split!r}; expected one of {', '.join(SPLIT_NAMES)}")
    if format not in LIST_FORMATS:
        near = difflib.get_close_matches(format, LIST_FORMATS, n=1, cutoff=0.0)[0]
        raise InputError(
            f"LOADER.LIST_FORMAT is {format!r}; expected one of {', '.join(LIST_FORMATS)} (the nearest is {near!r})"
        )
    root = os.fspath(root)
    if path_manager.isfile(root):
        raise InputError(f"DATA.PATH_TO_DATA_DIR is the file {root}; expected the folder that it is in")
    guess = format == "auto"
    if not separator and not guess:
        raise InputError("DATA.PATH_LABEL_SEPARATOR is empty; expected the text between path and label, such as ' '")
    request = Request(
        root=root,
        split=split,
        prefix=prefix,
        separator=separator,
        guess_separator=guess,
        num_classes=num_classes,
        video_folder=video_folder,
        class_file=class_file,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
    )
    if guess:
        format = _recognise(request)
    manifest = _READERS[format](request)
    names = f", {len(manifest.class_names)} named classes" if manifest.class_names else ""
    logger.info("%s: %d %s in format %s%s", manifest.source, len(manifest), _plural(manifest.kind), format, names)
    _report_contradictions(manifest)
    return manifest


def _report_contradictions(manifest: Manifest) -> None:
    labels = dict(zip(manifest.paths, manifest.labels))
    if len(labels) == len(manifest):
        return
    wrong = [(path, label) for path, label in zip(manifest.paths, manifest.labels) if labels[path] != label]
    if wrong:
        path, label = wrong[0]
        logger.warning(
            "%s gives %d paths more than one label, such as %s, which has %d and %d",
            manifest.source,
            len({path for path, _ in wrong}),
            path,
            label,
            labels[path],
        )


def _plural(kind: str) -> str:
    return {"video": "videos", "frames": "frame folders", "image": "pictures"}[kind]


def _recognise(request: Request) -> str:
    """The only format that fits; lists come before trees.

    Raises:
        InputError: none or several.
    """
    found = [fit for find in _FINDERS if (fit := find(request)) is not None] or trees.find(request)
    if len(found) == 1:
        return found[0].format
    if found:
        shown = "".join(f"\n  {fit.format}: {fit.evidence}{_opening(fit.evidence)}" for fit in found)
        raise InputError(
            f"{request.root} fits {len(found)} formats for the split {request.split!r}; name one with "
            f"LOADER.LIST_FORMAT:{shown}"
        )
    content = look_into(request.root)
    names = [*(f"{name}/" for name in content.folders), *content.files]
    if not path_manager.isdir(request.root):
        holds = "does not exist"
    elif not names:
        holds = "is empty"
    else:
        holds = f"holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
    raise InputError(
        f"cannot read the list {os.path.join(request.root, request.split)}.csv: the folder {holds}; expected in "
        "DATA.PATH_TO_DATA_DIR train.csv, val.csv and test.csv with 'path label' lines, official Kinetics or "
        "Something-Something v2 lists, mmaction2 lists, or a folder a class, below train/ and val/ or not "
        f"(docs/data.md){_hint(request, content.folders)}"
    )


def _opening(path: str) -> str:
    if not path_manager.isfile(path) or not path.endswith((".csv", ".txt", ".json")):
        return ""
    return "".join(f"\n      {line}" for line in first_lines(path))


def _hint(request: Request, folders: tuple[str, ...]) -> str:
    """Names a sub-folder that is a tree of classes, if there is one: a level too high is the usual mistake."""
    if request.video_folder or request.prefix:
        return ""
    for name in folders[:20]:
        inner = os.path.join(request.root, name)
        if trees.find(Request(inner, request.split)):
            return f". {inner} has class folders: set LOADER.VIDEO_FOLDER to it"
    return ""


def check_files(manifest: Manifest) -> list[str]:
    """The paths of the list that do not exist, in its order.

    A local folder with many paths of the list is read once instead of asking for each path.
    """
    by_folder: dict[str, list[tuple[int, str]]] = {}
    for row, path in enumerate(manifest.paths):
        folder, slash, name = path.rpartition("/")
        by_folder.setdefault(folder + slash, []).append((row, name))
    missing: list[int] = []
    for folder, rows in by_folder.items():
        present: set[str] | None = set()
        if len(rows) >= _PATHS_WORTH_A_SCAN and not is_remote(folder):
            present = _present(folder or os.curdir)
        if present is None:
            missing += (row for row, _ in rows)
            continue
        for row, name in rows:
            # A name that the scan did not show may still be there: other case or another Unicode form of it.
            if name not in present and not path_manager.exists(manifest.paths[row]):
                missing.append(row)
    return [manifest.paths[row] for row in sorted(missing)]


def _present(folder: str) -> set[str] | None:
    """Names in a local folder, without links, which may lead nowhere; None: there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink()}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return set()  # it may be entered but not listed: every path is asked for


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
            f"none of the {len(manifest)} {_plural(manifest.kind)} of {manifest.source} exists; the first is "
            f"{missing[0]!r}, and its folder {folder!r} {state}. Set DATA.PATH_PREFIX to the folder that the paths of "
            "the list are relative to (LOADER.VIDEO_FOLDER for official lists)"
        )
    return missing


def write_missing(manifest: Manifest, missing: list[str], path: str | Path) -> None:
    """Write what is missing to a local text file: a comment with the counts, then 'path<tab>label' lines.

    With nothing missing a file of an earlier run is removed.

    Args:
        missing: what `check_files` or `require_files` returned.
        path: the file; its folder must exist.
    """
    if not missing:
        Path(path).unlink(missing_ok=True)
        return
    gone = set(missing)
    lines = [f"{name}\t{label}" for name, label in zip(manifest.paths, manifest.labels) if name in gone]
    head = f"# {len(lines)} of {len(manifest)} {_plural(manifest.kind)} of {manifest.source} do not exist"
    write_lines(os.fspath(path), [head, *lines])
