"""The learning rate equals PySlowFast's at every moment, and impossible schedules are refused."""

import json
from pathlib import Path

import pytest

from revvideo.engine.schedule import learning_rate
from revvideo.errors import InputError

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_schedule.json").read_text())


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["name"])
def test_cosine_equals_pyslowfast(golden):
    numbers = {key: value for key, value in golden.items() if key not in ("name", "lr")}
    for epoch, expected in golden["lr"].items():
        assert learning_rate(float(epoch), policy="cosine", **numbers) == pytest.approx(expected, rel=1e-12, abs=0)


def test_warmup_meets_the_policy_without_a_jump():
    for policy in (
        {"policy": "cosine"},
        {"policy": "steps_with_relative_lrs", "steps": [0, 6], "relative_lrs": [1, 0.1]},
    ):
        numbers = {"base_lr": 0.4, "max_epoch": 10, "warmup_epochs": 2.5, "warmup_start_lr": 0.1, **policy}
        assert learning_rate(0, **numbers) == 0.1
        assert learning_rate(2.5 - 1e-9, **numbers) == pytest.approx(learning_rate(2.5, **numbers), rel=1e-6)


def test_steps_change_at_their_epoch():
    numbers = {"policy": "steps_with_relative_lrs", "base_lr": 2.0, "max_epoch": 30}
    numbers |= {"steps": [0, 10, 20], "relative_lrs": [1.0, 0.1, 0.01]}
    rates = [learning_rate(epoch, **numbers) for epoch in (0, 9.99, 10, 19.99, 20, 29.99, 30)]
    assert rates == pytest.approx([2.0, 2.0, 0.2, 0.2, 0.02, 0.02, 0.02], rel=1e-12)


def test_warmup_may_fill_the_whole_training():
    numbers = {"base_lr": 1.0, "max_epoch": 5, "warmup_epochs": 5, "cosine_after_warmup": True}
    assert [learning_rate(epoch, **numbers) for epoch in (0, 2.5, 5)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"policy": "poly"}, "LR_POLICY is 'poly'; known: cosine, steps_with_relative_lrs"),
        ({"end_lr": 0.2}, "COSINE_END_LR"),
        ({"policy": "steps_with_relative_lrs"}, "SOLVER.LRS"),
        ({"policy": "steps_with_relative_lrs", "steps": [0, 1], "relative_lrs": [1]}, "got 1 for 2"),
        ({"policy": "steps_with_relative_lrs", "steps": [2, 4], "relative_lrs": [1, 0.1]}, "start with 0"),
        ({"policy": "steps_with_relative_lrs", "steps": [0, 4, 4], "relative_lrs": [1, 1, 1]}, "ascend"),
    ],
)
def test_impossible_schedules_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        learning_rate(1.0, **{"base_lr": 0.1, "max_epoch": 10, **numbers})
