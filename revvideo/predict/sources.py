"""What is to be predicted: files, folders and arrays, told apart before anything is opened."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from revvideo.data.find_videos import find_pictures, find_videos
from revvideo.data.lists.folders import look_into
from revvideo.errors import InputError
from revvideo.paths import path_manager
from revvideo.predict.open_videos import IN_MEMORY


@dataclass(frozen=True, eq=False)
class Source:
    """One video or picture.

    Attributes:
        path: where it lies; "<array>" in memory.
        kind: "video", "frames" (a folder of pictures) or "image".
        array: its frames, where it is no file.
        in_folder: found in a folder that was asked for.
    """

    path: str
    kind: str = "video"
    array: object = None
    in_folder: bool = False


def find_sources(wanted: Iterable[object], *, images: bool) -> list[Source]:
    """The videos or pictures of a list of paths, folders and arrays, in its order.

    Args:
        wanted: what `Predictor` takes. Of a folder all videos below it; a folder without videos but with pictures is
            one video of frames. A file is taken whatever its suffix, and need not exist: reading it tells.
        images: for a model of pictures: of a folder all pictures below it.

    Raises:
        InputError: something else, or a folder without any.
    """
    found: list[Source] = []
    for each in wanted:
        if isinstance(each, Source):
            found.append(each)
        elif isinstance(each, str | os.PathLike):
            found += _at_path(os.fsdecode(each), images)
        elif hasattr(each, "shape") or hasattr(each, "__array__"):
            found.append(Source(IN_MEMORY, "image" if images else "video", array=each))
        else:
            raise InputError(f"cannot predict a {type(each).__name__}; expected a path, a folder or an array")
    return found


def _at_path(path: str, images: bool) -> list[Source]:
    kind = "image" if images else "video"
    if not path_manager.isdir(path):
        return [Source(path, kind)]
    if images:
        return [Source(os.path.join(path, name), kind, in_folder=True) for name in find_pictures(path)]
    content = look_into(path)
    if content.pictures and not content.videos:
        return [Source(path, "frames")]
    return [Source(os.path.join(path, name), kind, in_folder=True) for name in find_videos(path)]
