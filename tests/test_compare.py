"""`revvideo compare`: the paired difference of two evaluations of one list, and its interval."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny

from revvideo.engine.paired_difference import paired_difference
from revvideo.engine.read_evaluation import Evaluation, common_rows

CLASSES = 8


def right(*counts: int) -> tuple[np.ndarray, np.ndarray]:
    """Two columns from the numbers of videos that both, A alone, B alone and neither have right."""
    both, a, b, neither = counts
    cells = [(True, True)] * both + [(True, False)] * a + [(False, True)] * b + [(False, False)] * neither
    return tuple(np.array(column) for column in zip(*cells))


def test_the_difference_of_known_counts():
    found = paired_difference(*right(40, 10, 25, 25))
    assert (found.num_videos, found.only_a, found.only_b) == (100, 10, 25)
    assert (found.a_percent, found.b_percent) == pytest.approx((50.0, 65.0))
    assert found.difference == pytest.approx(15.0)
    exact = 2 * sum(math.comb(35, i) for i in range(11)) / 2**35
    assert found.p_value == pytest.approx(exact)
    low, high = found.interval
    assert low < 15.0 < high
    assert low > 0  # as the test of McNemar says at 5 %
    assert exact < 0.05


def test_equal_models_differ_by_nothing_with_an_interval_all_the_same():
    found = paired_difference(*right(70, 0, 0, 30))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert -3.0 < found.interval[0] < 0.0 < found.interval[1] < 3.0
    few = paired_difference(*right(7, 0, 0, 3))
    assert few.interval[1] > 3 * found.interval[1]


def test_swapping_the_two_changes_the_sign():
    one, other = paired_difference(*right(5, 9, 2, 4)), paired_difference(*reversed(right(5, 9, 2, 4)))
    assert one.difference == -other.difference
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))
    assert one.p_value == other.p_value


def test_the_interval_covers_the_truth_in_95_of_100():
    generator, inside = np.random.default_rng(0), 0
    cells = np.array([0.5, 0.1, 0.16, 0.24])
    for _ in range(2000):
        low, high = paired_difference(*right(*generator.multinomial(120, cells))).interval
        inside += low <= 6.0 <= high
    assert 0.935 <= inside / 2000 <= 0.975


def write_evaluation(folder: Path, root: str, predicted: dict[str, int], failed=(), labels=None) -> Path:
    """A run folder with an evaluation whose video `name` is taken for class `predicted[name]`."""
    folder.mkdir()
    names = list(predicted)
    scores = np.eye(CLASSES, dtype=np.float32)[list(predicted.values())]
    labels = np.array([(labels or {}).get(name, int(name[0])) for name in names])
    np.savez(folder / "predictions.npz", path=[f"{root}/{name}" for name in names], label=labels, scores=scores)
    results = {"failed": [{"path": f"{root}/{name}", "reason": "cut off"} for name in failed], "protocol": "5 views"}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def two(tmp_path):
    """A has videos 0 and 1 right; B, in another folder and order, has 1, 2 and 3 right and cannot read 4."""
    a = write_evaluation(tmp_path / "a", "/data/k", {"0.mp4": 0, "1.mp4": 1, "2.mp4": 0, "3.mp4": 0, "4.mp4": 4})
    b = write_evaluation(tmp_path / "b", "/other", {"3.mp4": 3, "2.mp4": 2, "1.mp4": 1, "0.mp4": 7}, failed=["4.mp4"])
    return a, b


def test_the_command(two):
    outcome = tiny.done(tiny.command("compare", *two))
    assert "videos that both have read: 4 of 5" in outcome.out
    assert "top-1: A 50.00 %, B 75.00 %; B - A +25.00 points" in outcome.out
    assert "right in A alone 1, in B alone 2, McNemar p = 1" in outcome.out
    assert "5 views" in outcome.out
    figures = json.loads(tiny.done(tiny.command("compare", two[0], two[1] / "predictions.npz", "--json")).out)
    assert figures["top1"]["difference"] == 25.0
    assert figures["num_listed"] == 5


def test_other_lists_and_labels_are_refused(two, tmp_path):
    a, _ = two
    fewer = write_evaluation(tmp_path / "fewer", "/data/k", {"0.mp4": 0, "1.mp4": 1})
    outcome = tiny.command("compare", a, fewer)
    assert outcome.code == 2
    assert "5 videos" in outcome.err
    assert "2.mp4" in outcome.err
    guesses = {f"{number}.mp4": 0 for number in range(5)}
    other = write_evaluation(tmp_path / "labels", "/data/k", guesses, labels={"2.mp4": 5})
    outcome = tiny.command("compare", a, other)
    assert outcome.code == 2
    assert "1 videos have different labels" in outcome.err
    assert "2.mp4: 2 and 5" in outcome.err


def test_a_path_that_is_listed_twice_is_two_videos():
    paths = ["/k/0.mp4", "/k/1.mp4", "/k/0.mp4"]
    found = Evaluation(Path("a"), paths, np.array([0, 1, 0]), np.zeros((3, 2), np.float32), [], {})
    assert [rows.tolist() for rows in common_rows(found, found)] == [[0, 1, 2], [0, 1, 2]]


def test_what_is_no_evaluation_is_refused(two, tmp_path):
    a, b = two
    outcome = tiny.command("compare", a, tmp_path / "nothing")
    assert outcome.code == 2
    assert "expected a run folder" in outcome.err
    (b / "predictions.npz").write_bytes(b"PK nothing")
    outcome = tiny.command("compare", a, b)
    assert outcome.code == 2
    assert "not what an evaluation writes" in outcome.err
