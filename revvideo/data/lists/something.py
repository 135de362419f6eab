"""Something-Something v2: train.json, validation.json, labels.json, or with something-something-v2- before the names.

Each entry has an "id" and a "template"; the template without its [brackets] is the class name. The videos are
`{id}.webm` (any video suffix), or frame folders `{id}/`. PySlowFast's own layout adds lists of frames, train.csv and
val.csv with the header 'original_vido_id video_id frame_id path labels': they tell where the frame folders are.
The test split is the validation split, as in PySlowFast: the official test set has no labels.
"""

import logging
import os
import re
from functools import partial
from typing import TextIO

from revvideo.data.lists.class_names import number_classes, plain_name
from revvideo.data.lists.folders import is_video, look_into
from revvideo.data.lists.pyslowfast import resolve_paths
from revvideo.data.lists.request import SPLIT_NAMES, Found, Manifest, Request
from revvideo.data.lists.text_files import first_lines, read_json, read_text, shortened
from revvideo.errors import InputError
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)

_PREFIXES = ("", "something-something-v2-")
_FOLDERS = ("", "labels", "annotations")
_FRAME_LIST_HEADER = "original_vido_id"
_MEDIA_FOLDERS = re.compile(r"20bn.*|something.*|videos?|clips|(raw)?frames?|(videos?|clips|(raw)?frames)[-_].*")
_FRAME_LISTS = {"train": "train.csv", "val": "val.csv"}


def find(request: Request) -> Found | None:
    """The annotations of the split, or of another one, or a list of frames."""
    for split in (_split(request.split), *SPLIT_NAMES):
        path = _json_file(request.root, SPLIT_NAMES[split])
        if path and first_lines(path, 1)[:1] and first_lines(path, 1)[0].startswith("["):
            return Found("ssv2", path)
    for name in _FRAME_LISTS.values():
        if _is_frame_list(os.path.join(request.root, name)):
            return Found("ssv2", os.path.join(request.root, name))
    return None


def _split(split: str) -> str:
    return "val" if split == "test" else split


def _json_file(root: str, names: tuple[str, ...]) -> str:
    """The first file of that name that there is, or ''."""
    for folder in _FOLDERS:
        for prefix in _PREFIXES:
            for name in names:
                path = os.path.join(root, folder, f"{prefix}{name}.json")
                if path_manager.isfile(path):
                    return path
    return ""


def read(request: Request) -> Manifest:
    """The annotations of the split, each with its video or frame folder, or with the place where that was expected.

    Raises:
        InputError: no annotations, a template that labels.json lacks, no videos, or videos and frame folders.
    """
    split = _split(request.split)
    if split != request.split:
        logger.info("Something-Something v2: the test split is its validation split (the test set has no labels)")
    source = _json_file(request.root, SPLIT_NAMES[split])
    if not source:
        raise InputError(
            f"{request.root} has no annotations of the split {split!r}; expected "
            f"{' or '.join(f'{name}.json' for name in SPLIT_NAMES[split])}, with or without the prefix "
            "'something-something-v2-' (DATA.PATH_TO_DATA_DIR)"
        )
    ids, templates = _entries(source)
    class_file = request.class_file or _json_file(request.root, ("labels",))
    if not class_file:
        raise InputError(
            f"{request.root} has no labels.json or something-something-v2-labels.json, the numbers of the classes; "
            "put it there or name it with LOADER.CLASS_FILE"
        )
    classes = number_classes((), class_file, class_file, request.num_classes)
    numbers: dict[str, int] = {}
    for video, template in zip(ids, templates):
        if template not in numbers:
            numbers[template] = classes.number(template, f"{source}, id {video}")
    labels = tuple(numbers[template] for template in templates)
    frame_list = os.path.join(request.root, _FRAME_LISTS[split])
    if _is_frame_list(frame_list):
        paths, kind = _frame_list_paths(frame_list, ids, request), "frames"
    else:
        paths, kind = _media_paths(ids, source, request)
    return Manifest(paths, labels, source, kind=kind, class_names=classes.names)


def _entries(source: str) -> tuple[list[str], list[str]]:
    entries = read_json(source, "DATA.PATH_TO_DATA_DIR")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{source} is no list of annotations; expected [{{'id': ..., 'template': ...}}, ...]")
    ids, templates = [], []
    for number, entry in enumerate(entries):
        try:
            ids.append(str(entry["id"]))
            templates.append(plain_name(entry["template"].replace("[", "").replace("]", "")))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{source}, entry {number}: {str(entry)[:100]!r}; expected an object with 'id' and 'template'"
            ) from error
    return ids, templates


def _is_frame_list(path: str) -> bool:
    return path_manager.isfile(path) and "".join(first_lines(path, 1)).startswith(_FRAME_LIST_HEADER)


def _frame_list_paths(path: str, ids: list[str], request: Request) -> tuple[str, ...]:
    """The folder of the first frame of each video in PySlowFast's list, which has a line a frame (tens of millions)."""
    folders: dict[str, str] = read_text(path, partial(_first_frame_folders, path))
    unknown = [video for video in ids if video not in folders]
    if unknown:
        logger.warning("%s lacks %d of %d videos, the first is %s", path, len(unknown), len(ids), unknown[0])
    return resolve_paths([folders.get(video, video) for video in ids], request.video_folder or request.prefix, path)


def _first_frame_folders(path: str, file: TextIO) -> dict[str, str]:
    folders: dict[str, str] = {}
    last = "\0"
    next(file)
    for number, line in enumerate(file, start=2):
        if line.startswith(last) or not line.strip():
            continue
        columns = line.split()
        if len(columns) < 4:
            raise InputError(
                f"{path}, line {number}: {shortened(line.strip())!r}; expected 'original_vido_id video_id frame_id "
                "path labels'"
            )
        last = f"{columns[0]} "
        folders.setdefault(columns[0], os.path.dirname(columns[3]))
    return folders


def _media_paths(ids: list[str], source: str, request: Request) -> tuple[tuple[str, ...], str]:
    """(path of each id, kind), from the only folder that has videos or frame folders with these names."""
    given = request.video_folder or request.prefix
    root = given or request.root
    folders = [root]
    folders += [os.path.join(root, name) for name in look_into(root).folders if given or _MEDIA_FOLDERS.fullmatch(name)]
    wanted = set(ids)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for folder in folders:
        if given and folder != root and os.path.basename(folder) in wanted:
            continue  # a frame folder
        content = look_into(folder)
        videos = {
            stem: name for name in content.files if is_video(name) and (stem := os.path.splitext(name)[0]) in wanted
        }
        frames = {name: name for name in content.folders if name in wanted}
        for kind, names in (("video", videos), ("frames", frames)):
            if names:
                found[folder, kind] = names
    if not found:
        raise InputError(
            f"no videos were found for {source}: neither files like {ids[0]}.webm nor frame folders like {ids[0]}/ are "
            f"in {', '.join(folders)}; name their folder with LOADER.VIDEO_FOLDER"
        )
    if len(found) > 1:
        shown = ", ".join(f"{len(names)} {kind} in {folder}" for (folder, kind), names in found.items())
        raise InputError(f"{source} fits several folders: {shown}; name the right one with LOADER.VIDEO_FOLDER")
    ((folder, kind), names) = next(iter(found.items()))
    suffix = os.path.splitext(next(iter(names.values())))[1] if kind == "video" else ""
    return tuple(os.path.join(folder, names.get(video, f"{video}{suffix}")) for video in ids), kind
