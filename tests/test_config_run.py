"""The keys of processes, memory, checkpoints and fine-tuning: what is refused, and what is said to do nothing."""

import logging

import pytest
from config_checks import refused

from revvideo.config import config_notes, load_config

PLAIN = "Kinetics/MVIT_B_16x4_CONV"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DIST.NUM_PROCESSES", -1, ">= 0"),
        ("DIST.TIMEOUT_SECONDS", 0.5, "1 to 31536000"),
        ("DIST.TIMEOUT_SECONDS", float("inf"), "1 to 31536000"),
        ("DIST.INIT_METHOD", "node01:29500", "tcp://HOST:PORT"),
        ("DIST.INIT_METHOD", "tcp://node01", "tcp://HOST:PORT"),
        ("DIST.INIT_METHOD", "tcp://node01:0", "tcp://HOST:PORT"),
        ("DIST.INIT_METHOD", "tcp://node01:65536", "tcp://HOST:PORT"),
        ("DIST.INIT_METHOD", "file:///tmp/meet", "tcp://HOST:PORT"),
        ("RUN.ACCUMULATION_STEPS", 0, ">= 1"),
        ("RUN.MEMORY_LIMIT_MIB", -1.0, ">= 0"),
        ("RUN.MEMORY_LIMIT_MIB", float("inf"), "finite"),
        ("RUN.CHECKPOINT_MINUTES", -0.1, ">= 0"),
        ("RUN.KEEP_CHECKPOINTS", -1, ">= 0"),
        ("RUN.ON_NAN", "ignore", "one of: stop, rollback"),
        ("EMA.DECAY", 1.0, "0 to below 1"),
    ],
)
def test_values_that_cannot_work(name, value, expected):
    with refused("command line", f"{name} is {value!r}", expected):
        load_config(PLAIN, {name: value})


@pytest.mark.parametrize("place", ["tcp://node01:29500", "tcp://10.0.0.1:1", "tcp://[fe80::1]:65535", ""])
def test_meeting_points(place):
    loaded = load_config(PLAIN, {"DIST.INIT_METHOD": place, "NUM_SHARDS": 2}).DIST.INIT_METHOD
    assert loaded == place


def test_names_of_frozen_parts_are_a_list():
    assert load_config(PLAIN, ["FINETUNE.FREEZE", "['stem', 'blocks.0']"]).FINETUNE.FREEZE == ["stem", "blocks.0"]
    with refused("FINETUNE.FREEZE is 'stem'", "a list of strings"):
        load_config(PLAIN, ["FINETUNE.FREEZE", "stem"])


SET = {
    "DIST.NUM_PROCESSES": 2,
    "DIST.INIT_METHOD": "tcp://a:1",
    "RUN.MEMORY_LIMIT_MIB": 1000.0,
    "EMA.DECAY": 0.9,
    "TENSORBOARD.LOG_DIR": "board",
}
# What makes each of them act.
NEEDED = {
    "DIST.NUM_PROCESSES": {"NUM_GPUS": 0},
    "DIST.INIT_METHOD": {"NUM_SHARDS": 2},
    "RUN.MEMORY_LIMIT_MIB": {"RUN.AUTO_BATCH_SIZE": True},
    "EMA.DECAY": {"EMA.ENABLE": True},
    "TENSORBOARD.LOG_DIR": {"TENSORBOARD.ENABLE": True},
}


@pytest.mark.parametrize("name", SET)
def test_keys_without_effect_are_named(name):
    idle = {"NUM_GPUS": 8, "NUM_SHARDS": 1, name: SET[name]}
    (note,) = [note for note in config_notes(load_config(PLAIN, idle)) if name in note]
    assert note.startswith(f"without effect: {name} (")
    assert next(iter(NEEDED[name])) in note, "the note names the key to change"
    assert not [note for note in config_notes(load_config(PLAIN, idle | NEEDED[name])) if name in note]


def test_keys_of_training_do_nothing_in_an_evaluation():
    keys = {"RUN.ACCUMULATION_STEPS": 2, "RUN.CHECKPOINT_MINUTES": 5.0, "RUN.KEEP_CHECKPOINTS": 1}
    keys |= {"RUN.ON_NAN": "rollback", "FINETUNE.FREEZE": ["stem"], "RUN.MEMORY_LIMIT_MIB": 1.0}
    (note,) = [note for note in config_notes(load_config(PLAIN, keys | {"TRAIN.ENABLE": False})) if "RUN." in note]
    assert "TRAIN.ENABLE is False" in note
    assert all(name in note for name in keys)


def test_automatic_parts_win_over_a_number_of_parts(caplog):
    with caplog.at_level(logging.WARNING, logger="revvideo.config"):
        cfg = load_config(PLAIN, {"RUN.AUTO_BATCH_SIZE": True, "RUN.ACCUMULATION_STEPS": 4})
    assert cfg.RUN.ACCUMULATION_STEPS == 1
    (said,) = [record.getMessage() for record in caplog.records if "RUN.ACCUMULATION_STEPS" in record.getMessage()]
    assert "4 -> 1" in said
    assert "RUN.AUTO_BATCH_SIZE" in said


def test_a_batch_that_does_not_divide_among_processes_is_noted():
    cfg = load_config(PLAIN, {"NUM_GPUS": 0, "DIST.NUM_PROCESSES": 3})
    assert any("16 cannot be divided among DIST.NUM_PROCESSES 3" in note for note in config_notes(cfg))
