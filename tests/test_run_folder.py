"""The run folder says who ran what where, also after restarts, and keeps secrets to itself."""

import json
import logging
import os
import subprocess
import sys

import pytest
import tiny
import torch
from processes import run_processes, values

import revvideo
from revvideo import jobs
from revvideo.config import load_config
from revvideo.distributed.env import Process
from revvideo.engine.events import read_events
from revvideo.errors import InputError
from revvideo.jobs.run_folder import code_version, git_commit, open_run, relevant_variables

MAIN = Process()


def config(folder, *layers: dict):
    return load_config("demo/REV_MVIT_DEMO", tiny.overrides({"OUTPUT_DIR": folder}, *layers))


def environment(folder) -> dict:
    return json.loads((folder / "environment.json").read_text(encoding="utf-8"))


def test_what_a_first_start_writes(tmp_path):
    folder = tmp_path / "a" / "run"
    cfg = config(folder)
    hosts = [{"host": "node1", "gpus": 8}]
    with open_run(cfg, Process(rank=0, world_size=2, local_world_size=2, source="torchrun"), hosts=hosts) as events:
        assert events.restart == 0
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "environment.json", "events.jsonl"}
    assert load_config(folder / "config.yaml") == cfg
    (start,) = read_events(folder / "events.jsonl")
    assert (start["kind"], start["command"], start["world_size"], start["launcher"]) == (
        "start",
        sys.argv,
        2,
        "torchrun",
    )
    facts = environment(folder)
    assert facts["torch"] == torch.__version__
    assert facts["revvideo"] == revvideo.__version__
    assert (facts["launcher"], facts["world_size"], facts["num_machines"]) == ("torchrun", 2, 1)
    assert (facts["hosts"], facts["restart"], facts["gpus"]) == (hosts, 0, [])
    assert facts["cpu_cores"] == os.cpu_count()
    assert facts["cpu"]
    assert "restarts" not in facts


def test_restarts_are_kept_beside_the_last_one(tmp_path):
    for start, world_size in enumerate((1, 4, 2)):
        with open_run(config(tmp_path), Process(world_size=world_size, local_world_size=world_size)) as events:
            assert events.restart == start
    facts = environment(tmp_path)
    assert (facts["restart"], facts["world_size"]) == (2, 2)
    assert [(entry["restart"], entry["world_size"]) for entry in facts["restarts"]] == [(0, 1), (1, 4)]
    assert all(entry["torch"] == torch.__version__ and "restarts" not in entry for entry in facts["restarts"])


def test_another_rank_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    with open_run(config(folder), Process(rank=1, world_size=2, local_rank=1, local_world_size=2)) as events:
        events.write("step", step=1)
        assert events.path == folder / "events.jsonl"
    assert not folder.exists()


def test_evaluating_keeps_the_config_that_was_trained(tmp_path):
    open_run(config(tmp_path, {"RNG_SEED": 5}), MAIN).close()
    open_run(config(tmp_path, {"RNG_SEED": 6, "TRAIN.ENABLE": False}), MAIN).close()
    assert load_config(tmp_path / "config.yaml").RNG_SEED == 5
    open_run(config(tmp_path, {"RNG_SEED": 7}), MAIN).close()
    assert load_config(tmp_path / "config.yaml").RNG_SEED == 7


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run folder .*file/run cannot be written.*OUTPUT_DIR"):
        open_run(config(tmp_path / "file" / "run"), MAIN)


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_full_disk_stops_a_first_start_and_not_a_later_one(tmp_path, monkeypatch, caplog, name):
    """What is there stays whole: a preempted run goes on with its old config.yaml and environment.json."""
    fresh, known = tmp_path / "fresh", tmp_path / "known"
    open_run(config(known, {"RNG_SEED": 5}), MAIN).close()
    before = {path.name: path.read_bytes() for path in known.iterdir()}

    def no_room(source, target):
        if os.path.basename(target) == name:
            raise OSError(28, "No space left on device")
        return replace(source, target)

    replace = os.replace
    monkeypatch.setattr("revvideo.paths.os.replace", no_room)
    with pytest.raises(InputError, match=r"No space left.*OUTPUT_DIR"):
        open_run(config(fresh), MAIN)
    with open_run(config(known, {"RNG_SEED": 6}), MAIN) as events:
        assert events.restart == 1
    assert any("of an earlier start" in message and "No space left" in message for message in caplog.messages)
    assert (known / name).read_bytes() == before[name]
    assert {path.name for path in known.iterdir()} == set(before)
    assert [event["restart"] for event in read_events(known / "events.jsonl")] == [0, 1]


def test_an_environment_that_was_cut_is_written_anew(tmp_path, caplog):
    open_run(config(tmp_path), MAIN).close()
    os.truncate(tmp_path / "environment.json", 30)
    open_run(config(tmp_path), MAIN).close()
    assert environment(tmp_path)["restart"] == 1
    assert any("environment.json is written anew" in message for message in caplog.messages)


def test_variables_without_secrets():
    shown = {
        "NCCL_SOCKET_IFNAME": "eth0",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "3",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "SLURM_JOB_ID": "17",
        "SLURM_RESTART_COUNT": "2",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
    }
    hidden = {
        "HOME": "/home/a",
        "AWS_SECRET_ACCESS_KEY": "s",
        "SLURM_JWT": "s",
        "WANDB_API_KEY": "s",
        "CUDA_REGISTRY_TOKEN": "s",
        "NCCL_PASSWORD": "s",
        "TORCH_AUTH": "s",
        "HTTP_PROXY": "http://a:b@c",
    }
    assert relevant_variables({**hidden, **shown}) == dict(sorted(shown.items()))


def test_the_environment_of_this_process_is_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_API_TOKEN", "hush-hush")
    open_run(config(tmp_path), MAIN).close()
    assert environment(tmp_path)["variables"]["GLOO_SOCKET_IFNAME"] == "lo"
    assert "hush-hush" not in (tmp_path / "environment.json").read_text()


def deterministic(folder) -> bool:
    """In a process of its own: it changes torch's."""
    with jobs.start(config(folder, {"NUM_GPUS": 0, "RUN.DETERMINISTIC": True})):
        return torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_run_may_use_cublas_however_it_is_started(tmp_path):
    assert values(run_processes(1, deterministic, tmp_path, environ={"CUBLAS_WORKSPACE_CONFIG": None})) == [True]
    assert environment(tmp_path)["variables"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_commit_of_a_checkout(tmp_path):
    assert git_commit(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "--no-gpg-sign", "-m", "one"]):
        (tmp_path / "file").write_text("one")
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    commit = git_commit(tmp_path)
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert len(commit) >= 7
    assert head.stdout.startswith(commit)
    (tmp_path / "file").write_text("two")
    assert git_commit(tmp_path) == f"{commit}-dirty"


def test_without_git_there_is_a_version_still(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
    assert code_version() == revvideo.__version__


def test_tensorboard_is_a_listener_of_training(tmp_path):
    pytest.importorskip("tensorboard")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    keys = {"TENSORBOARD.ENABLE": True}
    step = {"step": 0, "epoch": 0, "loss": 1.0}
    for folder, layer, expected in (
        (tmp_path / "default", {}, tmp_path / "default" / "tensorboard"),
        (tmp_path / "named", {"TENSORBOARD.LOG_DIR": "curves"}, tmp_path / "named" / "curves"),
        (tmp_path / "elsewhere", {"TENSORBOARD.LOG_DIR": tmp_path / "all"}, tmp_path / "all"),
    ):
        with open_run(config(folder, keys, layer), MAIN) as events:
            events.write("train_step", **step)
        assert [path.name.split(".")[2] for path in expected.iterdir()] == ["tfevents"]
    with open_run(config(tmp_path / "test", keys, {"TRAIN.ENABLE": False}), MAIN) as events:
        assert events.listeners == ()
