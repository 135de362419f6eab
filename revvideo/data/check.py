"""Checks videos in parallel: can each be opened and decoded, is it long enough, is something odd about it?"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import numpy as np

from revvideo.data.parallel import run_tasks
from revvideo.data.row_file import csv_line, local_target
from revvideo.data.video_reader import VideoError, VideoReader, open_video
from revvideo.errors import InputError
from revvideo.paths import path_manager, replace_file

# From the best to the worst.
STATUSES = ("good", "odd", "short", "damaged", "unreadable", "missing")
BAD_STATUSES = ("damaged", "unreadable", "missing")
DECODE_MODES = ("first", "sample", "all")

_SAMPLED_FRAMES = 8
_SMALL = (16, 16)  # (height, width) of the frames that are looked at: nobody sees them, so a long video costs no memory
_FRAMES_AT_ONCE = 4096
_KINDS = {"video": "pyav", "frames": "frames"}  # kind of a list -> reader


@dataclass(frozen=True)
class CheckSpec:
    """How thoroughly to check, and what counts as short and odd.

    Attributes:
        decode: "first" frame, a "sample" of 8 from the first to the last, or "all".
        clip_seconds: a video with fewer frames than this span has is short; 0: none is.
        target_fps: the usual frame rate; others are odd.
    """

    decode: str = "sample"
    clip_seconds: float = 0.0
    target_fps: float = 30.0

    def __post_init__(self) -> None:
        if self.decode not in DECODE_MODES:
            raise ValueError(f"decode is {self.decode!r}; expected one of {', '.join(DECODE_MODES)}")

    def __str__(self) -> str:
        return f"{self.decode}, clips of {self.clip_seconds:.6g} s, {self.target_fps:g} fps"


@dataclass(frozen=True)
class VideoCheck:
    """What was found out about one video: a row of the csv file, whose columns are these names.

    Attributes:
        path: as the list names it.
        status: one of `STATUSES`.
        reason: why it is not simply good; several reasons are separated by "; ".
        frames: true number of frames; 0 where unknown.
        fps: average frames per second; 0 where unknown.
        height, width: pixels, after rotation; 0 where unknown.
        codec: FFmpeg's name of the codec; "" where unknown.
        seconds: from the first frame to the end of the last one.
        bytes: size of the file (of all files of a folder of pictures); -1 where unknown.
        modified: time of the last change of the file, nanoseconds; -1 where unknown.
        check: the `CheckSpec`, in words: a row counts as done only for the same one.
    """

    path: str
    status: str
    reason: str = ""
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    codec: str = ""
    seconds: float = 0.0
    bytes: int = -1
    modified: int = -1
    check: str = ""

    def row(self) -> dict[str, str]:
        return {
            name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in asdict(self).items()
        }

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> "VideoCheck | None":
        """The check that a row tells of; None for a row that makes no sense."""
        try:
            check = cls(**{field.name: field.type(row[field.name]) for field in fields(cls)})
        except ValueError:
            return None
        return check if check.status in STATUSES else None


COLUMNS = tuple(field.name for field in fields(VideoCheck))


def check_videos(
    videos: Sequence[tuple[str, str]],
    spec: CheckSpec,
    num_workers: int,
    *,
    timeout_seconds: float,
    known: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[tuple[VideoCheck, bool]]:
    """Check videos in parallel; the results come as they are ready.

    Args:
        videos: (path, kind), where kind is "video", "frames" (a folder of pictures) or "image".
        spec: how to check.
        num_workers: processes.
        timeout_seconds: a video that takes longer is unreadable.
        known: path -> row of an earlier scan. It stands if it is of the same spec and the file has not changed;
            videos that were missing or unreadable are always tried again.

    Yields:
        (result, whether it is news: False for one that was known).
    """
    known = known or {}
    tasks = [(path, kind, known.get(path)) for path, kind in videos]
    for result in run_tasks(partial(_check, spec=spec), tasks, num_workers, timeout_seconds=timeout_seconds):
        if result.value is not None:
            yield result.value
        else:
            yield VideoCheck(tasks[result.number][0], "unreadable", result.error, check=str(spec)), True


def _check(task: tuple[str, str, Mapping[str, str] | None], spec: CheckSpec) -> tuple[VideoCheck, bool]:
    path, kind, row = task
    earlier = VideoCheck.from_row(row) if row else None
    try:
        size, modified = _size_and_time(path)
    except (FileNotFoundError, NotADirectoryError):
        return VideoCheck(path, "missing", "no such file", check=str(spec)), True
    except (OSError, ValueError) as error:
        return VideoCheck(path, "unreadable", getattr(error, "strerror", None) or str(error), check=str(spec)), True
    if (
        earlier is not None
        and earlier.status not in ("unreadable", "missing")
        and (earlier.bytes, earlier.modified, earlier.check) == (size, modified, str(spec))
    ):
        return earlier, False
    found = _check_image(path) if kind == "image" else _check_frames(path, kind, spec)
    return replace(found, bytes=size, modified=modified, check=str(spec)), True


def _size_and_time(path: str) -> tuple[int, int]:
    local = path_manager.get_local_path(path)
    status = os.stat(local)
    if not os.path.isdir(local):
        return status.st_size, status.st_mtime_ns
    with os.scandir(local) as entries:
        files = [entry.stat() for entry in entries if entry.is_file()]
    return sum(file.st_size for file in files), max([status.st_mtime_ns] + [file.st_mtime_ns for file in files])


def _check_frames(path: str, kind: str, spec: CheckSpec) -> VideoCheck:
    """The status of a video or of a folder of pictures: strictly first, and if that fails, whatever can be read."""
    try:
        return _examine(path, _KINDS[kind], spec, strict=True)
    except VideoError as error:
        refused = error.reason
    try:
        readable = _examine(path, _KINDS[kind], spec, strict=False)
    except VideoError as error:
        return VideoCheck(path, "unreadable", error.reason)
    return replace(readable, status="damaged", reason=refused)


def _examine(path: str, backend: str, spec: CheckSpec, *, strict: bool) -> VideoCheck:
    """Raises VideoError where the reader does."""
    with open_video(path, backend, strict) as video:
        size = (video.height, video.width)
        _decode(video, spec.decode)
        bad = f"{video.num_bad_frames} bad frames" if video.num_bad_frames else ""
        codec, odd = _oddities(video, spec)
        short = video.num_frames < round(spec.clip_seconds * video.fps)
        few = f"{video.num_frames} frames, a clip spans {spec.clip_seconds * video.fps:.4g}" if short else ""
        status = "damaged" if bad else "short" if short else "odd" if odd else "good"
        return VideoCheck(
            path,
            status,
            "; ".join(filter(None, [bad, few, *odd])),
            frames=video.num_frames,
            fps=video.fps,
            height=size[0],
            width=size[1],
            codec=codec,
            seconds=video.duration_seconds,
        )


def _decode(video: VideoReader, mode: str) -> None:
    if mode == "all":
        for first in range(0, video.num_frames, _FRAMES_AT_ONCE):
            video.frames(range(first, min(first + _FRAMES_AT_ONCE, video.num_frames)), _SMALL)
    else:
        count = 1 if mode == "first" else min(_SAMPLED_FRAMES, video.num_frames)
        video.frames(np.linspace(0, video.num_frames - 1, count).round().astype(np.int64), _SMALL)


def _oddities(video: VideoReader, spec: CheckSpec) -> tuple[str, list[str]]:
    """(codec, what is odd in words)."""
    if video.backend == "frames":
        return "pictures", []
    import av

    from revvideo.data.video_facts import oddities, read_facts

    try:
        facts = read_facts(video.local_path)
    except (av.FFmpegError, OSError, ValueError, LookupError) as error:
        if video.strict:
            raise VideoError(video.path, video.backend, str(error)) from error
        return "", []
    return facts.codec, oddities(facts, video.pts, video.fps, spec.target_fps)


def _check_image(path: str) -> VideoCheck:
    from PIL import Image

    try:
        with Image.open(path_manager.get_local_path(path)) as image:
            image.load()
            return VideoCheck(
                path, "good", frames=1, height=image.height, width=image.width, codec=(image.format or "").lower()
            )
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, Image.DecompressionBombError) as error:
        return VideoCheck(path, "unreadable", " ".join(str(error).split()) or type(error).__name__)


def count_statuses(checks: Iterable[VideoCheck]) -> dict[str, int]:
    """Status -> how many videos have it, in the order of `STATUSES`, zeros included."""
    found = [check.status for check in checks]
    return {status: found.count(status) for status in STATUSES}


def check_names(names: Iterable[str], separator: str) -> None:
    """Whether a list can hold these names, and the separator is one.

    Raises:
        InputError: a line end in a name, bytes that are no UTF-8, or a separator that is no single character.
    """
    if len(separator) != 1 or separator in '\r\n"':
        raise InputError(f"the separator is {separator!r}; a list is written with one character, such as a blank")
    for name in names:
        if any(character in "\r\n" or "\ud800" <= character <= "\udfff" for character in name):
            raise InputError(f"a list cannot hold the name {name!r} (UTF-8, without line ends); rename the file")


def write_list(path: str, videos: Iterable[tuple[str, int | None]], separator: str = " ") -> None:
    """Write a PySlowFast list: "path label" a line, or the path only where the label is None.

    A path that holds the separator or a quote is quoted as in csv, which revvideo reads and PySlowFast does not.

    Raises:
        InputError: it cannot be written, or cannot hold a name (see `check_names`).
    """
    rows = [(name,) if label is None else (name, label) for name, label in videos]
    check_names((row[0] for row in rows), separator)
    text, target = "".join(csv_line(row, separator) for row in rows), local_target(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))
    except OSError as error:
        raise InputError(f"cannot write the list {path}: {error.strerror or error}") from error
