"""The videos below a folder, for the commands that work on all of them."""

import os

from revvideo.data.lists.folders import VIDEO_SUFFIXES, is_remote, look_into
from revvideo.errors import InputError
from revvideo.paths import path_manager


def find_videos(folder: str) -> list[str]:
    """Paths relative to `folder` of all its videos, known by their suffixes, in the order of their names.

    Hidden files and folders are left out. Links to folders are followed, each folder is visited once.

    Raises:
        InputError: no such folder, it may not be read, or it holds no video.
    """
    if not path_manager.isdir(folder):
        raise InputError(f"there is no folder {folder}; expected a folder with videos")
    found: list[str] = []
    _collect(folder, "", found, set())
    if not found:
        raise InputError(
            f"no video below {folder}; files with these suffixes count: {', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return found


def _collect(root: str, below: str, found: list[str], visited: set[str]) -> None:
    folder = os.path.join(root, below)
    real = folder if is_remote(folder) else os.path.realpath(folder)
    if real in visited:  # a link that leads back up
        return
    visited.add(real)
    content = look_into(folder)
    found += [os.path.join(below, name) for name in content.videos]
    for name in content.folders:
        _collect(root, os.path.join(below, name), found, visited)
