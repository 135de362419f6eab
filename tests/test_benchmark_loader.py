"""`revvideo benchmark loader`: whose time counts for which stage, what is measured, what is printed."""

import argparse
import contextlib
import functools
import importlib
import json
import shlex

import pytest
import torch
from tiny import NUM_TRAIN, overrides, write_dataset

from revvideo.benchmark.generated_video import Content
from revvideo.benchmark.loader import (
    DEVICE_REST,
    DEVICE_STAGES,
    LOADER_STAGES,
    REST,
    StageClock,
    measure_stages,
    measure_throughput,
    with_shares,
    write_training_list,
)
from revvideo.cli import benchmark_loader
from revvideo.cli.main import main
from revvideo.config import load_config
from revvideo.data.manifest import read_manifest

CPU = torch.device("cpu")
AUGMENTED = {
    "AUG.ENABLE": True,
    "DATA.RANDOM_FLIP": True,
    "AUG.NUM_SAMPLE": 2,
    "AUG.AA_TYPE": "rand-m7-n4-mstd0.5-inc1",
    "AUG.RE_PROB": 1.0,
    "MIXUP.ENABLE": True,
    "MODEL.LOSS_FUNC": "soft_cross_entropy",
}
POINTS = [point for stages in (LOADER_STAGES, DEVICE_STAGES) for points in stages.values() for point in points]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def config(data, *layers: dict):
    own = {"DATA.PATH_TO_DATA_DIR": str(data), "DATA.PATH_PREFIX": str(data)}
    return load_config("demo/REV_MVIT_DEMO", overrides(own, *layers))


def resolve(module: str, name: str):
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def test_a_stage_counts_without_the_stages_inside_it():
    now = 0.0
    clock = StageClock(lambda: now)
    with clock.stage("outer"):
        now += 1
        with clock.stage("inner"):
            now += 10
            with clock.stage("innermost"):
                now += 100
        with clock.stage("inner"):
            now += 20
        now += 2
    assert clock.seconds == {"outer": 3, "inner": 30, "innermost": 100}


def test_a_stage_that_raises_is_counted_and_closed():
    now = 0.0
    clock = StageClock(lambda: now)
    with clock.stage("outer"):
        with contextlib.suppress(ValueError), clock.stage("inner"):
            now += 5
            raise ValueError
        now += 1
    assert clock.seconds == {"inner": 5, "outer": 1}


@pytest.mark.parametrize("point", POINTS, ids=".".join)
def test_what_a_stage_times_exists_and_is_put_back(point):
    original = resolve(*point)
    with StageClock().installed({"stage": [point]}):
        assert resolve(*point) is not original
        assert resolve(*point).__wrapped__ is original
    assert resolve(*point) is original


def test_every_stage_of_an_augmented_run_is_found(data):
    rows = {row["stage"]: row for row in measure_stages(config(data, AUGMENTED), CPU, num_batches=2)}
    assert list(rows) == [*LOADER_STAGES, REST, *DEVICE_STAGES, DEVICE_REST]
    unused = {name for name, row in rows.items() if row["seconds_per_clip"] == 0}
    assert unused == {"colour jitter"}  # PySlowFast jitters the colours of pictures only
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert rows["decode"]["place"] == "loader"
    assert rows["normalise"]["place"] == "device"


def test_stages_are_measured_in_one_process(data):
    with pytest.raises(ValueError, match="NUM_WORKERS"):
        measure_stages(config(data, {"DATA_LOADER.NUM_WORKERS": 1}), CPU, num_batches=1)


def test_shares_of_another_device_are_not_mixed_with_those_of_the_loader():
    rows = [
        {"stage": "decode", "place": "loader", "seconds_per_clip": 0.3},
        {"stage": "flip", "place": "loader", "seconds_per_clip": 0.1},
        {"stage": "normalise", "place": "device", "seconds_per_clip": 0.4},
    ]
    assert [row["share"] for row in with_shares(rows, comparable=True)] == pytest.approx([0.375, 0.125, 0.5])
    assert [row["share"] for row in with_shares(rows, comparable=False)] == [pytest.approx(0.75), 0.25, None]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_throughput_counts_clips_over_several_epochs(data, num_workers):
    figures = measure_throughput(config(data, AUGMENTED, {"DATA_LOADER.NUM_WORKERS": num_workers}), num_batches=4)
    assert NUM_TRAIN // 4 < 4  # more batches than an epoch has
    assert figures["num_workers"] == num_workers
    assert figures["clips"] == 4 * 4 * 2  # batches x videos x clips of a video
    assert figures["clips_per_second"] == pytest.approx(figures["clips"] / figures["seconds"])
    assert figures["first_batch_seconds"] > 0


def test_the_list_of_generated_videos_names_them_in_turn(tmp_path):
    content = Content(width=96, height=64, num_frames=4)
    write_training_list(tmp_path, num_samples=5, count=2, content=content)
    manifest = read_manifest(str(tmp_path / "train.csv"))
    names = [path.rpartition("/")[2] for path in manifest.paths]
    assert names == [f"generated_{n}_gop250.mp4" for n in (0, 1, 0, 1, 0)]


# The command


def test_the_command_prints_and_writes_shares_and_clips_per_second(data, tmp_path, capsys):
    path = tmp_path / "figures.json"
    own = {"DATA.PATH_TO_DATA_DIR": data, "DATA.PATH_PREFIX": data}
    words = ["--cfg", "demo/REV_MVIT_DEMO", *overrides(own, AUGMENTED)]
    assert main(["benchmark", "loader", *words, "--num-workers", "0,1", "--batches", "1", "--json", str(path)]) == 0
    result = json.loads(path.read_text("utf-8"))
    assert [row["num_workers"] for row in result["throughput"]] == [0, 1]
    assert all(row["clips"] == 8 for row in result["throughput"])
    out = capsys.readouterr().out
    assert all(row["stage"] in out for row in result["stages"])
    assert "clips/s and core" in out
    assert "first batch s" in out
    assert "2 clips a video" in out
    assert result["header"]["command"] in out


def test_generated_data_need_no_files_of_the_user(capsys):
    small = {"DATA.NUM_FRAMES": 4, "TRAIN.BATCH_SIZE": 2, "DATA.TRAIN_CROP_SIZE": 64, "DATA.TEST_CROP_SIZE": 64}
    words = [str(word) for pair in small.items() for word in pair]
    command = ["benchmark", "loader", "--cfg", "generated", *words, "--videos", "1", "--seconds", "1", "--batches", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "4x4 clips of 64 pixels, 2 videos a batch" in out
    assert "--cfg generated DATA.NUM_FRAMES 4" in out


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark_loader.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("words", ["--cfg generated AUG.NUM_SAMPLE 1 --videos 2", "--cfg a.yaml --num-workers 0,4"])
def test_the_printed_command_says_the_same_again(words):
    args = parsed(*shlex.split(words))
    said = shlex.split(benchmark_loader.command_line(args))
    assert said[:3] == ["revvideo", "benchmark", "loader"]
    assert vars(parsed(*said[3:])) == vars(args)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--cfg is missing"),
        ("--cfg demo/REV_MVIT_DEMO --json /nowhere/x.json", "--json /nowhere/x.json cannot be written"),
    ],
)
def test_wrong_input_is_refused(words, message, capsys):
    assert main(["benchmark", "loader", *words.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--batches 0", "--num-workers 0,x"])
def test_wrong_numbers_are_told_in_a_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "loader", *words.split()])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err
