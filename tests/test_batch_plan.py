"""Batch arithmetic in parts: they change what is in memory at once, and nothing else."""

import pytest
from config_checks import refused

from revvideo.config import batch_plan, load_config
from revvideo.config.batch import planned_processes, possible_parts

PLAIN = "Kinetics/MVIT_B_16x4_CONV"  # 16 videos x 2 clips, with mixup
UNMIXED = {"MIXUP.ENABLE": False, "MODEL.LOSS_FUNC": "cross_entropy"}
SAME_IN_PARTS = ("clips_per_step", "clips_per_process", "videos_per_process", "base_lr", "warmup_start_lr", "lr_factor")


def config(**keys):
    return load_config(PLAIN, {"NUM_GPUS": 0} | {name.replace("__", "."): value for name, value in keys.items()})


@pytest.mark.parametrize("source", ["config", "argument"])
def test_parts_divide_the_clips_of_a_process_and_change_nothing_else(source):
    whole = batch_plan(config(), num_machines=2, processes_per_machine=2)
    assert (whole.clips_per_process, whole.parts, whole.clips_per_part, whole.clips_per_step) == (16, 1, 16, 64)
    for parts in (2, 4, 8):
        if source == "config":
            plan = batch_plan(config(RUN__ACCUMULATION_STEPS=parts), 2, 2)
        else:
            plan = batch_plan(config(RUN__AUTO_BATCH_SIZE=True), 2, 2, parts)
        assert (plan.parts, plan.clips_per_part) == (parts, 16 // parts)
        for name in SAME_IN_PARTS:
            assert getattr(plan, name) == getattr(whole, name), name
        key = {"config": "RUN.ACCUMULATION_STEPS", "argument": "RUN.AUTO_BATCH_SIZE"}[source]
        assert f"16 in each of 4 processes, in {parts} parts of {16 // parts} clips ({key})" in plan.line
    assert "part" not in whole.line


def test_parts_of_mixed_clips_are_pairs():
    assert possible_parts(config(), 24) == [1, 2, 3, 4, 6, 12]
    assert possible_parts(config(), 9) == possible_parts(config(), 1) == [1]  # all at once is always possible
    unpaired = [1, 2, 3, 4, 6, 8, 12, 24]
    assert possible_parts(load_config(PLAIN, UNMIXED), 24) == unpaired
    for never in ({"MIXUP.PROB": 0.0}, {"MIXUP.ALPHA": 0.0, "MIXUP.CUTMIX_ALPHA": 0.0}):
        assert possible_parts(load_config(PLAIN, never), 24) == unpaired  # label smoothing alone pairs nothing


def test_parts_that_do_not_divide_are_refused():
    with refused("RUN.ACCUMULATION_STEPS is 3", "1, 2, 4, 8 or 16", "32 clips of a process", "TRAIN.BATCH_SIZE 16"):
        batch_plan(config(RUN__ACCUMULATION_STEPS=3))
    with refused("RUN.ACCUMULATION_STEPS is 32", "even number", "MIXUP"):
        batch_plan(config(RUN__ACCUMULATION_STEPS=32))
    assert batch_plan(load_config(PLAIN, UNMIXED | {"RUN.ACCUMULATION_STEPS": 32})).clips_per_part == 1
    with refused("RUN.ACCUMULATION_STEPS is 2; expected 1:", "1 clip of a process"):
        batch_plan(
            load_config(PLAIN, UNMIXED | {"TRAIN.BATCH_SIZE": 1, "AUG.NUM_SAMPLE": 1, "RUN.ACCUMULATION_STEPS": 2})
        )


def test_the_line_says_what_is_still_to_be_found():
    cfg = config(RUN__AUTO_BATCH_SIZE=True)
    assert "in as few parts as memory allows (RUN.AUTO_BATCH_SIZE)" in batch_plan(cfg).line
    assert "at once (RUN.AUTO_BATCH_SIZE)" in batch_plan(cfg, parts=1).line
    assert "in each of 2 processes (one a GPU)" in batch_plan(load_config(PLAIN, ["NUM_GPUS", 2]), 1, 2).line


def test_processes_of_a_machine():
    asked = [({"NUM_GPUS": 8}, 8), ({"NUM_GPUS": 0}, 1), ({"NUM_GPUS": 0, "DIST.NUM_PROCESSES": 3}, 3)]
    asked.append(({"NUM_GPUS": 2, "DIST.NUM_PROCESSES": 3}, 2))
    for keys, processes in asked:
        assert planned_processes(load_config(PLAIN, keys)) == processes
    with refused("TRAIN.BATCH_SIZE is 16", "multiple of the 3 processes", "DIST.NUM_PROCESSES 3"):
        batch_plan(config(DIST__NUM_PROCESSES=3), processes_per_machine=3)
