"""The folder of checkpoints: what is kept, what is found, and what happens when nothing can be written."""

import hashlib
import logging
import os
import pickle
import resource
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from forked import run_forked
from malicious import Malicious
from pyslowfast_resume import pyslowfasts_choice

from revvideo.engine.checkpoint import checkpoint_name, load_checkpoint, save_checkpoint
from revvideo.engine.checkpoint_folder import CheckpointFolder
from revvideo.engine.checksums import checksum_path
from revvideo.engine.events import EventLog, read_events

NOBODY = 65534


def state_of(epoch: int, steps: int = 0) -> dict:
    return {"epoch": epoch, "model_state": {"w": torch.full((1000,), float(epoch))}, "steps": steps}


def save(folder: CheckpointFolder, epoch: int, steps: int = 0) -> Path | None:
    return folder.save(checkpoint_name(epoch, steps), state_of(epoch, steps))


def checkpoints(folder: Path) -> list[str]:
    """What stands between `checkpoint_epoch_` and `.pyth`; every file is a checkpoint, its checksum, or the link."""
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if name.startswith("checkpoint")]
    assert set(names) - {"best.pyth"} == {*found, *(checksum_path(folder / name).name for name in found)}
    return [name.removeprefix("checkpoint_epoch_").removesuffix(".pyth") for name in found]


@pytest.fixture
def events(tmp_path_factory):
    with EventLog(tmp_path_factory.mktemp("events") / "events.jsonl") as log:
        yield log


def failures(events: EventLog, kind: str) -> list[tuple[str, str]]:
    return [
        (os.path.basename(event["path"]), event["reason"])
        for event in read_events(events.path)
        if event["kind"] == kind
    ]


# What is kept


def test_the_newest_are_kept_and_the_best(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.best() is None
    folder.mark_best(save(folder, 0))
    assert checkpoints(tmp_path) == ["00001"]
    for epoch in range(1, 5):
        save(folder, epoch)
        assert checkpoints(tmp_path) == ["00001", *(f"{n + 1:05d}" for n in range(max(1, epoch - 1), epoch + 1))]
    assert os.readlink(tmp_path / "best.pyth") == "checkpoint_epoch_00001.pyth"
    folder.mark_best(tmp_path / "checkpoint_epoch_00005.pyth")
    save(folder, 5)
    assert checkpoints(tmp_path) == ["00005", "00006"]  # the best before goes with the rest
    moved = tmp_path.parent / "moved"
    tmp_path.rename(moved)
    assert load_checkpoint(moved / "best.pyth")["epoch"] == 4
    moved.rename(tmp_path)


def test_the_best_is_known_to_the_next_start(tmp_path):
    first = CheckpointFolder(tmp_path, keep=1)
    first.mark_best(save(first, 0))
    second = CheckpointFolder(tmp_path, keep=1)
    assert second.best() == tmp_path / "checkpoint_epoch_00001.pyth"
    for epoch in (1, 2):
        save(second, epoch)
    assert checkpoints(tmp_path) == ["00001", "00003"]
    (tmp_path / "checkpoint_epoch_00001.pyth").unlink()
    assert second.best() is None  # a link that leads nowhere
    save(second, 3)
    assert checkpoints(tmp_path) == ["00004"]


def test_those_in_the_middle_of_an_epoch_count_like_the_others(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    for epoch, steps in ((-1, 7), (-1, 14), (0, 0), (0, 7), (0, 14), (1, 0)):
        save(folder, epoch, steps)
    assert checkpoints(tmp_path) == ["00001_step_000007", "00001_step_000014", "00002"]
    assert folder.latest().name == "checkpoint_epoch_00002.pyth"
    save(folder, 1, 1)
    assert folder.latest().name == "checkpoint_epoch_00002_step_000001.pyth"
    assert load_checkpoint(folder.latest())["steps"] == 1


def test_zero_keeps_all(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=0)
    for epoch in range(6):
        save(folder, epoch)
    assert len(checkpoints(tmp_path)) == 6


def test_nothing_is_deleted_before_the_next_is_whole(tmp_path, monkeypatch):
    """At the moment of every deletion a newer checkpoint than the deleted one is there and is valid."""
    folder = CheckpointFolder(tmp_path, keep=1)
    save(folder, 0)
    deleted = []
    unlink = Path.unlink

    def look(path, missing_ok=False):
        if path.name.startswith("checkpoint"):
            deleted.append(path.name)
            assert CheckpointFolder(tmp_path, keep=1).latest().name > path.name
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", look)
    for epoch in (1, 2):
        save(folder, epoch)
    assert deleted == ["checkpoint_epoch_00001.pyth", "checkpoint_epoch_00002.pyth"]


def test_the_files_of_an_earlier_run_are_not_taken_for_newer_ones(tmp_path, caplog):
    """Training that begins anew in a folder keeps its own checkpoints, touches no later ones, and says so."""
    for epoch in (7, 8, 9):
        save(CheckpointFolder(tmp_path, keep=0), epoch)
    folder = CheckpointFolder(tmp_path, keep=2)
    for epoch in (0, 1, 2):
        save(folder, epoch)
    assert checkpoints(tmp_path) == ["00002", "00003", "00008", "00009", "00010"]
    assert caplog.text.count("checkpoint_epoch_00010.pyth is of a later step than checkpoint_epoch_00001.pyth") == 1
    assert len(caplog.records) == 1


def test_what_kills_have_left_is_cleared_away(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    save(folder, 0)
    left = [".epoch_00002_step_000005.pyth.tmp", ".checkpoint_epoch_00003.pyth.tmp", ".epoch_00002.pyth.sha256.tmp"]
    for name in (*left, ".best.pyth.tmp", "epoch_00002.pyth.sha256"):  # the last is of a file that was never renamed
        (tmp_path / name).write_text("half")
    (tmp_path / ".my.tmp").touch()
    (tmp_path / "notes.txt").touch()
    assert folder.latest().name == "checkpoint_epoch_00001.pyth"
    save(folder, 2)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("checkpoint_epoch_00003.pyth", "epoch_00003.pyth.sha256"),
        *(".my.tmp", "notes.txt"),
    }


# What is found


def test_the_newest_valid_one_is_found_and_the_others_are_named(tmp_path, events, caplog):
    folder = CheckpointFolder(tmp_path, keep=3, events=events)
    assert folder.latest() is None
    assert CheckpointFolder(tmp_path / "none", keep=3).latest() is None
    first, second, third = (save(folder, epoch) for epoch in range(3))
    third.write_bytes(third.read_bytes()[:-100])  # truncated
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 1  # still loads
    second.write_bytes(content)
    assert folder.latest() == first
    assert [name for name, _ in failures(events, "checkpoint_passed_over")] == [third.name, second.name]
    assert [third.name in caplog.messages[0], second.name in caplog.messages[1]] == [True, True]
    assert folder.latest() == first
    assert len(caplog.records) == len(failures(events, "checkpoint_passed_over")) == 2  # each is said once
    # Damaged ones do not take the places of good ones.
    fourth = save(folder, 2, 5)
    assert checkpoints(tmp_path) == ["00001", "00003_step_000005"]
    assert folder.latest() == fourth


def test_a_damaged_one_that_is_written_again_is_good_again(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    first, second = save(folder, 0), save(folder, 1)
    second.write_bytes(b"")
    assert folder.latest() == first
    assert save(folder, 1) == folder.latest() == second
    save(folder, 2)
    assert checkpoints(tmp_path) == ["00002", "00003"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("checksum", [False, True])
def test_a_malicious_newest_one_is_passed_over_and_not_executed(tmp_path, events, checksum):
    folder = CheckpointFolder(tmp_path / "run", keep=3, events=events)
    good, trace = save(folder, 0), tmp_path / "executed"
    bad = good.with_name(checkpoint_name(1))
    bad.write_bytes(pickle.dumps({"epoch": 1, "model_state": Malicious(trace)}))
    if checksum:  # a right one makes it no better
        checksum_path(bad).write_text(f"{hashlib.sha256(bad.read_bytes()).hexdigest()}  {bad.name}\n")
    assert folder.latest() == good
    ((name, reason),) = failures(events, "checkpoint_passed_over")
    assert name == bad.name
    assert "could run code" in reason
    assert not trace.exists()


def test_pyslowfasts_files_are_valid_without_a_checksum(tmp_path):
    torch.save({"epoch": 3, "model_state": {}}, tmp_path / checkpoint_name(3))
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.latest().name == "checkpoint_epoch_00004.pyth"
    save(folder, 3)  # over PySlowFast's
    assert load_checkpoint(folder.latest())["steps"] == 0


def test_pyslowfast_chooses_a_checkpoint_and_the_one_that_we_choose(tmp_path):
    """Never a checksum, the link, or what a kill has left; at any time of a run."""
    folder = CheckpointFolder(tmp_path, keep=2)
    leftovers = (".epoch_00000_step_000007.pyth.tmp", ".epoch_00001.pyth.sha256.tmp", ".best.pyth.tmp")
    for name in leftovers:  # killed in the first write: nothing to resume from
        (tmp_path / name).write_bytes(b"half")
    assert pyslowfasts_choice(tmp_path) is None
    for epoch, steps in ((-1, 7), (0, 0), (0, 7), (8, 7), (9, 0), (9, 7), (99, 1)):
        path = save(folder, epoch, steps)
        if steps == 0:
            folder.mark_best(path)
        for name in leftovers:
            (tmp_path / name).write_bytes(b"half")
        chosen = pyslowfasts_choice(tmp_path)
        assert chosen == path == folder.latest()
        loaded = torch.load(chosen, map_location="cpu", weights_only=True)
        assert loaded["epoch"] == epoch
        assert torch.equal(loaded["model_state"]["w"], state_of(epoch)["model_state"]["w"])
    assert (tmp_path / "best.pyth").exists()


# When nothing can be written


def test_a_real_write_error_ends_nothing_and_is_said_once(tmp_path, events, caplog):
    """RLIMIT_FSIZE: write() itself fails, in the middle of the file; later it works again."""
    folder = CheckpointFolder(tmp_path, keep=1, events=events)
    first = save(folder, 0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    big = {"epoch": 1, "model_state": {"w": torch.zeros(100_000)}}

    def fail_then_succeed():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        for epoch in (1, 2):
            assert folder.save(checkpoint_name(epoch), big) is None
            assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
            assert folder.latest() == first
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with caplog.at_level(logging.INFO):
            assert folder.save(checkpoint_name(2), big) == folder.latest()
        warning, information = caplog.records
        assert (warning.levelname, information.levelname) == ("WARNING", "INFO")
        assert "could not write" in warning.getMessage()
        assert "checkpoint_epoch_00002.pyth: File too large" in warning.getMessage()
        assert "can be written again" in information.getMessage()

    assert run_forked(fail_then_succeed) == 0
    assert checkpoints(tmp_path) == ["00003"]
    failed = failures(events, "checkpoint_failed")
    assert [name for name, _ in failed] == ["checkpoint_epoch_00002.pyth", "checkpoint_epoch_00003.pyth"]
    assert all("File too large" in reason for _, reason in failed)


def test_a_read_only_folder_ends_nothing(events, caplog):
    """Of another user where this one is root, whom permissions do not stop."""
    place = Path(tempfile.mkdtemp())  # another user cannot enter pytest's own folders
    try:
        place.chmod(0o755)
        folder = CheckpointFolder(place / "checkpoints", keep=1, events=events)
        first = save(folder, 0)
        folder.mark_best(first)
        folder.folder.chmod(0o555)

        def train_on():
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            assert save(folder, 1) is None
            assert save(folder, 2) is None
            folder.mark_best(first)
            new = CheckpointFolder(place / "new" / "checkpoints", keep=1)
            assert save(new, 0) == (None if place.stat().st_uid != os.getuid() else new.latest())
            assert folder.latest() == folder.best() == first
            texts = [record.getMessage() for record in caplog.records if str(folder.folder) in record.getMessage()]
            assert len(texts) == 2, texts
            assert "checkpoint_epoch_00002.pyth: Permission denied" in texts[0]
            assert "could not make the link" in texts[1]

        assert run_forked(train_on) == 0
        assert [name for name, _ in failures(events, "checkpoint_failed")] == [
            *("checkpoint_epoch_00002.pyth", "checkpoint_epoch_00003.pyth", "best.pyth")
        ]
        folder.folder.chmod(0o755)
        assert save(folder, 3) == folder.latest()
    finally:
        folder.folder.chmod(0o755)
        shutil.rmtree(place)


def test_the_best_is_kept_where_no_link_can_be_made(tmp_path, events, caplog, monkeypatch):
    def refuse(*arguments):
        raise OSError(1, "Operation not permitted")  # as file systems without links do

    monkeypatch.setattr(os, "symlink", refuse)
    folder = CheckpointFolder(tmp_path, keep=1, events=events)
    for epoch in (0, 1):
        folder.mark_best(save(folder, epoch))
    for epoch in (2, 3):
        save(folder, epoch)
    assert checkpoints(tmp_path) == ["00002", "00004"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert [name for name, _ in failures(events, "checkpoint_failed")] == ["best.pyth"] * 2


def test_what_cannot_be_deleted_ends_nothing(tmp_path, events, caplog, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep=1, events=events)
    save(folder, 0)
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.name.startswith("checkpoint"):
            raise OSError(30, "Read-only file system")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert [save(folder, epoch) for epoch in (1, 2)] == [tmp_path / checkpoint_name(epoch) for epoch in (1, 2)]
    assert checkpoints(tmp_path) == ["00001", "00002", "00003"]
    assert caplog.text.count("could not delete") == 1
    assert len(failures(events, "checkpoint_not_deleted")) == 3  # epoch 1 twice, epoch 2 once


def test_a_mistake_of_ours_is_no_failed_write(tmp_path):
    with pytest.raises(TypeError, match=r"state\['best'\]"):
        CheckpointFolder(tmp_path, keep=1).save(checkpoint_name(0), {"best": object()})
    with pytest.raises(AssertionError):
        CheckpointFolder(tmp_path, keep=1).save("model.pyth", {})
    path = save_checkpoint(tmp_path / "elsewhere" / checkpoint_name(0), {})
    with pytest.raises(AssertionError):
        CheckpointFolder(tmp_path, keep=1).mark_best(path)
