"""The videos, or the pictures, below a folder, for the commands that work on all of them."""

import os
from collections.abc import Callable

from revvideo.data.lists.folders import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Content, is_remote, look_into
from revvideo.errors import InputError
from revvideo.paths import path_manager


def find_videos(folder: str) -> list[str]:
    """Paths relative to `folder` of all its videos, known by their suffixes, in the order of their names.

    Hidden files and folders are left out. Links to folders are followed, each folder is visited once.

    Raises:
        InputError: no such folder, it may not be read, or it holds no video.
    """
    return _find(folder, "video", VIDEO_SUFFIXES, lambda content: content.videos)


def find_pictures(folder: str) -> list[str]:
    """`find_videos` for pictures."""
    return _find(folder, "picture", PICTURE_SUFFIXES, lambda content: content.pictures)


def _find(folder: str, what: str, suffixes: frozenset[str], pick: Callable[[Content], list[str]]) -> list[str]:
    if not path_manager.isdir(folder):
        raise InputError(f"there is no folder {folder}; expected a folder with {what}s")
    found: list[str] = []
    _collect(folder, "", pick, found, set())
    if not found:
        raise InputError(f"no {what} below {folder}; files with these suffixes count: {', '.join(sorted(suffixes))}")
    return found


def _collect(root: str, below: str, pick: Callable[[Content], list[str]], found: list[str], visited: set[str]) -> None:
    folder = os.path.join(root, below)
    real = folder if is_remote(folder) else os.path.realpath(folder)
    if real in visited:  # a link that leads back up
        return
    visited.add(real)
    content = look_into(folder)
    found += [os.path.join(below, name) for name in pick(content)]
    for name in content.folders:
        _collect(root, os.path.join(below, name), pick, found, visited)
