"""A folder a class: videos (CLASS/x.mp4), frame folders (CLASS/VIDEO/00001.jpg) or pictures (CLASS/x.JPEG, ImageNet).

With folders train/, val/ and test/ above the classes these are the splits (without test/, val/ is tested on). Without
them the classes of videos and frame folders are split once, by seed, and the lists are written: `write_split.py`.
Class numbers: the sorted folder names of train/ unless a class file says otherwise.
"""

import logging
import os
from collections import Counter
from dataclasses import dataclass, replace

from revvideo.data.lists.class_names import ClassNumbers, number_classes
from revvideo.data.lists.folders import Content, look_into
from revvideo.data.lists.request import SPLIT_NAMES, Found, Manifest, Request
from revvideo.errors import InputError

logger = logging.getLogger(__name__)

# Format -> what a path of its manifest is.
FORMATS = {"class_folders": "video", "frame_folders": "frames", "imagenet": "image"}
_EXPECTED = {
    "class_folders": "CLASS/x.mp4",
    "frame_folders": "CLASS/VIDEO/00001.jpg",
    "imagenet": "CLASS/x.JPEG",
}
# Class folders looked into, and sub-folders of each, to find out what a tree holds.
_PROBED_CLASSES, _PROBED_FOLDERS = 20, 3


@dataclass(frozen=True)
class Tree:
    """The samples below class folders: (class folder, path) pairs, sorted."""

    folder: str
    classes: tuple[str, ...]
    samples: tuple[tuple[str, str], ...]


def tree_root(request: Request) -> str:
    """The folder above train/ or above the classes: LOADER.VIDEO_FOLDER, or else DATA.PATH_TO_DATA_DIR."""
    return request.video_folder or request.prefix or request.root


def split_folders(root: str) -> dict[str, str]:
    """Split -> its folder, of those that there are.

    Raises:
        InputError: two folders with names of one split.
    """
    found: dict[str, str] = {}
    for name in look_into(root).folders:
        for split, names in SPLIT_NAMES.items():
            if name.lower() in names:
                if split in found:
                    raise InputError(
                        f"{root} has two folders for the split {split!r}: {os.path.basename(found[split])} and {name}; "
                        "expected one (DATA.PATH_TO_DATA_DIR)"
                    )
                found[split] = os.path.join(root, name)
    return found


def find(request: Request) -> list[Found]:
    """The formats of which the class folders hold something; several where they are mixed."""
    root = tree_root(request)
    folders = split_folders(root)
    # Of the split that is asked for, or of another one: `read` then says what is wrong with this one.
    tried = [folders[split] for split in (request.split, "train", *folders) if split in folders] or [root]
    kinds = next(filter(None, map(_kinds, tried)), {})
    return [Found(format, kinds[kind]) for format, kind in FORMATS.items() if kind in kinds]


def _kinds(folder: str) -> dict[str, str]:
    """What the first class folders hold: kind -> an example."""
    found: dict[str, str] = {}
    for name in look_into(folder).folders[:_PROBED_CLASSES]:
        path = os.path.join(folder, name)
        content = look_into(path)
        for kind, names in (("video", content.videos), ("image", content.pictures)):
            if names:
                found.setdefault(kind, os.path.join(path, names[0]))
        for inner in content.folders[:_PROBED_FOLDERS]:
            pictures = look_into(os.path.join(path, inner)).pictures
            if pictures:
                found.setdefault("frames", os.path.join(path, inner, pictures[0]))
    return found


def read(request: Request, format: str) -> Manifest:
    """The samples of a split folder; of a tree without split folders, the part that a seeded split gives it.

    Raises:
        InputError: no folder of the split, no class folders, or nothing in them; a class that train/ or the class file
            lacks; pictures without split folders.
    """
    root = tree_root(request)
    folders = split_folders(root)
    if not folders:
        if format == "imagenet":
            raise InputError(
                f"{root} has no folders train/ and val/; expected train/CLASS/*.JPEG and val/CLASS/*.JPEG. If every "
                "folder of pictures is a video, put them into class folders: CLASS/VIDEO/*.jpg (LOADER.LIST_FORMAT)"
            )
        # Here, as that module stands on this one.
        from revvideo.data.lists.write_split import is_written, read_lists, read_or_write_split

        if is_written(request):
            return read_lists(request)
        tree = scan(root, format)
        # Here a folder with nothing in it is no class: it may be the place of something else.
        tree = replace(tree, classes=tuple(sorted({name for name, _ in tree.samples})))
        return read_or_write_split(request, tree, FORMATS[format])
    split = request.split
    if split == "test" and "test" not in folders and "val" in folders:
        split = "val"
        logger.info("%s has no folder of the test split: %s is read", root, folders["val"])
    if split not in folders:
        raise InputError(
            f"{root} has no folder of the split {split!r}; expected {' or '.join(SPLIT_NAMES[split])} beside "
            f"{', '.join(os.path.basename(path) for path in folders.values())} (DATA.PATH_TO_DATA_DIR)"
        )
    tree = scan(folders[split], format)
    named_by = tree.classes if split == "train" or "train" not in folders else look_into(folders["train"]).folders
    classes = number_classes(named_by, folders.get("train", folders[split]), request.class_file, request.num_classes)
    return tree_manifest(tree, classes, FORMATS[format])


def tree_manifest(tree: Tree, classes: ClassNumbers, kind: str) -> Manifest:
    """The samples of a tree with the numbers of their classes."""
    numbers = {name: classes.number(name, os.path.join(tree.folder, name)) for name in tree.classes}
    labels = tuple(numbers[name] for name, _ in tree.samples)
    return Manifest(tuple(path for _, path in tree.samples), labels, tree.folder, kind, classes.names)


def scan(folder: str, format: str) -> Tree:
    """All samples below the class folders of `folder`; files of other kinds and empty classes are logged.

    Raises:
        InputError: no class folders, or nothing of that format in them.
    """
    content = look_into(folder)
    if not content.folders:
        loose = (content.videos + content.pictures)[:1]
        problem = f"only files such as {loose[0]}" if loose else "no sub-folders"
        raise InputError(f"{folder} has {problem}; expected a folder a class: {_EXPECTED[format]}")
    samples, ignored, empty = [], Counter(), []
    example = ""
    for name in content.folders:
        path = os.path.join(folder, name)
        inside = look_into(path)
        kept = _samples(inside, format)
        if not kept:
            empty.append(name)
        samples += [(name, os.path.join(path, file)) for file in kept]
        others = set(inside.files + inside.folders).difference(kept)
        if others:
            ignored[name] = len(others)
            example = example or os.path.join(path, min(others))
    if not samples:
        raise InputError(
            f"no class folder of {folder} ({', '.join(content.folders[:3])}, ...) holds what was expected: "
            f"{_EXPECTED[format]} (LOADER.LIST_FORMAT {format})"
        )
    if ignored:
        logger.info("%d entries below %s are not read, such as %s", ignored.total(), folder, example)
    if empty:
        logger.warning("folders of %s without samples: %d (%s)", folder, len(empty), ", ".join(empty[:10]))
    return Tree(folder, content.folders, tuple(samples))


def _samples(content: Content, format: str) -> list[str]:
    if format == "frame_folders":
        return list(content.folders)
    return content.videos if format == "class_folders" else content.pictures
