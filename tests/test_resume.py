"""Runs that go on: from the run folder, from a named checkpoint, after an evaluation."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from revvideo.engine.events import last_per_step, read_events

# Resuming, and starting from a checkpoint

# A schedule that does not ask how many epochs there are, so that a run of two epochs can become one of four.
STEPS = {
    "SOLVER.LR_POLICY": "steps_with_relative_lrs",
    "SOLVER.STEPS": [0, 1, 3],
    "SOLVER.LRS": [1.0, 0.5, 0.1],
}


@pytest.fixture(scope="module")
def four_epochs(data, tmp_path_factory) -> Path:
    """Four epochs in one go, drop path, mixup and validation on. Read only."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM, STEPS, {"SOLVER.MAX_EPOCH": 4, "TEST.ENABLE": False}))
    return folder


def test_two_epochs_resumed_to_four_equal_four(data, four_epochs, tmp_path):
    keys = [tiny.RANDOM, STEPS, {"TEST.ENABLE": False}]
    tiny.done(tiny.run_net(data, tmp_path, *keys, {"SOLVER.MAX_EPOCH": 2}))
    torch.manual_seed(99)  # nothing of this process may matter
    outcome = tiny.done(tiny.run_net(data, tmp_path, *keys, {"SOLVER.MAX_EPOCH": 4}))
    assert "resumed after epoch 2" in outcome.err
    assert tiny.losses(tmp_path) == tiny.losses(four_epochs)
    assert len(tiny.losses(tmp_path)) == 8
    first, second = (
        torch.load(folder / "checkpoints/checkpoint_epoch_00004.pyth", weights_only=True)
        for folder in (four_epochs, tmp_path)
    )
    assert all(torch.equal(first["model_state"][name], second["model_state"][name]) for name in first["model_state"])
    assert {event["restart"] for event in tiny.events(tmp_path, "train_step")} == {0, 1}
    (resume,) = tiny.events(tmp_path, "resume")
    assert (resume["epoch"], resume["restart"]) == (1, 1)


def test_a_killed_run_repeats_the_steps_after_its_checkpoint(data, four_epochs, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(four_epochs, folder)
    for number in (3, 4):  # as if it had been killed in the fourth epoch, the third checkpoint half written
        (folder / f"checkpoints/checkpoint_epoch_0000{number}.pyth").unlink()
    (folder / "checkpoints/.checkpoint_epoch_00003.pyth.tmp").write_bytes(b"half")
    keys = {"SOLVER.MAX_EPOCH": 4, "TEST.ENABLE": False}
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM, STEPS, keys))
    events = list(read_events(folder / "events.jsonl"))
    steps = [event for event in events if event["kind"] == "train_step"]
    assert [event["step"] for event in steps] == [*range(8), *range(4, 8)]
    last = [event for event in last_per_step(events) if event["kind"] == "train_step"]
    assert [event["restart"] for event in last] == [0] * 4 + [1] * 4
    assert [event["loss"] for event in last] == tiny.losses(four_epochs)


def test_a_checkpoint_of_pyslowfast_in_the_run_folder_goes_on(data, four_epochs, tmp_path):
    """It holds neither position nor random state, and the empty state of a loss scaler that was off."""
    ours = torch.load(four_epochs / "checkpoints/checkpoint_epoch_00003.pyth", weights_only=True)
    theirs = {name: ours[name] for name in ("epoch", "model_state", "optimizer_state", "cfg")} | {"scaler_state": {}}
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs, tmp_path / "checkpoints/checkpoint_epoch_00003.pyth")
    keys = {"SOLVER.MAX_EPOCH": 4, "TRAIN.MIXED_PRECISION": True, "AMP.DTYPE": "float16"}
    outcome = tiny.done(tiny.run_net(data, tmp_path, tiny.RANDOM, tiny.TRAIN_ONLY, STEPS, keys))
    assert "not bit-equal" in outcome.err
    got, want = (
        [(e["step"], e["epoch"], e["lr"]) for e in tiny.events(f, "train_step")] for f in (tmp_path, four_epochs)
    )
    assert got == want[6:]


def test_weights_in_the_run_folder_are_begun_with_and_other_files_refused(data, finished, tmp_path):
    state = torch.load(finished[0] / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)["model_state"]
    for name, code, message in (
        ("model_state", 0, "holds no optimizer state: only its weights are taken"),
        ("state_dict", 2, "holds no model_state, but state_dict"),
    ):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        torch.save({name: state}, folder / "checkpoints/checkpoint_epoch_00001.pyth")
        outcome = tiny.run_net(data, folder, tiny.RANDOM, tiny.TRAIN_ONLY)
        assert outcome.code == code, outcome.err
        assert message in outcome.err


def test_a_finished_run_trains_nothing_more(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = len(tiny.events(folder, "train_step"))
    outcome = tiny.done(tiny.run_net(data, folder, tiny.RANDOM, {"SOLVER.MAX_EPOCH": 2}))
    assert "training is complete: 2 of 2 epochs" in outcome.err
    assert len(tiny.events(folder, "train_step")) == before
    assert len(tiny.events(folder, "test")) == 2  # but it is evaluated again


def test_the_link_to_the_best_checkpoint_is_made_when_a_kill_came_before_it(data, tmp_path):
    keys = tiny.RANDOM | {"TEST.ENABLE": False}
    tiny.done(tiny.run_net(data, tmp_path, keys))
    link = tmp_path / "checkpoints/best.pyth"
    link.unlink()
    tiny.done(tiny.run_net(data, tmp_path, keys))
    assert link.resolve().name == "checkpoint_epoch_00001.pyth"


def test_without_auto_resume_training_begins_anew(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = tiny.losses(folder)
    keys = {"SOLVER.MAX_EPOCH": 2, "TRAIN.AUTO_RESUME": False}
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM, tiny.TRAIN_ONLY, keys))
    steps = tiny.events(folder, "train_step")
    assert [event["step"] for event in steps] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert tiny.losses(folder) == before  # the same seed


@pytest.mark.parametrize("reset", [False, True])
def test_training_from_a_named_checkpoint(data, finished, tmp_path, reset):
    source = finished[0] / "checkpoints/checkpoint_epoch_00001.pyth"
    keys = {
        "SOLVER.MAX_EPOCH": 2,
        "TRAIN.CHECKPOINT_FILE_PATH": source,
        "TRAIN.CHECKPOINT_EPOCH_RESET": reset,
        "SOLVER.BASE_LR": 1e-12,  # the weights stay where they are, so the checkpoint shows them
        "SOLVER.WARMUP_START_LR": 1e-12,
        "SOLVER.COSINE_END_LR": 0.0,
    }
    outcome = tiny.done(tiny.run_net(data, tmp_path, tiny.TRAIN_ONLY, keys))
    epochs = [event["epoch"] for event in tiny.events(tmp_path, "train_step")]
    assert epochs == ([0, 0, 1, 1] if reset else [1, 1])
    assert f"weights from {source}; training begins at epoch {1 if reset else 2}" in outcome.err
    before = torch.load(source, weights_only=True)
    after = torch.load(tmp_path / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)
    for name, weight in before["model_state"].items():
        torch.testing.assert_close(after["model_state"][name], weight, rtol=0, atol=1e-9)
    steps_done = [int(float(state["step"])) for state in after["optimizer_state"]["state"].values()]
    assert set(steps_done) == {4}  # with the optimizer's state: 2 of the checkpoint + 2; reset: 4 of this run


def test_weights_without_an_optimizer_state_can_be_trained_on(data, finished, tmp_path):
    """A stripped checkpoint, as published weights are: all or nothing, but no crash."""
    state = torch.load(finished[0] / "checkpoints/checkpoint_epoch_00002.pyth", weights_only=True)
    torch.save({"epoch": 1, "model_state": state["model_state"]}, tmp_path / "weights.pyth")
    keys = {"TRAIN.CHECKPOINT_FILE_PATH": tmp_path / "weights.pyth", "SOLVER.MAX_EPOCH": 3}
    outcome = tiny.run_net(data, tmp_path / "run", tiny.TRAIN_ONLY, keys)
    assert "Traceback" not in outcome.err, outcome.err
    assert outcome.code in (0, 2), outcome.err


def test_evaluating_a_run_folder_leaves_it_able_to_train_further(data, tmp_path):
    """The two commands that the demo prints, one after the other."""
    folder = tmp_path / "run"
    tiny.done(tiny.run_net(data, folder, tiny.RANDOM))
    again = ["run_net", "--cfg", folder / "config.yaml"]
    tiny.done(tiny.command(*again, "TRAIN.ENABLE", "False"))
    tiny.done(tiny.command(*again, "SOLVER.MAX_EPOCH", "2"))
    assert [event["epoch"] for event in tiny.events(folder, "train_step")] == [0, 0, 1, 1]


def test_the_run_folder_is_evaluated_at_its_newest_checkpoint(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    (folder / "checkpoints/checkpoint_epoch_00002.pyth").unlink()
    tiny.done(tiny.run_net(data, folder, {"TRAIN.ENABLE": False}))
    results = json.loads((folder / "results.json").read_text())
    assert results["checkpoint"] == str(folder / "checkpoints/checkpoint_epoch_00001.pyth")
