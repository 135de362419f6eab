"""kill -9 while checkpoints are written: every restart finds a whole one, none older than the last completed one."""

import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import exit_code, start_forked
from pyslowfast_resume import pyslowfasts_choice

from revvideo import torch_file
from revvideo.engine.checkpoint import checkpoint_name, load_checkpoint
from revvideo.engine.checkpoint_folder import CheckpointFolder
from revvideo.engine.checksums import read_checksums

KILLS = 40
STEPS_PER_EPOCH = 3
BEGUN = b"!"
WRITES_UNTIL_THE_KILL = 2.5  # at most, of those that have begun


def write(folder: CheckpointFolder, number: int, version: int, report: int) -> Path:
    """Write the checkpoint after `number` steps and tell a pipe that it is complete."""
    epochs, steps = divmod(number, STEPS_PER_EPOCH)
    weights = {str(n): torch.full((20_000,), float(number + version)) for n in range(4)}
    state = {"epoch": epochs - 1, "number": number, "version": version, "model_state": weights}
    path = folder.save(checkpoint_name(epochs - 1, steps), state)
    assert path is not None
    os.write(report, struct.pack("<qq", number, version))
    return path


def train(place: Path, report: int) -> None:
    """Go on from the last checkpoint, for ever: each written twice, as after a signal at the end of an epoch."""
    folder = CheckpointFolder(place, keep=2)
    latest = folder.latest()
    number = load_checkpoint(latest)["number"] if latest is not None else 0
    os.write(report, BEGUN)
    while True:
        number += 1
        for version in (0, 1):
            path = write(folder, number, version, report)
        if number % STEPS_PER_EPOCH == 0:
            folder.mark_best(path)


def killed(work: Callable[[int], object], after_seconds: float | None = None) -> tuple[int, list[tuple[int, int]]]:
    """Run `work(pipe)` in a child: its exit code, and what it told about completed checkpoints.

    Args:
        work: tells the pipe BEGUN first if it is to be killed.
        after_seconds: since BEGUN; None waits until the child ends.
    """
    reader, writer = os.pipe()
    child = start_forked(lambda: work(writer))
    os.close(writer)
    if after_seconds is not None:
        assert os.read(reader, 1) == BEGUN
        time.sleep(after_seconds)
        os.kill(child, signal.SIGKILL)
    with open(reader, "rb") as file:  # ends when the child is gone
        completed = list(struct.iter_unpack("<qq", file.read()))
    return exit_code(child), completed


def assert_survived(place: Path, completed: tuple[int, int] | None) -> tuple[int, int] | None:
    """The newest checkpoint is whole, not older than the last completed one, and PySlowFast's choice; returns which."""
    latest = CheckpointFolder(place, keep=2).latest()
    if latest is None:
        assert completed is None
        assert not place.exists() or pyslowfasts_choice(place) is None
        return None
    state = torch.load(latest, weights_only=True)
    found = (state["number"], state["version"])
    assert completed is None or found >= completed
    assert len(state["model_state"]) == 4
    assert all((weight == sum(found)).all() for weight in state["model_state"].values())
    assert pyslowfasts_choice(place) == latest  # the newest name is never a half-written file
    assert read_checksums(latest)  # and has its checksum from its first moment on
    link = place / "best.pyth"
    if os.path.lexists(link):
        assert load_checkpoint(link)["number"] % STEPS_PER_EPOCH == 0
    return found


def measured(place: Path) -> float:
    """Seconds that one checkpoint takes on this machine now, in a child."""
    begin = time.perf_counter()
    code, completed = killed(lambda pipe: [write(CheckpointFolder(place, keep=2), n, 0, pipe) for n in range(1, 21)])
    assert (code, len(completed)) == (0, 20)
    return (time.perf_counter() - begin) / len(completed)


def test_kill_9_at_random_moments_of_writing(tmp_path, caplog):
    place, moments = tmp_path / "checkpoints", random.Random(6)
    completed, in_the_middle, numbers = None, 0, []
    seconds_per_write = measured(tmp_path / "measured")
    for _ in range(KILLS):
        moment = moments.uniform(0, WRITES_UNTIL_THE_KILL) * seconds_per_write
        code, reports = killed(lambda pipe: train(place, pipe), moment)
        assert code == -signal.SIGKILL
        completed = max([*reports, completed or (0, 0)])
        completed = assert_survived(place, completed if completed > (0, 0) else None)
        in_the_middle += any(path.suffix == ".tmp" for path in place.glob(".*"))
        numbers.append(completed)
    assert not caplog.records  # no damaged one was met on the way
    assert in_the_middle >= KILLS // 8
    assert len(set(numbers)) >= KILLS // 8  # and the runs went on between the kills


def die_before(count: int) -> None:
    """From now on this process kills itself instead of its `count`-th call that changes the disk, counted from 0.

    A call that writes is done by half before. Of the many writes of a file's content one in 16 is a point to die at.
    """
    left = float(count)

    def counted(function, first_half=None, weight=1.0):
        def call(*arguments, **options):
            nonlocal left
            left -= weight
            if left < 0:
                if first_half is not None:
                    first_half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    def half_of_content(recorder, data):
        recorder.file.write(bytes(data)[: len(data) // 2])
        recorder.file.flush()

    def half_of_text(path, text, encoding):
        path.write_bytes(text.encode(encoding)[: len(text) // 2])

    torch_file._Recorder.write = counted(torch_file._Recorder.write, half_of_content, weight=1 / 16)
    Path.write_text = counted(Path.write_text, half_of_text)
    Path.unlink = counted(Path.unlink)
    Path.mkdir = counted(Path.mkdir)
    for name in ("fsync", "replace", "symlink"):
        setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize(("start", "fewest_calls"), [(0, 10), pytest.param(5, 40, marks=pytest.mark.slow)])
def test_kill_9_before_each_call_that_changes_the_disk(tmp_path, start, fewest_calls):
    """The first checkpoint of a run; or two in a folder with others, the first of them written twice and the best."""
    writes = [(start + 1, 0), (start + 1, 1), (start + 2, 1)] if start else [(1, 1)]
    before = tmp_path / "before"
    if start:  # a folder with checkpoints and a best one
        folder = CheckpointFolder(before, keep=2)
        with open(os.devnull, "wb") as nowhere:
            for number in range(1, start + 1):
                path = write(folder, number, 1, nowhere.fileno())
                if number % STEPS_PER_EPOCH == 0:
                    folder.mark_best(path)

    for count in range(1000):
        place = tmp_path / f"killed_{count}"
        if start:
            shutil.copytree(before, place, symlinks=True)

        def work(pipe, place=place, count=count):
            die_before(count)
            folder = CheckpointFolder(place, keep=2)
            for number, version in writes:
                path = write(folder, number, version, pipe)
                if (number % STEPS_PER_EPOCH, version) == (0, 1):
                    folder.mark_best(path)

        code, reports = killed(work)
        found = assert_survived(place, max([*reports, (start, 1)] if start else reports, default=None))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        with open(os.devnull, "wb") as nowhere:  # the next start writes on, and clears away what was left
            number = found[0] + 1 if found else 1
            write(CheckpointFolder(place, keep=2), number, 1, nowhere.fileno())
        assert assert_survived(place, (number, 1)) == (number, 1)
        assert not list(place.glob(".*"))
        assert len(list(place.glob("*.sha256"))) == len(list(place.glob("checkpoint*"))) <= 3
        shutil.rmtree(place)
    assert found == writes[-1]
    assert count >= fewest_calls
