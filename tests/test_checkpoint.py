"""A checkpoint is there whole or not at all, executes nothing, and fits the model or is refused."""

import json
import logging
import pickle
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from malicious import Malicious
from torch import nn

from revvideo.engine.checkpoint import (
    checkpoint_name,
    checkpoint_state,
    latest_checkpoint,
    load_checkpoint,
    load_model_state,
    random_state,
    save_checkpoint,
    set_random_state,
)
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
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
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


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / checkpoint_name(0)
    save_checkpoint(path, {"epoch": 0, "model_state": {"w": torch.ones(10)}})
    code = f"""
        import os, signal, torch
        import revvideo.engine.checkpoint as checkpoint
        import revvideo.torch_file as torch_file
        def die(self, data, write=torch_file._Recorder.write):
            write(self, data)
            if self.file.tell() > 1_000_000:
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        torch_file._Recorder.write = die
        weights = {{str(i): torch.zeros(100_000) for i in range(8)}}
        checkpoint.save_checkpoint({str(path)!r}, {{"epoch": 1, "model_state": weights}})
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)
    assert child.returncode == -signal.SIGKILL
    left = [entry for entry in tmp_path.iterdir() if entry != path]
    assert [entry.suffix for entry in left] == [".tmp"]
    assert left[0].stat().st_size > 1_000_000
    assert latest_checkpoint(tmp_path) == path
    assert torch.equal(load_checkpoint(path)["model_state"]["w"], torch.ones(10))
    save_checkpoint(path, {"epoch": 2})  # writes over what the kill left
    assert list(tmp_path.iterdir()) == [path]


def test_a_real_write_error_keeps_the_old_file_and_says_why(tmp_path):
    path = tmp_path / "a.pyth"
    save_checkpoint(path, {"epoch": 0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # Python ignores the signal: the write fails
    try:
        with pytest.raises(OSError, match="File too large"):  # not a RuntimeError of the zip writer
            save_checkpoint(path, {"w": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path) == {"epoch": 0}


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


def test_random_state_comes_back(tmp_path):
    path = save_checkpoint(tmp_path / "a.pyth", {"random": random_state()})
    expected = torch.rand(4)
    set_random_state(load_checkpoint(path)["random"])
    assert torch.equal(torch.rand(4), expected)
