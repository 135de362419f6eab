"""What lies in a folder: videos, pictures, sub-folders. Local folders are scanned, others asked for their listing."""

import os
from dataclasses import dataclass

from revvideo.errors import InputError
from revvideo.paths import path_manager

VIDEO_SUFFIXES = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm")
    + (".wmv",)
)
PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".webp"))


@dataclass(frozen=True)
class Content:
    """Names in a folder, sorted, without hidden ones."""

    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def videos(self) -> list[str]:
        return [name for name in self.files if is_video(name)]

    @property
    def pictures(self) -> list[str]:
        return [name for name in self.files if is_picture(name)]


def is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def is_remote(path: str) -> bool:
    return "://" in path


def is_absolute(path: str) -> bool:
    return os.path.isabs(path) or is_remote(path)


def look_into(folder: str) -> Content:
    """The content of a folder; nothing where there is no such folder.

    Raises:
        InputError: the folder may not be read.
    """
    folders, files = [], []
    try:
        if is_remote(folder):
            for name in path_manager.ls(folder) if path_manager.isdir(folder) else ():
                has_suffix = is_video(name) or is_picture(name)  # spares a question a file
                is_folder = not has_suffix and path_manager.isdir(os.path.join(folder, name))
                (folders if is_folder else files).append(name)
        else:
            with os.scandir(folder) as entries:
                for entry in entries:
                    (folders if entry.is_dir() else files).append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return Content()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot look into the folder {folder!r}: {reason}") from error
    return Content(*(tuple(sorted(name for name in names if name[0] != ".")) for names in (folders, files)))


class VideoIndex:
    """The video files below some folders by their names without suffix; of two with one name the first added wins."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._others: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self._first)

    def add(self, folder: str, depth: int, skip: frozenset[str] = frozenset()) -> None:
        """Add the files of `folder` and of its sub-folders down to `depth` levels, without the folders in `skip`."""
        if folder in skip:
            return
        content = look_into(folder)
        for name in content.files:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in VIDEO_SUFFIXES:
                path = os.path.join(folder, name)
                if self._first.setdefault(stem, path) != path:
                    self._others.setdefault(stem, []).append(path)
        if depth > 0:
            for name in content.folders:
                self.add(os.path.join(folder, name), depth - 1, skip)

    def all(self, stem: str) -> list[str]:
        """Every path with this name, in the order in which they were added."""
        first = self._first.get(stem)
        return [] if first is None else [first, *self._others.get(stem, ())]
