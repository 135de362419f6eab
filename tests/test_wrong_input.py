"""Wrong input to `revvideo run_net`: one readable error and exit code 2, or a report, and never a traceback."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from videos import damage, write_video

from revvideo import build
from revvideo.config import load_config
from revvideo.data.video_reader import open_video


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_data(data, tmp_path) -> Path:
    """A copy of the data set that a test may spoil."""
    return Path(shutil.copytree(data, tmp_path / "own_data"))


def assert_no_traceback(outcome: tiny.Outcome) -> None:
    for sign in ("Traceback", 'File "', "raise "):
        assert sign not in outcome.err, outcome.err


def refused(outcome: tiny.Outcome, *parts: object) -> str:
    """The one error message of a refused command; it holds every part."""
    assert outcome.code == 2, outcome.err
    assert_no_traceback(outcome)
    assert outcome.err.count("revvideo: error: ") == 1
    message = outcome.err.partition("revvideo: error: ")[2]
    missing = [str(part) for part in parts if str(part) not in message]
    assert not missing, f"{missing} not in: {message}"
    return message


def nothing_trained(folder: Path) -> bool:
    return not (folder / "events.jsonl").exists() or not tiny.events(folder, "train_step")


# The config


def test_a_missing_config(tmp_path):
    outcome = tiny.command("run_net", "--cfg", tmp_path / "no/such.yaml", "OUTPUT_DIR", tmp_path / "run")
    refused(outcome, tmp_path / "no/such.yaml", "no such file")
    outcome = tiny.command("run_net", "--cfg", "demo/REV_MVIT_DEM", "OUTPUT_DIR", tmp_path / "run")
    refused(outcome, "demo/REV_MVIT_DEM", "near shipped names", "demo/REV_MVIT_DEMO")
    refused(tiny.command("run_net", "OUTPUT_DIR", tmp_path / "run"), "--cfg is missing", "demo/REV_MVIT_DEMO")
    assert not (tmp_path / "run").exists()


def test_an_unknown_key(data, tmp_path):
    outcome = tiny.run_net(data, tmp_path / "run", {"SOLVER.BASE_LEARNING_RATE": 0.1})
    refused(outcome, "command line", "unknown key SOLVER.BASE_LEARNING_RATE", "nearest known key is SOLVER.BASE_LR")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("TRAIN: {BATCHSIZE: 4}\n")
    refused(tiny.command("run_net", "--cfg", wrong), wrong, "TRAIN.BATCHSIZE", "nearest known key is TRAIN.BATCH_SIZE")
    assert not (tmp_path / "run").exists()


def test_a_value_of_the_wrong_type_and_one_without_a_value(data, tmp_path):
    refused(tiny.run_net(data, tmp_path / "run", {"TRAIN.BATCH_SIZE": "four"}), "TRAIN.BATCH_SIZE", "four")
    refused(tiny.run_net(data, tmp_path / "run", words=["NUM_GPUS"]), "NUM_GPUS has no value")


# Lists and videos


def test_an_empty_list(own_data, tmp_path):
    (own_data / "train.csv").write_text("\n")
    outcome = tiny.run_net(own_data, tmp_path / "run")
    refused(outcome, own_data / "train.csv", "empty", "path label", "DATA.PATH_TO_DATA_DIR")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_list_is_found_before_training(own_data, tmp_path, split):
    (own_data / f"{split}.csv").unlink()
    outcome = tiny.run_net(own_data, tmp_path / "run")
    refused(outcome, own_data / f"{split}.csv", "No such file", "DATA.PATH_TO_DATA_DIR")
    assert nothing_trained(tmp_path / "run")


def test_no_data_folder_named(tmp_path):
    refused(tiny.run_net(Path(), tmp_path / "run", {"DATA.PATH_TO_DATA_DIR": ""}), "DATA.PATH_TO_DATA_DIR", "train.csv")
    missing = tmp_path / "nowhere"
    refused(tiny.run_net(missing, tmp_path / "run"), missing / "train.csv", "DATA.PATH_TO_DATA_DIR")


def test_a_label_beyond_the_classes(own_data, tmp_path):
    with open(own_data / "train.csv", "a") as file:
        file.write(f"train0.mp4 {tiny.NUM_CLASSES}\n")
    outcome = tiny.run_net(own_data, tmp_path / "run")
    line = tiny.NUM_TRAIN + 1
    parts = (own_data / "train.csv", f"line {line}", "'train0.mp4'", f"label {tiny.NUM_CLASSES}", "0..5")
    refused(outcome, *parts, f"MODEL.NUM_CLASSES is {tiny.NUM_CLASSES}")


def test_a_line_that_is_no_path_and_label(own_data, tmp_path):
    (own_data / "train.csv").write_text("train0.mp4,0\ntrain1.mp4,1\n")
    outcome = tiny.run_net(own_data, tmp_path / "run", {"LOADER.LIST_FORMAT": "pyslowfast"})  # auto takes the comma
    refused(outcome, "line 1", "train0.mp4,0", "DATA.PATH_LABEL_SEPARATOR", "','")


def test_a_missing_video_folder(own_data, tmp_path):
    for video in own_data.glob("*.mp4"):
        video.unlink()
    prefix = tmp_path / "videos"
    outcome = tiny.run_net(own_data, tmp_path / "run", {"DATA.PATH_PREFIX": prefix})
    parts = (f"none of the {tiny.NUM_TRAIN} videos", prefix / "train0.mp4", f"{str(prefix)!r} does not exist")
    refused(outcome, *parts, "DATA.PATH_PREFIX")


def test_fewer_videos_than_a_batch(data, tmp_path):
    refused(tiny.run_net(data, tmp_path / "run", {"TRAIN.BATCH_SIZE": 9}), "8 training videos", "TRAIN.BATCH_SIZE")


def test_clips_that_do_not_fit(data, tmp_path):
    small = {"DATA.TRAIN_JITTER_SCALES": [16, 24]}
    no_box = {"DATA.TRAIN_JITTER_SCALES_RELATIVE": [], "DATA.TRAIN_JITTER_ASPECT_RELATIVE": []}
    for number, keys in enumerate((small, small | no_box)):
        outcome = tiny.run_net(data, tmp_path / f"run{number}", keys)
        refused(outcome, "DATA.TRAIN_JITTER_SCALES", "16", "32", "CROP_SIZE")
        assert nothing_trained(tmp_path / f"run{number}")


@pytest.mark.parametrize("keys", [{"TEST.NUM_SPATIAL_CROPS": 2}, {"TEST.NUM_TEMPORAL_CLIPS": [2, 2]}])
def test_a_wrong_test_protocol_is_found_before_training(data, tmp_path, keys):
    (name,) = keys
    refused(tiny.run_net(data, tmp_path / "run", keys), name)
    assert nothing_trained(tmp_path / "run")


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"TRAIN.DATASET": "ava"}, ["TRAIN.DATASET is 'ava'", "kinetics, ssv2 or imagenet"]),
        ({"TEST.DATASET": "ava"}, ["TEST.DATASET is 'ava'", "kinetics, ssv2 or imagenet"]),
        ({"LOADER.LIST_FORMAT": "kinetic"}, ["LOADER.LIST_FORMAT is 'kinetic'", "'kinetics'"]),
        ({"AUG.ENABLE": True, "AUG.AA_TYPE": "rand-m7-q4"}, ["rand-m7-q4", "AUG.AA_TYPE"]),
    ],
)
def test_data_keys_that_mean_nothing(data, tmp_path, keys, parts):
    refused(tiny.run_net(data, tmp_path / "run", keys), *parts)
    assert nothing_trained(tmp_path / "run")


# Machines and folders


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there(data, tmp_path):
    refused(tiny.run_net(data, tmp_path / "run", {"NUM_GPUS": 1}), "NUM_GPUS is 1", "no CUDA device", "NUM_GPUS 0")
    assert not (tmp_path / "run").exists()


def proposed_overrides(message: str) -> list[str]:
    found = re.search(r"\badd:? ((?:[A-Z_.]+ \d+ ?)+)", message)
    assert found, message
    return found[1].split()


@pytest.mark.parametrize(
    "words",
    [
        ["NUM_SHARDS", "16"],
        ["NUM_SHARDS", "16", "NUM_GPUS", "8"],
        ["NUM_GPUS", "8"],
        ["NUM_SHARDS", "2", "SHARD_ID", "1"],
    ],
)
def test_several_machines_or_gpus_in_a_plain_run(data, tmp_path, words):
    """The message prints the overrides that run the config here; appended to the same command they do."""
    keys = tiny.TRAIN_ONLY | {"TRAIN.BATCH_SIZE": 8}
    message = refused(tiny.run_net(data, tmp_path / "run", keys, words=words), "NUM_", words[1])
    assert not (tmp_path / "run").exists()
    again = proposed_overrides(message)
    assert again == ["NUM_SHARDS", "1", "NUM_GPUS", str(int(torch.cuda.is_available()))] or "SHARD_ID" in again
    tiny.done(tiny.run_net(data, tmp_path / "run", keys, words=[*words, *again]))
    assert len(tiny.losses(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        ({"WORLD_SIZE": "2"}, ["RANK not set", "WORLD_SIZE='2'"]),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["WORLD_SIZE='2'", "MASTER_ADDR not set", "MASTER_PORT"]),
        ({"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["RANK='3'", "contradicts"]),
    ],
)
def test_the_environment_of_a_launcher(data, tmp_path, monkeypatch, found, parts):
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    refused(tiny.run_net(data, tmp_path / "run"), *parts)
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_is_a_file(data, tmp_path):
    file = tmp_path / "taken"
    file.write_text("mine")
    refused(tiny.run_net(data, file), file, "OUTPUT_DIR")
    refused(tiny.run_net(data, file / "below"), file / "below", "OUTPUT_DIR")
    assert file.read_text() == "mine"


# Checkpoints


def save_weights(path: Path, *layers: dict) -> Path:
    model = build.build_model(load_config("demo/REV_MVIT_DEMO", tiny.overrides(*layers)))
    torch.save({"epoch": 0, "model_state": model.state_dict()}, path)
    return path


@pytest.mark.parametrize("key", ["TEST.CHECKPOINT_FILE_PATH", "TRAIN.CHECKPOINT_FILE_PATH"])
def test_a_checkpoint_of_another_architecture(data, tmp_path, key):
    path = save_weights(tmp_path / "deeper.pyth", {"MVIT.DEPTH": 6})
    keys = {key: path, "TRAIN.ENABLE": key.startswith("TRAIN"), "TRAIN.CHECKPOINT_EPOCH_RESET": True}
    parts = (path, "do not fit the model", "unexpected", "rev_backbone.layers.4", "another architecture")
    refused(tiny.run_net(data, tmp_path / "run", keys), *parts)
    assert nothing_trained(tmp_path / "run")


def test_a_checkpoint_of_other_classes(data, tmp_path):
    path = save_weights(tmp_path / "other.pyth", {"MODEL.NUM_CLASSES": 9})
    outcome = tiny.run_net(data, tmp_path / "run", {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": path})
    refused(outcome, path, "head.projection.weight", "(9, ", "(6, ", "NUM_CLASSES")


def test_no_checkpoint_to_evaluate(data, tmp_path):
    outcome = tiny.run_net(data, tmp_path / "run", {"TRAIN.ENABLE": False})
    refused(outcome, "nothing to evaluate: no whole", tmp_path / "run/checkpoints", "TEST.CHECKPOINT_FILE_PATH")
    missing = tmp_path / "no.pyth"
    outcome = tiny.run_net(data, tmp_path / "run", {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": missing})
    refused(outcome, missing, "no such checkpoint")


@pytest.mark.parametrize("key", ["TEST.CHECKPOINT_FILE_PATH", "TRAIN.CHECKPOINT_FILE_PATH"])
def test_a_missing_checkpoint_is_found_before_training(data, tmp_path, key):
    refused(tiny.run_net(data, tmp_path / "run", {key: tmp_path / "no.pyth"}), tmp_path / "no.pyth", "no such")
    assert nothing_trained(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04cut off"])
def test_a_file_that_is_no_checkpoint(data, tmp_path, content):
    path = tmp_path / "odd.pyth"
    path.write_bytes(content)
    refused(tiny.run_net(data, tmp_path / "run", {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": path}), path)


def test_a_checkpoint_without_weights(data, tmp_path):
    path = tmp_path / "odd.pyth"
    torch.save({"epoch": 3}, path)
    outcome = tiny.run_net(data, tmp_path / "run", {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": path})
    refused(outcome, path, "model_state")


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_checkpoint_runs_nothing(data, tmp_path, new_format):
    path, made = tmp_path / "evil.pyth", tmp_path / "made"
    torch.save({"model_state": Evil(made)}, path, _use_new_zipfile_serialization=new_format)
    for key in ("TEST.CHECKPOINT_FILE_PATH", "TRAIN.CHECKPOINT_FILE_PATH"):
        keys = {key: path, "TRAIN.ENABLE": key.startswith("TRAIN")}
        refused(tiny.run_net(data, tmp_path / "run", keys), path, "not loaded", "could run code")
        assert not made.exists()


# Videos that cannot be decoded


def spoil(data: Path, *names: str) -> None:
    for name in names:
        assert (data / name).is_file()
        (data / name).write_bytes(b"this is no video" * 64)


def test_an_undecodable_video_in_training_is_replaced_and_counted(own_data, tmp_path):
    spoil(own_data, "train3.mp4")
    folder = tmp_path / "run"
    outcome = tiny.done(tiny.run_net(own_data, folder, tiny.TRAIN_ONLY, {"SOLVER.MAX_EPOCH": 3}))
    assert_no_traceback(outcome)
    steps, bad = tiny.events(folder, "train_step"), tiny.events(folder, "bad_video")
    assert len(steps) == 6  # the batches stay full
    assert len(bad) >= 3  # asked for in each epoch, perhaps drawn as a stand-in besides
    assert {event["epoch"] for event in bad} == {0, 1, 2}
    for event in bad:
        assert event["path"] == str(own_data / "train3.mp4")
        assert event["reason"]
    assert steps[-1]["bad_videos"] == len(bad)
    assert outcome.err.count(f"unreadable video, another one taken: {own_data / 'train3.mp4'}") == 1  # events name all


def test_a_missing_video_in_training_is_replaced_and_named_at_the_start(own_data, tmp_path):
    (own_data / "train3.mp4").unlink()
    outcome = tiny.done(tiny.run_net(own_data, tmp_path / "run", tiny.TRAIN_ONLY))
    assert f"1 of {tiny.NUM_TRAIN} videos of {own_data / 'train.csv'} are missing" in outcome.err
    assert tiny.events(tmp_path / "run", "bad_video")[0]["reason"] == "No such file or directory"
    comment, line = (tmp_path / "run/missing_train.txt").read_text().splitlines()
    assert f"1 of {tiny.NUM_TRAIN} videos" in comment
    assert line.split("\t")[0] == str(own_data / "train3.mp4")
    assert str(tmp_path / "run/missing_train.txt") in outcome.err


def test_a_damaged_video_in_training_is_reported(own_data, tmp_path):
    """It opens, but frames of it had to be filled in: used, and told somewhere in the diary."""
    path = write_video(own_data / "train3.mp4", 60, size=(tiny.HEIGHT, tiny.WIDTH), gop=60)
    damage(path, 0.3, 1.0)
    whole = {"DATA.SAMPLING_RATE": 16}  # a clip spans 64 frames
    tiny.done(tiny.run_net(own_data, tmp_path / "run", tiny.TRAIN_ONLY, whole))
    assert len(tiny.losses(tmp_path / "run")) == 2
    assert path in (tmp_path / "run/events.jsonl").read_text()


# TrainSettings.min_videos_judged is 100: 8 videos an epoch, so the thirteenth epoch decides.
LONG = {"SOLVER.MAX_EPOCH": 15, "TRAIN.CHECKPOINT_PERIOD": 100, "TRAIN.BATCH_SIZE": 8}


def test_too_many_undecodable_videos_stop_the_training(own_data, tmp_path):
    spoil(own_data, "train0.mp4", "train3.mp4")
    folder = tmp_path / "run"
    outcome = tiny.run_net(own_data, folder, tiny.TRAIN_ONLY, LONG, {"LOADER.MAX_BAD_FRACTION": 0.1})
    assert outcome.code == 3
    assert_no_traceback(outcome)
    counted = re.search(
        r"check failed: (\d+) of (\d+) videos could not be read \((.*?)%\); allowed are 10", outcome.err
    )
    assert counted, outcome.err
    bad, asked = int(counted[1]), int(counted[2])
    assert bad == len(tiny.events(folder, "bad_video"))
    assert 100 <= asked < 120
    assert bad / asked > 0.1
    assert "LOADER.MAX_BAD_FRACTION" in outcome.err
    assert str(folder / "events.jsonl") in outcome.err
    for name in ("train0.mp4", "train3.mp4"):  # named with the reason
        assert re.search(rf"The first: .*{re.escape(str(own_data / name))}: \w", outcome.err)
    assert 8 <= len(tiny.losses(folder)) <= 13


@pytest.mark.parametrize("num_clips", [1, 4])
def test_the_share_of_bad_videos_is_one_of_videos(own_data, tmp_path, num_clips):
    """A fifth of the list is unreadable and a tenth allowed; how many clips are cut from a video changes nothing."""
    spoil(own_data, "train0.mp4", "train3.mp4")
    repeated = {"AUG.ENABLE": True, "AUG.NUM_SAMPLE": num_clips, "AUG.AA_TYPE": "", "AUG.RE_PROB": 0.0}
    keys = LONG | {"LOADER.MAX_BAD_FRACTION": 0.1, "DATA.TRAIN_CROP_SIZE": 32} | repeated
    assert tiny.run_net(own_data, tmp_path / "run", tiny.TRAIN_ONLY, keys).code == 3


def test_nothing_but_undecodable_videos(own_data, tmp_path):
    spoil(own_data, *(f"train{number}.mp4" for number in range(tiny.NUM_TRAIN)))
    outcome = tiny.run_net(own_data, tmp_path / "run")
    refused(outcome, "cannot be decoded", own_data / "train.csv", "DATA.PATH_PREFIX")


def test_an_error_in_a_worker_process_arrives_as_itself(own_data, tmp_path):
    spoil(own_data, *(f"train{number}.mp4" for number in range(tiny.NUM_TRAIN)))
    outcome = tiny.run_net(own_data, tmp_path / "run", {"DATA_LOADER.NUM_WORKERS": 1})
    refused(outcome, "cannot be decoded", own_data / "train.csv")


def test_a_silent_worker_ends_the_run_with_the_path(data, tmp_path, monkeypatch):
    """A crash (exit code 1): the launcher may try again."""

    def hang_at_one(path, *args, **kwargs):
        if path.endswith("train3.mp4"):
            time.sleep(600)
        return open_video(path, *args, **kwargs)

    monkeypatch.setattr("revvideo.data.dataset.open_video", hang_at_one)
    keys = {"DATA_LOADER.NUM_WORKERS": 1, "LOADER.START_METHOD": "fork", "LOADER.TIMEOUT_SECONDS": 1}
    outcome = tiny.run_net(data, tmp_path / "run", tiny.TRAIN_ONLY, keys)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert re.search(rf"has been reading {re.escape(str(data / 'train3.mp4'))} for \d", last)
    assert "LOADER.TIMEOUT_SECONDS is 1" in last


def test_undecodable_videos_in_evaluation_are_listed_and_never_replaced(own_data, tmp_path):
    (own_data / "test4.mp4").unlink()
    spoil(own_data, "test1.mp4")
    folder = tmp_path / "run"
    path = save_weights(tmp_path / "weights.pyth")
    outcome = tiny.done(tiny.run_net(own_data, folder, {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": path}))
    assert_no_traceback(outcome)
    results = json.loads((folder / "results.json").read_text())
    assert [entry["path"] for entry in results["failed"]] == [str(own_data / f"test{i}.mp4") for i in (1, 4)]
    assert all(entry["reason"] for entry in results["failed"])
    assert results["failed"][1]["reason"] == "No such file or directory"
    assert (results["num_videos"], results["num_expected"]) == (tiny.NUM_TEST - 2, tiny.NUM_TEST)
    with np.load(folder / "predictions.npz") as file:
        arrays = dict(file)
    assert [Path(name).name for name in arrays["path"]] == [f"test{i}.mp4" for i in (0, 2, 3, 5)]
    best = np.argsort(-arrays["scores"], axis=1)
    for key, count in (("top1_acc", 1), ("top5_acc", 5)):
        hits = int((best[:, :count] == arrays["label"][:, None]).sum())
        assert results[key] == pytest.approx(100 * hits / 4, abs=1e-12)
        assert results[f"{key}_all"] == pytest.approx(100 * hits / 6, abs=1e-12)
    assert results["top5_acc"] > results["top5_acc_all"] > 0
    assert outcome.err.count("not evaluated: ") == 2
    assert "2 of 6 videos could not be read and count as wrong" in outcome.err


def test_not_one_readable_test_video(own_data, tmp_path):
    spoil(own_data, *(f"test{number}.mp4" for number in range(tiny.NUM_TEST)))
    folder = tmp_path / "run"
    path = save_weights(tmp_path / "weights.pyth")
    outcome = tiny.done(tiny.run_net(own_data, folder, {"TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": path}))
    assert_no_traceback(outcome)
    results = json.loads((folder / "results.json").read_text())
    assert (results["top1_acc"], results["top1_acc_all"], results["num_videos"]) == (None, 0.0, 0)
    assert len(results["failed"]) == tiny.NUM_TEST


def test_undecodable_videos_in_validation_are_reported(own_data, tmp_path):
    spoil(own_data, "test1.mp4")
    outcome = tiny.done(tiny.run_net(own_data, tmp_path / "run", {"TEST.ENABLE": False}))
    (event,) = tiny.events(tmp_path / "run", "validation")
    assert [entry["path"] for entry in event["failed"]] == [str(own_data / "test1.mp4")]
    assert (event["num_videos"], event["num_expected"]) == (tiny.NUM_TEST - 1, tiny.NUM_TEST)
    assert "5 videos, 1 failed" in outcome.err
