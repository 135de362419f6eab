"""Points of a sweep: every combination once, each with a folder whose name survives shells, and the same next time."""

import re

import pytest

from revvideo.errors import InputError
from revvideo.launch.sweep import sweep_points


def test_without_a_sweep_there_are_no_points():
    assert sweep_points([]) == []


def test_every_combination_once_the_last_key_fastest():
    points = sweep_points(["SOLVER.BASE_LR=1e-3,3e-4", "EMA.ENABLE=True,False"])
    assert [tuple(point.values.values()) for point in points] == [
        ("1e-3", "True"),
        ("1e-3", "False"),
        ("3e-4", "True"),
        ("3e-4", "False"),
    ]
    assert points[0].folder == "BASE_LR=1e-3_ENABLE=True"


def test_commas_in_brackets_and_quotes_belong_to_the_value():
    (first, second) = sweep_points(["DATA.TRAIN_JITTER_SCALES=[256,320],[224, 256]"])
    assert [first.values, second.values] == [
        {"DATA.TRAIN_JITTER_SCALES": "[256,320]"},
        {"DATA.TRAIN_JITTER_SCALES": "[224, 256]"},
    ]
    assert len(sweep_points(["DATA.PATH_PREFIX='a,b',c"])) == 2
    assert len(sweep_points(["MVIT.DIM_MUL=[[1,2.0],[3,2.0]]"])) == 1


def test_keys_with_the_same_last_part_are_named_in_full():
    (point,) = sweep_points(["EMA.ENABLE=True", "MIXUP.ENABLE=False"])
    assert point.folder == "EMA.ENABLE=True_MIXUP.ENABLE=False"


@pytest.mark.parametrize(
    "options",
    [
        ["DATA.PATH_PREFIX=/a/b,a/b,/a b", "RNG_SEED=1,2"],
        ["SOLVER.WEIGHT_DECAY=1e-1,-1,1"],
        ["DATA.PATH_PREFIX=" + "x" * 300 + "," + "x" * 299 + "y"],
        ["DATA.PATH_PREFIX=%j,..,:,$HOME"],
    ],
)
def test_folders_differ_and_need_no_quotes(options):
    points = sweep_points(options)
    assert len({point.folder for point in points}) == len(points)
    for point in points:
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_.+=-]{0,199}", point.folder)


def test_values_that_are_written_alike_have_folders_of_their_own():
    points = sweep_points(["DATA.DECODING_BACKEND=pyav,'pyav'"])
    assert len({point.folder for point in points}) == 2


def test_more_values_keep_the_folders_of_those_before():
    few, more = sweep_points(["RNG_SEED=1,2"]), sweep_points(["RNG_SEED=0,1,2,3"])
    assert {point.folder for point in few} < {point.folder for point in more}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["RNG_SEED"], r"--sweep is 'RNG_SEED'; expected KEY=v1,v2"),
        (["=1"], "expected KEY=v1,v2"),
        (["RNG_SEED="], "empty value"),
        (["RNG_SEED=1,,2"], "empty value"),
        (["RNG_SEED=1,1"], "the value 1 twice"),
        (["RNG_SEED=1", "RNG_SEED=2"], "RNG_SEED twice"),
        (["SOLVER.BASELR=1"], "unknown key SOLVER.BASELR; the nearest known key is SOLVER.BASE_LR"),
        (["OUTPUT_DIR=a,b"], "OUTPUT_DIR, which cannot be swept"),
        (["NUM_GPUS=1,2"], "NUM_GPUS, which cannot be swept.*--gpus-per-node"),
    ],
)
def test_wrong_sweeps_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        sweep_points(options)
