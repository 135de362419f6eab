"""Re-encodes a tree of videos in parallel: resumable, atomic for each file, with a manifest of what became of it.

The output folder mirrors the source folder, with the suffix .mp4. `manifest.csv` in it has a row a video.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from revvideo.data.encode import EncodeSpec, OutputError, encode_video
from revvideo.data.find_videos import find_videos
from revvideo.data.parallel import TaskResult, run_tasks
from revvideo.data.row_file import RowFile
from revvideo.data.video_reader import VideoError
from revvideo.errors import InputError

MANIFEST = "manifest.csv"
_LOCK = ".prepare_videos.lock"
COLUMNS = (
    ("source", "output", "outcome", "reason", "sha256", "bytes", "frames_in", "frames_out")
    + ("height", "width", "fps", "source_bytes", "source_modified", "settings")
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A video to encode: where it is, and where it goes, relative to the output folder with forward slashes."""

    source: str
    output: str


@dataclass(frozen=True)
class Prepared:
    """What became of one video: a row of the manifest.

    Attributes:
        source: path of the video.
        output: path of the result, relative to the output folder.
        outcome: "done", "failed", or "known": done by an earlier run and unchanged since.
        reason: why it failed.
        sha256, bytes: checksum and size of the result.
        frames_in, frames_out: frames of the source and of the result.
        height, width: of the result in pixels.
        fps: average frames per second of the result.
        source_bytes, source_modified: size and time of change (nanoseconds) of the source; -1 where unknown.
        settings: the `EncodeSpec`, in words.
    """

    source: str
    output: str
    outcome: str
    reason: str = ""
    sha256: str = ""
    bytes: int = 0
    frames_in: int = 0
    frames_out: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    source_bytes: int = -1
    source_modified: int = -1
    settings: str = ""


# What is to be done


def plan_jobs(sources: Sequence[str], output: str) -> list[Job]:
    """The videos of files and folders, and where they go.

    The tree of a single folder goes into `output` itself, the trees of several ones into sub-folders with their names,
    and a file directly into `output`.

    Raises:
        InputError: a source does not exist or holds no video, the folders lie in each other, a video lies in the
            output folder, or two videos would become the same file.
    """
    folders = [source for source in sources if os.path.isdir(source)]
    jobs = []
    for source in sources:
        if source in folders:
            _check_apart(source, output)
            below = os.path.basename(os.path.abspath(source)) if len(folders) > 1 else ""
            jobs += [Job(os.path.join(source, name), _target(below, name)) for name in find_videos(source)]
        elif os.path.exists(source):
            jobs.append(Job(source, _target("", os.path.basename(source))))
        else:
            raise InputError(f"there is no file or folder {source}; expected videos or folders with videos")
    first: dict[str, str] = {}
    inside = os.path.join(os.path.realpath(output), "")
    for job in jobs:
        real = os.path.realpath(job.source)
        if real.startswith(inside) or real == os.path.realpath(os.path.join(output, job.output)):
            raise InputError(
                f"{job.source} is {real}, in the output folder {output}; expected another folder: sources are never "
                "changed, and results are not encoded again"
            )
        other = first.setdefault(job.output.casefold(), job.source)  # some file systems know no case
        if other != job.source:
            raise InputError(
                f"{other} and {job.source} would both become {job.output}: rename one of them, or prepare them into "
                "different folders"
            )
    return [Job(source, output_name) for source, output_name in {job.source: job.output for job in jobs}.items()]


def _target(below: str, name: str) -> str:
    return os.path.join(below, os.path.splitext(name)[0] + ".mp4")


def _check_apart(source: str, output: str) -> None:
    inner, outer = os.path.realpath(output), os.path.realpath(source)
    if inner == outer:
        raise InputError(
            f"the output folder is the source {source}; expected another folder: sources are never changed"
        )
    for name, one, other in (("output folder", inner, outer), ("source", outer, inner)):
        if one.startswith(os.path.join(other, "")):
            raise InputError(f"the {name} {one} lies inside {other}; expected folders apart from each other")


# Doing it


def prepare_videos(
    jobs: Sequence[Job],
    output: str,
    spec: EncodeSpec,
    num_workers: int,
    *,
    timeout_seconds: float,
    restart: bool = False,
) -> Iterator[Prepared]:
    """Encode in parallel; the results come as they are ready, each already in the manifest.

    A run that was killed goes on where it was; what failed is tried again, what has changed is encoded again.

    Args:
        jobs: of `plan_jobs`.
        output: the folder.
        spec: how to encode.
        num_workers: processes, each with one thread.
        timeout_seconds: a video that takes longer has failed.
        restart: encode again what earlier runs have done.

    Raises:
        InputError: the folder holds something else, belongs to other settings or to a run that is under way, or
            cannot be written.
    """
    _check_encoder()
    _check_output(output)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(output))
        manifest = stack.enter_context(RowFile(os.path.join(output, MANIFEST), COLUMNS, key="output", restart=restart))
        _check_settings(manifest, output, spec)
        remove_leftovers(output)
        stack.callback(remove_leftovers, output)  # of processes that are killed
        tasks = [(job, manifest.rows.get(job.output)) for job in jobs]
        results = run_tasks(
            partial(_prepare, output=output, spec=spec), tasks, num_workers, timeout_seconds=timeout_seconds
        )
        stack.callback(results.close)  # before the leftovers are looked for
        for result in results:
            prepared = result.value or _failed(result, jobs[result.number], spec)
            if prepared.outcome != "known":
                manifest.append(asdict(prepared))
            yield prepared


def _failed(result: TaskResult, job: Job, spec: EncodeSpec) -> Prepared:
    if result.error_type == OutputError.__name__:
        raise InputError(f"{result.error}; free space or choose another output folder, then run the same command again")
    return Prepared(job.source, job.output, "failed", result.error, settings=str(spec))


def _prepare(task: tuple[Job, Mapping[str, str] | None], output: str, spec: EncodeSpec) -> Prepared:
    job, row = task
    target = os.path.join(output, job.output)
    try:
        status = os.stat(job.source)
    except OSError as error:
        return Prepared(job.source, job.output, "failed", error.strerror or str(error), settings=str(spec))
    source_facts = {"source_bytes": status.st_size, "source_modified": status.st_mtime_ns, "settings": str(spec)}
    if row is not None and row["outcome"] == "done" and _is_unchanged(row, target, source_facts):
        return Prepared(
            **(
                dict(row)
                | {"outcome": "known"}
                | {name: int(row[name]) for name in _INTEGERS}
                | {"fps": float(row["fps"])}
            )
        )
    with contextlib.suppress(OSError):  # made of an earlier version of the source: not to be found if this one fails
        os.unlink(target)
    try:
        encoded = encode_video(job.source, target, spec)
    except VideoError as error:
        return Prepared(job.source, job.output, "failed", error.reason, **source_facts)
    return Prepared(job.source, job.output, "done", **asdict(encoded), **source_facts)


_INTEGERS = ("bytes", "frames_in", "frames_out", "height", "width", "source_bytes", "source_modified")


def _is_unchanged(row: Mapping[str, str], target: str, source_facts: Mapping[str, object]) -> bool:
    if any(row[name] != str(value) for name, value in source_facts.items()):
        return False
    try:
        return str(os.stat(target).st_size) == row["bytes"]
    except OSError:
        return False


# The output folder


def _check_encoder() -> None:
    import av

    try:
        av.Codec("libx264", "w")
    except ValueError as error:
        raise InputError("this PyAV has no encoder libx264; install PyAV's own wheel: pip install av") from error


def _check_output(output: str) -> None:
    try:
        os.makedirs(output, exist_ok=True)
        names = os.listdir(output)
    except OSError as error:
        raise InputError(f"cannot use the output folder {output}: {error.strerror or error}") from error
    if MANIFEST not in names and set(names) - {_LOCK, f".{MANIFEST}.tmp"}:
        raise InputError(
            f"the output folder {output} is not empty and has no {MANIFEST} of an earlier run; name an empty one, so "
            "that no file of yours is written over"
        )


def _check_settings(manifest: RowFile, output: str, spec: EncodeSpec) -> None:
    for row in manifest.rows.values():
        if row["outcome"] == "done" and row["settings"] != str(spec):
            raise InputError(
                f"the videos in {output} were made with other settings ({row['settings']}) than now ({spec}); give the "
                "same ones, another folder, or --restart to encode all again"
            )


@contextlib.contextmanager
def _locked(output: str) -> Iterator[None]:
    """Raises InputError while another run writes into the folder."""
    try:
        descriptor = os.open(os.path.join(output, _LOCK), os.O_WRONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"cannot write into {output}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is writing into {output}; wait for its end, or end it") from error
        except OSError:  # a file system without locks: the user has to take care
            pass
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(output: str) -> int:
    """Removes half-written results of a run that was killed; returns how many."""
    removed = 0
    for folder, _, names in os.walk(output):
        for name in names:
            if name.startswith(".") and name.endswith(".mp4.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, name))
                    removed += 1
    return removed
