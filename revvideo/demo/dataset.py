"""The demo's data set on disk: H.264 videos and Kinetics lists, complete or not used at all.

    root/demo_data.json                          the manifest: what this folder is, and which videos are finished
    root/classes.txt                             one name a line, in the order of the labels
    root/train.csv  root/val.csv  root/test.csv  "videos/train/moves_left/000.mp4 0", relative to root; val is test
    root/videos/{train,test}/<class>/<nnn>.mp4

A video's scene comes from a generator keyed by (seed, split, class, number) alone. So the bytes depend neither on the
number of processes nor on the order of work, and an interrupted set is completed with exactly the videos that it lacks.

Every file is written beside its place and moved there. The manifest comes first, with every planned video, and last,
with a SHA-256 for each. A later call with the same parameters checks those and writes only what is missing or differs.
Other parameters replace the set, which its seed can bring back. A folder that this module did not make is refused.
"""

import hashlib
import json
import logging
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from revvideo.demo.scenes import CLASS_NAMES, NUM_FRAMES, partner, render_class
from revvideo.errors import InputError
from revvideo.paths import replace_file

__all__ = ["CLASS_NAMES", "DatasetPaths", "make_dataset", "partner", "video_generator", "write_video"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it whenever scenes or encoding change, so that sets made before are replaced
MANIFEST = "demo_data.json"
SPLITS = ("train", "test")
FRAMES_PER_SECOND = 30
KEY_FRAME_EVERY = 30
# ultrafast (no CABAC, no B-frames) decodes fastest, and the loader decodes every video in every epoch.
ENCODER_OPTIONS = {"preset": "ultrafast", "crf": "18"}
VIDEOS_PER_JOB = 8
VIDEO_PATH = re.compile(r"videos/(train|test)/\w+/\d+\.mp4")


@dataclass(frozen=True)
class DatasetPaths:
    """Where the set lies. Paths in the lists are relative to `root`."""

    root: Path
    train_list: Path
    val_list: Path
    test_list: Path
    class_names: Path
    num_train: int  # videos in all
    num_test: int
    num_written: int  # videos that this call had to write; 0 when a finished set was reused


# --- one video --------------------------------------------------------------------------------------------------------


def video_generator(seed: int, split: str, label: int, number: int) -> np.random.Generator:
    """The generator from which video `number` of class `label` draws its scene; no two videos of a set share one."""
    key = (SPLITS.index(split), label, number)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def write_video(path: Path, video: np.ndarray) -> None:
    """Encode uint8 (T, H, W, 3) RGB as H.264 mp4, yuv420p, atomically. Equal frames give equal bytes."""

    def encode(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=ENCODER_OPTIONS)
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.gop_size = KEY_FRAME_EVERY
            stream.codec_context.thread_count = 1  # the bytes must not depend on the machine's cores
            to_yuv = VideoReformatter()
            for index, image in enumerate(video):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame = to_yuv.reformat(frame, format="yuv420p")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    replace_file(path, encode)


def _is_whole(path: Path) -> bool:
    """Whether the file demuxes to all its frames (nothing is decoded: about a millisecond)."""
    try:
        with av.open(str(path)) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0)) == NUM_FRAMES
    except (OSError, IndexError, av.FFmpegError):  # missing, without a video stream, not a video
        return False


# --- the set as a plan ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Video:
    split: str
    label: int
    number: int

    @property
    def path(self) -> str:
        return f"videos/{self.split}/{CLASS_NAMES[self.label]}/{self.number:03d}.mp4"


def _plan(counts: dict[str, int]) -> list[_Video]:
    return [
        _Video(split, label, number)
        for split in SPLITS
        for label in range(len(CLASS_NAMES))
        for number in range(counts[split])
    ]


def _text_files(videos: list[_Video]) -> dict[str, str]:
    """Name -> text of the lists and of classes.txt."""
    lines = {split: "".join(f"{v.path} {v.label}\n" for v in videos if v.split == split) for split in SPLITS}
    return {
        "train.csv": lines["train"],
        "val.csv": lines["test"],
        "test.csv": lines["test"],
        "classes.txt": "".join(f"{name}\n" for name in CLASS_NAMES),
    }


def _write_text(path: Path, text: str) -> None:
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what a folder holds already --------------------------------------------------------------------------------------


def _read_manifest(root: Path) -> dict | None:
    """The manifest of a set that this module wrote, None for a new or empty folder.

    Raises:
        InputError: the folder holds something else.
    """
    elsewhere = "choose another folder for the demo's data, or empty this one"
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file, expected a folder for the demo's data")
    path = root / MANIFEST
    if not path.exists():
        names = sorted(entry.name for entry in root.iterdir()) if root.exists() else []
        foreign = [name for name in names if not name.startswith(f".{MANIFEST}.")]  # not a killed call's temporary
        if foreign:
            raise InputError(f"{root} holds {foreign[0]!r} but no {MANIFEST}: not a demo data set; {elsewhere}")
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest["parameters"], dict) or not isinstance(manifest["files"], dict):
            raise TypeError("parameters and files must be mappings")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a manifest of the demo's data ({error}); {elsewhere}") from error
    return manifest


def _remove_videos(root: Path, paths) -> None:
    """Remove these videos of a set; whatever else is in the folder stays."""
    for path in paths:
        if VIDEO_PATH.fullmatch(path):  # a manifest can be edited: nothing outside videos/ is ever removed
            (root / path).unlink(missing_ok=True)


def _intact_videos(root: Path, files: dict[str, str | None]) -> dict[str, str]:
    """Path -> SHA-256 of the videos that can stay: those with the recorded bytes or, where none are, whole ones."""
    intact = {}
    for name, recorded in files.items():
        path = root / name
        if path.is_file() and (recorded is not None or _is_whole(path)):
            digest = _sha256(path)
            if recorded in (None, digest):
                intact[name] = digest
    return intact


def _write_manifest(root: Path, parameters: dict, files: dict[str, str | None]) -> None:
    _write_text(root / MANIFEST, json.dumps({"parameters": parameters, "files": files}, indent=1) + "\n")


# --- making it --------------------------------------------------------------------------------------------------------


def _write_videos(root: Path, seed: int, videos: list[_Video]) -> dict[str, str]:
    """One job of a worker process: path -> SHA-256 of what it wrote."""
    written = {}
    for video in videos:
        path = root / video.path
        frames = render_class(video_generator(seed, video.split, video.label, video.number), video.label)
        write_video(path, frames)
        written[video.path] = _sha256(path)
    return written


def _write_all(root: Path, seed: int, videos: list[_Video], num_processes: int, progress) -> dict[str, str]:
    jobs = [videos[start : start + VIDEOS_PER_JOB] for start in range(0, len(videos), VIDEOS_PER_JOB)]
    files: dict[str, str] = {}

    def collect(written: dict[str, str]) -> None:
        files.update(written)
        if progress is not None:
            progress(len(files), len(videos))

    if num_processes == 1 or len(jobs) <= 1:
        for job in jobs:
            collect(_write_videos(root, seed, job))
        return files

    # spawn: a fork would copy whatever threads (torch, BLAS) the caller has started.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_processes, len(jobs)), mp_context=context)
    try:
        for future in as_completed([pool.submit(_write_videos, root, seed, job) for job in jobs]):
            collect(future.result())
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C the jobs not begun are dropped
    return files


def _prepare_folders(root: Path, videos: list[_Video]) -> None:
    for folder in {(root / video.path).parent for video in videos}:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.mp4.*.tmp"):  # of a call that was killed
            leftover.unlink(missing_ok=True)


def _checked_parameters(seed: int, train_per_class: int, test_per_class: int, num_processes: int) -> dict:
    for name, value, least in (
        ("seed", seed, 0),
        ("train_per_class", train_per_class, 1),
        ("test_per_class", test_per_class, 1),
        ("num_processes", num_processes, 1),
    ):
        if value < least:
            raise InputError(f"{name} is {value}, expected at least {least}")
    return {"format_version": FORMAT_VERSION, "seed": seed, "train": train_per_class, "test": test_per_class}


def make_dataset(
    root: str | Path,
    *,
    seed: int = 0,
    train_per_class: int = 60,
    test_per_class: int = 24,
    num_processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetPaths:
    """Write the demo's data set to the folder `root`, or reuse what a call with the same parameters left there.

    Args:
        seed: every scene follows from it.
        train_per_class, test_per_class: videos of each of the eight classes.
        num_processes: 1 works in this process. More are spawned, so a script calls this under
            `if __name__ == "__main__"`; they import the script's top level again, where torch would cost seconds.
        progress: called as progress(done, total) with the videos that this call writes, not at all if it writes none.

    Raises:
        InputError: a number out of range, or `root` holds files that are not a demo data set.
    """
    root = Path(root).absolute()
    parameters = _checked_parameters(seed, train_per_class, test_per_class, num_processes)
    videos = _plan(parameters)
    manifest = _read_manifest(root)
    if manifest is not None and manifest["parameters"] != parameters:
        logger.warning("%s holds the demo's data for %s; replacing it for %s", root, manifest["parameters"], parameters)
        # The old manifest stays until its videos are gone: none of them can be taken for one of the new set.
        _remove_videos(root, manifest["files"])
        manifest = None

    recorded = {} if manifest is None else manifest["files"]
    intact = _intact_videos(root, recorded)
    missing = [video for video in videos if video.path not in intact]
    stale_texts = {name: text for name, text in _text_files(videos).items() if not _holds(root / name, text)}
    if intact == recorded and not missing and not stale_texts:
        logger.info("reusing the demo's data in %s: %d videos, seed %d", root, len(videos), seed)
    else:
        if manifest is not None:
            logger.warning(
                "the demo's data in %s is not complete: writing %d of %d videos and %d lists",
                *(root, len(missing), len(videos), len(stale_texts)),
            )
        _prepare_folders(root, videos)
        _remove_videos(root, [video.path for video in missing])  # one whose bytes have changed must not look finished
        _write_manifest(root, parameters, {video.path: intact.get(video.path) for video in videos})
        written = _write_all(root, seed, missing, num_processes, progress)
        for name, text in stale_texts.items():
            _write_text(root / name, text)
        _write_manifest(root, parameters, {video.path: (intact | written)[video.path] for video in videos})
    return DatasetPaths(
        root=root,
        train_list=root / "train.csv",
        val_list=root / "val.csv",
        test_list=root / "test.csv",
        class_names=root / "classes.txt",
        num_train=len(CLASS_NAMES) * train_per_class,
        num_test=len(CLASS_NAMES) * test_per_class,
        num_written=len(missing),
    )
