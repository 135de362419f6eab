"""A checkpoint is there whole or not at all, executes nothing, and fits the model or is refused."""

import errno
import hashlib
import json
import logging
import os
import pickle
import resource
import signal

import numpy as np
import pytest
import torch
from forked import run_forked
from malicious import Malicious
from torch import nn

from revvideo import paths, torch_file
from revvideo.engine.checkpoint import (
    PLAIN,
    check_checkpoint,
    checkpoint_name,
    checkpoint_position,
    checkpoint_state,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_model_state,
    save_checkpoint,
)
from revvideo.engine.checksums import checksum_path, read_checksums
from revvideo.engine.random_state import random_state
from revvideo.errors import InputError


def some_state(epoch: int = 0) -> dict:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return checkpoint_state(epoch=epoch, model=model, optimizer=optimizer, cfg="A: 1\n", random=random_state())


def test_names_and_keys_are_pyslowfasts(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints" / checkpoint_name(9), some_state(9))
    assert path.name == "checkpoint_epoch_00010.pyth"
    assert {entry.name for entry in path.parent.iterdir()} == {path.name, "epoch_00010.pyth.sha256"}
    state = torch.load(path, weights_only=True)
    assert list(state) == ["epoch", "model_state", "optimizer_state", "cfg", "random"]
    assert (state["epoch"], state["cfg"]) == (9, "A: 1\n")

    class Wrapped(nn.Module):  # as DDP does
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    model = Wrapped()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = checkpoint_state(epoch=0, model=model, optimizer=torch.optim.SGD(model.parameters()), cfg="", scaler=scaler)
    assert list(state["model_state"]) == ["weight", "bias"]
    assert state["scaler_state"]["scale"] == 8.0


def test_what_is_saved_comes_back(tmp_path):
    state = some_state()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "a.pyth", state))
    for name, tensor in state["model_state"].items():
        assert torch.equal(tensor, loaded["model_state"][name])
    before = state["optimizer_state"]["state"][0]["exp_avg"]
    assert torch.equal(before, loaded["optimizer_state"]["state"][0]["exp_avg"])
    torch.save(state, tmp_path / "old.pyth", _use_new_zipfile_serialization=False)  # cannot be memory-mapped
    assert torch.equal(load_checkpoint(tmp_path / "old.pyth")["random"]["cpu"], state["random"]["cpu"])


@pytest.mark.parametrize("value", [np.float64(1.5), np.arange(3), {"deep": [print]}, nn.Linear(1, 1)])
def test_what_could_not_be_read_back_is_refused_at_writing(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\['metric'\]"):
        save_checkpoint(tmp_path / "a.pyth", {"epoch": 0, "metric": value})
    assert list(tmp_path.iterdir()) == []


def test_every_plain_value_that_may_be_written_can_be_read_back(tmp_path):
    values = [{"a": 1}, dict(zip("ab", (1, 2))), [1, "x"], (1, (2,)), "text", b"\0\xff", 2**70, 0.5, True, None]
    values += [torch.Size([2, 3]), torch.nn.Linear(1, 1).state_dict()]  # an OrderedDict
    assert {type(value) for value in values} == set(PLAIN)
    loaded = load_checkpoint(save_checkpoint(tmp_path / "a.pyth", {"values": values, ("tuple", 1): 2}))
    assert loaded == {"values": values, ("tuple", 1): 2}


def test_names_in_the_middle_of_an_epoch(tmp_path):
    """37 steps of the 11th epoch come after 10 epochs and before 38 steps, by number and by alphabet."""
    assert checkpoint_name(9, 37) == "checkpoint_epoch_00010_step_000037.pyth"
    assert checkpoint_name(-1, 5) == "checkpoint_epoch_00000_step_000005.pyth"
    names = [checkpoint_name(epoch, step) for epoch in (-1, 0, 8, 9, 99) for step in (0, 1, 37, 38, 1234)]
    assert sorted(names) == names
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in list_checkpoints(tmp_path)] == names[::-1]
    assert checkpoint_position(tmp_path / names[17]) == (10, 37)
    for other in ("best.pyth", "epoch_00010.pyth.sha256", "checkpoint_best.pyth", "checkpoint_epoch_00010.pyth.tmp"):
        assert checkpoint_position(tmp_path / other) is None


def test_the_checksum_is_sha256sums_and_right(tmp_path):
    path = save_checkpoint(tmp_path / checkpoint_name(9), some_state(9))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "epoch_00010.pyth.sha256").read_text() == f"{digest}  checkpoint_epoch_00010.pyth\n"
    check_checkpoint(path)
    save_checkpoint(path, some_state(10))
    assert read_checksums(path) == [hashlib.sha256(path.read_bytes()).hexdigest()] != [digest]


def test_one_wrong_bit_is_found_by_the_checksum_only(tmp_path, caplog):
    path = save_checkpoint(tmp_path / checkpoint_name(0), {"model_state": {"w": torch.zeros(1000)}})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert load_checkpoint(path)["model_state"]["w"].count_nonzero() == 1  # it loads as if nothing were wrong
    with pytest.raises(InputError, match=r"00001\.pyth: damaged or cut off: its SHA-256 is .*, epoch_00001\.pyth\.sha"):
        check_checkpoint(path)
    checksum_path(path).write_text("no sum")
    check_checkpoint(path)
    assert "epoch_00001.pyth.sha256 holds no checksum of checkpoint_epoch_00001.pyth" in caplog.text
    caplog.clear()
    checksum_path(path).unlink()  # as PySlowFast writes it
    check_checkpoint(path)
    assert not caplog.text


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / checkpoint_name(0)
    save_checkpoint(path, {"epoch": 0, "model_state": {"w": torch.ones(10)}})
    before = set(tmp_path.iterdir())

    def write_and_die():
        def die(self, data, write=torch_file._Recorder.write):
            write(self, data)
            if self.file.tell() > 1_000_000:
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        torch_file._Recorder.write = die
        save_checkpoint(path, {"epoch": 1, "model_state": {str(i): torch.zeros(100_000) for i in range(8)}})

    assert run_forked(write_and_die) == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - before
    assert left.name == ".epoch_00001.pyth.tmp"
    assert left.stat().st_size > 1_000_000
    assert latest_checkpoint(tmp_path) == path
    assert torch.equal(load_checkpoint(path)["model_state"]["w"], torch.ones(10))
    save_checkpoint(path, {"epoch": 2})  # writes over what the kill left
    assert set(tmp_path.iterdir()) == before


def test_a_real_write_error_keeps_the_old_file_and_says_why(tmp_path):
    path = tmp_path / "a.pyth"
    save_checkpoint(path, {"epoch": 0})
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    assert len(before) == 2

    def write_too_much():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))  # Python ignores the signal
        for name in ("a.pyth", "b.pyth"):
            with pytest.raises(OSError, match="File too large"):  # not a RuntimeError of the zip writer
                save_checkpoint(tmp_path / name, {"w": torch.zeros(1_000_000)})

    assert run_forked(write_too_much) == 0
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before
    assert load_checkpoint(path) == {"epoch": 0}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_rename_that_fails_leaves_no_checksum_without_its_file(tmp_path, monkeypatch, overwrite):
    path = tmp_path / checkpoint_name(0)
    if overwrite:
        save_checkpoint(path, {"epoch": 0})
    before = sorted(tmp_path.iterdir())

    def refuse(source, target, replace=os.replace):
        if target == path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"epoch": 1})
    assert sorted(tmp_path.iterdir()) == before
    if overwrite:
        check_checkpoint(path)
        assert load_checkpoint(path) == {"epoch": 0}


def recorded_calls(monkeypatch) -> list[tuple[str, str]]:
    """(what, name) of every write of content, fsync and rename from now on."""
    calls: list[tuple[str, str]] = []
    write, fsync, replace = torch_file._Recorder.write, os.fsync, os.replace

    def record_write(self, data):
        calls.append(("write", os.path.basename(self.file.name)))
        return write(self, data)

    def record_fsync(descriptor):
        fsync(descriptor)
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))

    def record_replace(source, target):
        replace(source, target)
        calls.append(("replace", os.path.basename(target)))

    monkeypatch.setattr(torch_file._Recorder, "write", record_write)
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return calls


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names of open files are read from /proc")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_power_cut_finds_content_and_checksum_on_the_disk_before_the_name(tmp_path, monkeypatch, overwrite):
    """Whatever moment a power cut comes at, a name on the disk stands for content and checksum that are there too."""
    path = tmp_path / "run" / "checkpoints" / checkpoint_name(0)
    if overwrite:
        save_checkpoint(path, some_state())
    calls = recorded_calls(monkeypatch)
    save_checkpoint(path, some_state(1))
    checksum, content = "epoch_00001.pyth.sha256", ".epoch_00001.pyth.tmp"
    renamed = calls.index(("replace", path.name))
    last_write = max(at for at, call in enumerate(calls) if call == ("write", content))
    assert last_write < calls.index(("fsync", content)) < renamed
    sum_renamed = calls.index(("replace", checksum))
    assert calls.index(("fsync", f".{checksum}.tmp")) < sum_renamed < calls.index(("fsync", "checkpoints"), sum_renamed)
    assert calls.index(("fsync", "checkpoints"), sum_renamed) < renamed
    assert calls.index(("fsync", "checkpoints"), renamed) > renamed
    made = [name for what, name in calls[: calls.index(("write", content))] if what == "fsync"]
    assert made == ([] if overwrite else [tmp_path.name, "run"])  # the new folders' names are on the disk first
    # The old sum goes only after the new content has its name: until then both stand in the file.
    assert calls.count(("replace", checksum)) == 1 + overwrite


def test_overwriting_lists_both_checksums_until_the_rename(tmp_path, monkeypatch):
    """Also over a file that had no checksum of its own."""
    path = tmp_path / checkpoint_name(0)
    for step, before in enumerate(("none", "ours", "pyslowfasts")):
        if before == "pyslowfasts":
            checksum_path(path).unlink()
        old = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
        seen = []

        def look(source, target, replace=os.replace, seen=seen):
            if target == path:
                seen.append(read_checksums(path))
            replace(source, target)

        monkeypatch.setattr(os, "replace", look)
        save_checkpoint(path, {"epoch": step})
        monkeypatch.undo()
        new = hashlib.sha256(path.read_bytes()).hexdigest()
        assert seen == [[new] if old is None else [old, new]]
        assert read_checksums(path) == [new]


def test_a_file_system_without_fsync_of_folders_will_do(tmp_path, monkeypatch):
    fsync, refused = os.fsync, []

    def refuse_folders(descriptor, code=errno.EINVAL):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            refused.append(code)
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    check_checkpoint(save_checkpoint(tmp_path / "a.pyth", {"epoch": 0}))
    assert refused
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse_folders(descriptor, errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        paths.sync_folder(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "torch_legacy", "pickle"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, how):
    path, trace = tmp_path / checkpoint_name(0), tmp_path / "executed"
    payload = {"epoch": 0, "model_state": Malicious(trace)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InputError, match=r"checkpoint_epoch_00001.pyth: not loaded"):
        load_checkpoint(path)
    assert latest_checkpoint(tmp_path) is None
    assert not trace.exists()


def test_unreadable_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint file"):
        load_checkpoint(tmp_path / "missing.pyth")
    whole = save_checkpoint(tmp_path / "whole.pyth", some_state()).read_bytes()
    contents = [b"", b"not a checkpoint", bytes(1000), json.dumps({"a": 1}).encode()]
    contents += [whole[: len(whole) * tenth // 10] for tenth in range(1, 10)] + [whole[:-1]]
    for content in contents:
        path = tmp_path / "bad.pyth"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.pyth: "):
            load_checkpoint(path)
    torch.save([1, 2], tmp_path / "list.pyth")
    with pytest.raises(InputError, match="holds a list"):
        load_checkpoint(tmp_path / "list.pyth")


def test_latest_is_by_number_and_passes_over_damaged_files(tmp_path, caplog):
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for epoch in (1, 9, 99_998, 99_999):  # 100000 sorts before 99999 as text
        save_checkpoint(tmp_path / checkpoint_name(epoch), {"epoch": epoch})
    (tmp_path / ".checkpoint_epoch_99999999.pyth.tmp").write_bytes(b"half")
    (tmp_path / "checkpoint_best.pyth").write_bytes(b"other")
    assert latest_checkpoint(tmp_path).name == "checkpoint_epoch_100000.pyth"
    newest = tmp_path / "checkpoint_epoch_100000.pyth"
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path).name == "checkpoint_epoch_99999.pyth"
    assert "checkpoint_epoch_100000.pyth" in caplog.text


def test_a_folder_that_is_none_is_an_input_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(InputError, match="checkpoints: not a readable folder of checkpoints"):
        latest_checkpoint(tmp_path / "checkpoints")


def test_weights_fit_or_are_refused_with_a_list():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).state_dict()
    load_model_state(model, {f"module.{name}": tensor for name, tensor in state.items()}, source="a.pyth")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    wrapper = nn.Module()
    wrapper.module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    load_model_state(wrapper, state, source="a.pyth")
    assert torch.equal(wrapper.module[0].weight, state["0.weight"])

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {"0.weight": torch.zeros(5, 3), "0.bias": torch.zeros(4), **{f"x.{i}": torch.zeros(1) for i in range(20)}}
    with pytest.raises(InputError) as raised:
        load_model_state(model, other, source="b.pyth")
    message = str(raised.value)
    assert "b.pyth: the weights do not fit the model (22 tensors, the model has 4)" in message
    assert "2 missing: 1.weight (2, 4), 1.bias (2,)" in message
    assert "20 unexpected: x.0 (1,), " in message
    assert "... (12 more)" in message
    assert "1 of another shape: 0.weight (5, 3) instead of (4, 3)" in message
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
