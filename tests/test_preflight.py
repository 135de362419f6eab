"""What is found out before a submission: lists, videos, checkpoints, memory, times, the run folder."""

import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
from submitting import catch_submissions, submit_words

from revvideo.config import load_config
from revvideo.errors import InputError
from revvideo.launch import planned_memory
from revvideo.launch.listed_videos import SAMPLE, list_lines
from revvideo.launch.planned_memory import memory_line
from revvideo.launch.preflight import check_run_folder, checkpoint_lines, preflight, time_lines
from revvideo.launch.resources import Resources

CPU = Resources(tasks_per_node=2, cpus_per_task=4)


def config(folder: Path, *layers: dict):
    return load_config("demo/REV_MVIT_DEMO", tiny.overrides({"OUTPUT_DIR": folder}, *layers))


def listed(data: Path, *layers: dict) -> list[str]:
    return list(list_lines([config(data / "run", {"DATA.PATH_TO_DATA_DIR": data}, *layers)]))


def write_lists(root: Path, num_videos: int, num_there: int) -> Path:
    """Three equal lists, of which the first `num_there` videos exist (as empty files: nobody opens them)."""
    root.mkdir()
    names = [f"{number}.mp4" for number in range(num_videos)]
    for name in names[:num_there]:
        (root / name).touch()
    for split in ("train", "val", "test"):
        tiny.write_list(root / f"{split}.csv", [(name, 0) for name in names])
    return root


# Lists and videos


def test_lists_and_a_sample_of_their_videos(tmp_path):
    data = write_lists(tmp_path / "data", 50, 50)
    lines = listed(data)
    assert [line.split(":")[0] for line in lines] == ["train", "val", "test"]
    assert all(f"50 videos in {data}" in line and f"{SAMPLE} of them looked for, all found" in line for line in lines)


def test_only_the_lists_that_the_jobs_read(tmp_path):
    data = write_lists(tmp_path / "data", 3, 3)
    (data / "val.csv").unlink()
    assert len(listed(data, {"TRAIN.EVAL_PERIOD": 1000})) == 2
    assert len(listed(data, tiny.TRAIN_ONLY)) == 1
    assert [line[:5] for line in listed(data, {"TRAIN.ENABLE": False})] == ["test:"]
    with pytest.raises(InputError, match=r"val\.csv"):
        listed(data)


def test_some_missing_videos_are_a_warning_with_the_first_and_their_number(tmp_path):
    data = write_lists(tmp_path / "data", SAMPLE, SAMPLE - 3)
    (line, *_) = listed(data)
    assert f"WARNING: 3 of {SAMPLE} that were looked for do not exist, the first is {data}/{SAMPLE - 3}.mp4" in line


def test_the_sample_of_a_list_is_the_same_every_time(tmp_path):
    data = write_lists(tmp_path / "data", 200, 100)
    assert listed(data) == listed(data)


def test_missing_lists_and_videos_are_refused_with_key_and_path(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/train\.csv.*DATA\.PATH_TO_DATA_DIR"):
        listed(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"none of the 20 .*'.*\.mp4'\. Set DATA\.PATH_PREFIX"):
        listed(write_lists(tmp_path / "data", 50, 0))
    pictures = {"TRAIN.DATASET": "imagenet", "LOADER.LIST_FORMAT": "pyslowfast"}
    with pytest.raises(InputError, match=r"TRAIN\.DATASET is 'imagenet', but .*train\.csv holds videos"):
        listed(write_lists(tmp_path / "more", 5, 5), pictures)


def test_points_of_a_sweep_that_share_their_lists_are_one_line_each(tmp_path):
    data = write_lists(tmp_path / "data", 3, 3)
    cfgs = [config(tmp_path / f"{rate}", {"DATA.PATH_TO_DATA_DIR": data, "SOLVER.BASE_LR": rate}) for rate in (1, 2, 3)]
    assert len(list(list_lines(cfgs))) == 3


# Checkpoints


def test_checkpoints_that_are_named_must_be_there(tmp_path):
    for key in ("TRAIN.CHECKPOINT_FILE_PATH", "TEST.CHECKPOINT_FILE_PATH"):
        cfg = config(tmp_path / "run", {key: tmp_path / "weights.pyth"})
        with pytest.raises(InputError, match=rf"{key} is '.*weights\.pyth', but there is no such file"):
            list(checkpoint_lines(cfg, waits=False))
        assert "has to write it" in next(checkpoint_lines(cfg, waits=True))
    (tmp_path / "weights.pyth").touch()
    assert list(checkpoint_lines(cfg, waits=False)) == []


def test_where_training_goes_on_its_first_weights_are_not_needed(tmp_path):
    own = tmp_path / "run/checkpoints/checkpoint_epoch_00002.pyth"
    own.parent.mkdir(parents=True)
    own.touch()
    cfg = config(tmp_path / "run", {"TRAIN.CHECKPOINT_FILE_PATH": tmp_path / "gone.pyth"})
    (line,) = checkpoint_lines(cfg, waits=False)
    assert own.name in line


def test_nothing_to_evaluate(tmp_path):
    cfg = config(tmp_path / "run", {"TRAIN.ENABLE": False})
    with pytest.raises(InputError, match=r"nothing to evaluate.*TEST\.CHECKPOINT_FILE_PATH"):
        list(checkpoint_lines(cfg, waits=False))
    assert list(checkpoint_lines(cfg, waits=True)) == []


# The run folder


def test_a_run_folder_that_can_be_made_is_not_made(tmp_path):
    check_run_folder(tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []


def test_a_file_or_a_broken_link_in_the_path_of_the_run_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder, state in (("file", "a file"), ("file/run", "a file"), ("link/run", "a link that leads nowhere")):
        with pytest.raises(InputError, match=f"cannot be made: .* is {state}; choose another OUTPUT_DIR"):
            check_run_folder(tmp_path / folder)


# Times


def test_a_hang_must_be_noticed_before_the_time_limit(tmp_path):
    cfg = config(tmp_path, {"DIST.TIMEOUT_SECONDS": 119})
    assert list(time_lines([cfg], Resources(tasks_per_node=2, minutes=2))) == []
    cfg = config(tmp_path, {"DIST.TIMEOUT_SECONDS": 120})
    (line,) = time_lines([cfg], Resources(tasks_per_node=2, minutes=2))
    assert "WARNING: a process that hangs is noticed after 120 s" in line
    assert "DIST.TIMEOUT_SECONDS 30" in line
    assert list(time_lines([cfg], Resources(minutes=2))) == []  # alone, nobody waits


def test_no_warning_about_times_by_default(tmp_path):
    assert list(time_lines([config(tmp_path)], Resources(tasks_per_node=2))) == []


def test_checkpoints_that_were_slow_ask_for_an_earlier_signal(tmp_path):
    cfg = config(tmp_path)
    event = {"kind": "checkpoint", "time": 0, "restart": 0, "seconds": 70.0}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    (line,) = time_lines([cfg], Resources(signal_seconds=120))
    assert "has taken 70 s" in line
    assert list(time_lines([cfg], Resources(signal_seconds=140))) == []


# Memory


@pytest.mark.slow
def test_memory_is_planned_for_what_a_process_has_at_a_time(tmp_path):
    keys = {"TRAIN.BATCH_SIZE": 16, "RUN.ACCUMULATION_STEPS": 2, "TRAIN.MIXED_PRECISION": True}
    line = memory_line(config(tmp_path, keys), Resources(nodes=3, tasks_per_node=2))
    assert re.match(r"memory: \d+\.\d MiB of tensors in each process, 4 clips at a time \(reversible, fp16\)", line), (
        line
    )


def test_too_little_memory_for_the_processes_of_a_node(tmp_path, monkeypatch):
    sizes = dict.fromkeys(("parameters", "gradients", "optimizer_state", "inputs", "optimizer_temporaries"), 0)
    monkeypatch.setattr(planned_memory, "_planned", lambda *arguments: (sizes | {"peak": 3 * 2**30}, ""))
    assert "WARNING" not in memory_line(config(tmp_path), Resources(tasks_per_node=2, mem_gib=6))
    assert "WARNING: the 2 processes of a node have 5 GiB" in memory_line(
        config(tmp_path), Resources(tasks_per_node=2, mem_gib=5)
    )


@pytest.mark.slow
def test_a_model_that_cannot_be_built_is_refused_before_it_waits(tmp_path):
    cfg = config(tmp_path, {"MVIT.POOL_Q_STRIDE": [[9, 1, 2, 2]]})
    with pytest.raises(InputError, match="MVIT"):
        memory_line(cfg, CPU)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [({"TRAIN.ENABLE": False}, "nothing is trained"), ({"RUN.AUTO_BATCH_SIZE": True}, "the job finds what fits")],
)
def test_what_needs_no_plan_says_so(tmp_path, keys, reason):
    assert reason in memory_line(config(tmp_path, keys), CPU)


def test_a_planner_that_takes_too_long_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(planned_memory, "SECONDS", 0.01)
    assert memory_line(config(tmp_path), CPU) == "memory: not planned (the planner took more than 0.01 s)"


# All of it


def test_no_check_looks_for_nothing_but_checks_the_config(tmp_path):
    cfg = config(tmp_path / "run", {"DATA.PATH_TO_DATA_DIR": "/nowhere", "TEST.CHECKPOINT_FILE_PATH": "/nowhere"})
    lines = list(preflight([cfg], CPU, tmp_path / "run", look=False))
    assert lines[0].startswith("batch: 4 clips a step")
    assert "--no-check" in lines[-1]
    with pytest.raises(InputError, match=r"TRAIN\.BATCH_SIZE is 4"):
        list(preflight([cfg], Resources(tasks_per_node=3), tmp_path / "run", look=False))


def test_what_all_points_of_a_sweep_share_is_told_once(tmp_path):
    cfgs = [config(tmp_path / name, {"RNG_SEED": seed}) for seed, name in enumerate("abc")]
    lines = list(preflight(cfgs, Resources(cpus_per_task=1), tmp_path, look=False))
    assert len(lines) == 2
    (tmp_path / "b").touch()
    with pytest.raises(InputError, match="b is a file"):
        list(preflight(cfgs, CPU, tmp_path, look=False))


def test_nothing_is_submitted_where_a_list_is_missing(data, tmp_path, monkeypatch):
    caught = catch_submissions(monkeypatch)
    lists = shutil.copytree(data, tmp_path / "data")
    tiny.done(submit_words(tmp_path / "run", data=lists))
    assert caught.cfgs
    caught.cfgs = []
    (lists / "test.csv").unlink()
    outcome = submit_words(tmp_path / "run", data=lists)
    assert outcome.code == 2
    assert "test.csv" in outcome.err
    assert caught.cfgs == []
    assert not (tmp_path / "run").exists()
