"""The files that `revvideo benchmark decode` reads: generated ones, those of the user, and both re-encoded."""

from collections.abc import Callable, Sequence
from pathlib import Path

from revvideo.benchmark.decode import Group
from revvideo.benchmark.decoders import Video
from revvideo.benchmark.generated_video import GeneratedVideo
from revvideo.data.encode import EncodeSpec, encode_video
from revvideo.data.video_reader import VideoError
from revvideo.errors import InputError


def generated_groups(videos: Sequence[GeneratedVideo]) -> list[Group]:
    """A group for each distance of key frames."""
    gops = dict.fromkeys(video.gop for video in videos)
    return [Group(f"gop {gop}", "generated", [str(v.path) for v in videos if v.gop == gop]) for gop in gops]


def source_groups(paths: Sequence[Path]) -> list[Group]:
    """Each file is a group of its own: their sizes and frame rates differ.

    Raises:
        InputError: a path twice, or not a video that our reader can open.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"--source {path} is not a file")
        try:
            Video.of(path)
        except VideoError as error:
            raise InputError(f"--source: {error}") from error
    if len(set(paths)) < len(paths):
        raise InputError("--source names a file twice")
    names = [path.name for path in paths]
    return [Group(path.name if names.count(path.name) == 1 else str(path), "source", [str(path)]) for path in paths]


def groups_to_prepare(groups: Sequence[Group]) -> list[Group]:
    """Those that `prepared_groups` re-encodes: the first generated one (the others hold its pictures), all sources."""
    generated = [group for group in groups if group.kind == "generated"][:1]
    return generated + [group for group in groups if group.kind == "source"]


def prepared_groups(
    groups: Sequence[Group], folder: Path, *, on_file: Callable[[], object] = lambda: None
) -> list[Group]:
    """The groups' files, re-encoded into `folder` by the defaults of `revvideo prepare_videos`.

    Args:
        groups: originals.
        folder: it must exist.
        on_file: called after each file.

    Raises:
        InputError: a file is damaged.
    """
    found = []
    for number, group in enumerate(groups):
        name = "prepared" if group.kind == "generated" else f"prepared {group.name}"
        targets = [str(folder / f"prepared_{number}_{Path(path).stem}.mp4") for path in group.paths]
        for path, target in zip(group.paths, targets):
            try:
                encode_video(path, target, EncodeSpec())
            except VideoError as error:
                raise InputError(f"--prepared: {error}; leave the file out or measure without --prepared") from error
            on_file()
        found.append(Group(name, "prepared", targets, group.name))
    return found
