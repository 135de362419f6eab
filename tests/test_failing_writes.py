"""Runs whose files cannot be written, or not be read any more: training goes on, and what happened is told."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import tiny
import torch
from processes import run_processes
from troubles import Accuracies, AtStep, FillDisk, Forbid, Impatient, LimitFiles, Send, run, told

from revvideo.engine.checkpoint import checkpoint_name, latest_checkpoint
from revvideo.engine.checkpoint_folder import CheckpointFolder
from revvideo.engine.events import read_events

NUM_EPOCHS, STEPS_AN_EPOCH = 4, tiny.NUM_TRAIN // 4
NUM_STEPS = NUM_EPOCHS * STEPS_AN_EPOCH
KEYS = tiny.RANDOM | {"SOLVER.MAX_EPOCH": NUM_EPOCHS, "DIST.TIMEOUT_SECONDS": 30}
SMALL = LimitFiles(60_000)  # room for what is logged, but not for a checkpoint
ANY = LimitFiles(None)
STOP = Send(signal.SIGTERM)


def start(data, folder, *troubles, keys=(tiny.TRAIN_ONLY,), count=1) -> list:
    return run_processes(count, run, data, folder, (KEYS, *keys), troubles, timeout_seconds=60)


def done(results: list) -> str:
    """What the first process of a run that came to its end has written."""
    assert [result.exitcode for result in results] == [0] * len(results), results[0].output
    return results[0].output


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/checkpoint*"))


def weights(folder: Path) -> dict:
    return torch.load(latest_checkpoint(folder / "checkpoints"), weights_only=True)["model_state"]


def equal(first: dict, second: dict) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def failed(folder: Path) -> list[str]:
    return [os.path.basename(event["path"]) for event in tiny.events(folder, "checkpoint_failed")]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """A run in which nothing fails."""
    folder = tmp_path_factory.mktemp("straight")
    done(start(data, folder))
    (path,) = folder.glob("checkpoints/checkpoint_epoch_00004.pyth")
    assert path.stat().st_size > 3 * SMALL.num_bytes
    return folder


# Checkpoints


def test_training_goes_on_without_checkpoints_and_writes_the_next_one_that_it_can(data, straight, tmp_path):
    """RLIMIT_FSIZE: write() fails in the middle of the file, from epoch 1 until the middle of epoch 2."""
    troubles = AtStep(1, 0, SMALL), AtStep(2, 1, ANY), Impatient()
    output = done(start(data, tmp_path, *troubles))
    assert output.count("could not write") == 1
    assert "checkpoint_epoch_00002.pyth: File too large" in output
    assert output.count("checkpoints can be written again") == 1
    # Tried again after each step, and at the end of the epoch.
    assert failed(tmp_path) == [checkpoint_name(1), checkpoint_name(1, 1)]
    assert all("File too large" in event["reason"] for event in tiny.events(tmp_path, "checkpoint_failed"))
    written = [os.path.basename(event["path"]) for event in tiny.events(tmp_path, "checkpoint")]
    assert written == [checkpoint_name(0), checkpoint_name(1, 2), checkpoint_name(2), checkpoint_name(3)]
    assert checkpoints(tmp_path) == sorted(written[1:])
    assert tiny.losses(tmp_path) == tiny.losses(straight)
    assert equal(weights(tmp_path), weights(straight))
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()} - set(written)
    assert left == {name.replace("checkpoint_", "") + ".sha256" for name in written[1:]}


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_whose_last_checkpoint_cannot_be_written_is_not_done(data, straight, tmp_path, count):
    """It is tried several times, then the run fails in all processes; the next start trains what is missing."""
    results = start(data, tmp_path, AtStep(3, 0, SMALL), Impatient(), count=count)
    for result in results:
        assert result.exitcode == 1, result.output
        last = result.output.splitlines()[-1]
        assert "training is complete, but no checkpoint could be written to" in last
        assert "in 2 tries" in last
        assert last.endswith(checkpoint_name(2))
        assert "Traceback" not in result.output
    assert results[0].output.count("could not write") == 1
    assert failed(tmp_path)[-2:] == [checkpoint_name(3)] * 2
    assert checkpoints(tmp_path)[-1] == checkpoint_name(2)
    again = start(data, tmp_path, count=count)
    assert f"resumed after epoch 3 from {tmp_path}" in done(again)
    assert [event["step"] for event in tiny.events(tmp_path, "train_step")] == [*range(NUM_STEPS), 6, 7]
    if count == 1:
        assert equal(weights(tmp_path), weights(straight))


def test_the_last_checkpoint_is_tried_until_there_is_room(data, straight, tmp_path):
    """As when an administrator makes room in the seconds in between."""
    output = done(start(data, tmp_path, AtStep(3, 1, SMALL), RoomAfter(2), Impatient(tries=5)))
    assert failed(tmp_path) == [checkpoint_name(3)] * 2
    assert output.count("could not write") == 1
    assert equal(weights(tmp_path), weights(straight))


class RoomAfter:
    """There is room again after so many failures."""

    def __init__(self, failures: int):
        self.failures = failures

    def install(self) -> None:
        save = CheckpointFolder.save

        def save_or_fail(folder, name, state):
            path = save(folder, name, state)
            self.failures -= path is None
            if self.failures == 0:
                ANY()
            return path

        CheckpointFolder.save = save_or_fail


def test_a_stop_that_cannot_be_saved_is_a_failure(data, tmp_path):
    """Exit code 75 tells a launcher that all is safe."""
    both = AtStep(1, 0, SMALL), AtStep(1, 1, STOP)
    (result,) = start(data, tmp_path, *both, Impatient(tries=2))
    assert result.exitcode == 1
    last = result.output.splitlines()[-1]
    assert "stopped by SIGTERM, but no checkpoint could be written" in last
    assert last.endswith(checkpoint_name(0))
    assert not told(tmp_path)


def test_a_folder_that_becomes_read_only(data, straight, tmp_path):
    """Training goes on to its end and fails there; with permissions the next start does what is missing."""
    place = Path(tempfile.mkdtemp())  # another user cannot enter pytest's own folders
    folder = place / "run"
    try:
        shutil.copytree(data, place / "data")
        for path in (place, place / "data"):
            path.chmod(0o755)
        forbid = AtStep(2, 0, Forbid(folder / "checkpoints"))
        (result,) = start(place / "data", folder, forbid, Impatient())
        assert result.exitcode == 1, result.output
        assert result.output.count("could not write") == 1
        assert "checkpoint_epoch_00003.pyth: Permission denied" in result.output
        assert "no checkpoint could be written to" in result.output.splitlines()[-1]
        # After epoch 3, after each step of epoch 4 (tried again), and twice at the end.
        assert failed(folder) == [
            checkpoint_name(2),
            *(checkpoint_name(2, n) for n in (1, 2)),
            *[checkpoint_name(3)] * 2,
        ]
        assert checkpoints(folder) == [checkpoint_name(0), checkpoint_name(1)]
        assert tiny.losses(folder) == tiny.losses(straight)

        (folder / "checkpoints").chmod(0o755)
        assert "resumed after epoch 2" in done(start(place / "data", folder))
        assert equal(weights(folder), weights(straight))
    finally:
        shutil.rmtree(place)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(data, straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    third, fourth = (tmp_path / "checkpoints" / checkpoint_name(epoch) for epoch in (2, 3))
    fourth.write_bytes(fourth.read_bytes()[:1000])
    third.write_bytes(third.read_bytes()[:-1])
    output = done(start(data, tmp_path))
    assert output.count("checkpoint passed over") == 2
    assert f"{fourth}: damaged or cut off" in output
    assert "resumed after epoch 2" in output
    assert [os.path.basename(event["path"]) for event in tiny.events(tmp_path, "checkpoint_passed_over")] == [
        *(fourth.name, third.name)
    ]
    assert [event["step"] for event in tiny.events(tmp_path, "train_step")] == [*range(NUM_STEPS), *range(4, NUM_STEPS)]
    assert tiny.losses(tmp_path) == tiny.losses(straight)
    assert equal(weights(tmp_path), weights(straight))


# The diary


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_loses_no_event(data, straight, tmp_path):
    """ENOSPC from step 2 on; the lines are written, in their order, when there is room again."""
    diary = tmp_path / "events.jsonl"
    troubles = AtStep(1, 0, FillDisk(diary)), AtStep(3, 0, FillDisk(diary, full=False))
    output = done(start(data, tmp_path, *troubles))
    assert output.count("No space left on device") == 1
    assert output.count("can be written again") == 1
    kinds = [event["kind"] for event in read_events(diary)]
    assert kinds == [event["kind"] for event in read_events(straight / "events.jsonl")]
    assert tiny.losses(tmp_path) == tiny.losses(straight)
    times = [event["time"] for event in read_events(diary)]
    assert times == sorted(times)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_stays_full_does_not_end_the_run(data, tmp_path):
    output = done(start(data, tmp_path, AtStep(1, 0, FillDisk(tmp_path / "events.jsonl"))))
    assert "events are lost" in output
    assert [event["step"] for event in tiny.events(tmp_path, "train_step")] == [0, 1]
    assert latest_checkpoint(tmp_path / "checkpoints").name == checkpoint_name(3)


# What is kept


def test_the_newest_and_the_best_checkpoint_of_a_run_are_kept(data, tmp_path):
    """Over a restart, too; the best one by the validation."""
    keys = {"TEST.ENABLE": False, "RUN.KEEP_CHECKPOINTS": 1, "SOLVER.MAX_EPOCH": 6}
    accuracies = 10.0, 50.0, 30.0, 20.0, 40.0, 60.0
    stop = AtStep(3, 0, STOP)
    (stopped,) = start(data, tmp_path, Accuracies(accuracies[:3]), stop, keys=(keys,))
    assert stopped.exitcode == 75, stopped.output
    assert checkpoints(tmp_path) == [checkpoint_name(1), checkpoint_name(2, 1)]
    assert os.readlink(tmp_path / "checkpoints/best.pyth") == checkpoint_name(1)

    (stopped,) = start(data, tmp_path, Accuracies(accuracies[3:5]), AtStep(5, 0, STOP), keys=(keys,))
    assert stopped.exitcode == 75, stopped.output
    assert checkpoints(tmp_path) == [checkpoint_name(1), checkpoint_name(4, 1)]
    best = torch.load(tmp_path / "checkpoints/best.pyth", weights_only=True)
    assert (best["epoch"], best["best_top1"]) == (1, 50.0)

    done(start(data, tmp_path, Accuracies(accuracies[5:]), keys=(keys,)))
    assert os.readlink(tmp_path / "checkpoints/best.pyth") == checkpoint_name(5)
    assert checkpoints(tmp_path) in ([checkpoint_name(5)], [checkpoint_name(1), checkpoint_name(5)])
    assert [event["top1_acc"] for event in tiny.events(tmp_path, "validation")] == list(accuracies)
