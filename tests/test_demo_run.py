"""`revvideo demo` on a handful of videos, and the probes of temporal order."""

import re
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from revvideo.demo import probes
from revvideo.demo.run import Figure
from revvideo.demo.scenes import CLASS_NAMES

# The demo's own config with another network in it: six blocks, so that the memory of the two ways differs clearly.
SMALL = {key: value for key, value in tiny.TINY.items() if key.startswith(("DATA.", "MVIT.", "SOLVER.", "TRAIN."))} | {
    "DATA.TRAIN_JITTER_SCALES": [32, 40],
    "MVIT.DEPTH": 8,
    "TEST.NUM_ENSEMBLE_VIEWS": 2,
    "DATA_LOADER.NUM_WORKERS": 0,
}


def run_demo(root: Path, *options: str) -> tiny.Outcome:
    words = [str(word) for pair in SMALL.items() for word in pair]
    return tiny.command("demo", "--root", root, "--train-per-class", 2, "--test-per-class", 1, *options, *words)


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, tiny.Outcome]:
    """The folder and the outcome of a first call. The second test calls again in it."""
    root = tmp_path_factory.mktemp("demo")
    return root, tiny.done(run_demo(root))


def test_the_demo_prints_its_table(first):
    root, outcome = first
    percents = re.findall(r"^\(([abcd])\) .+? +(\d+\.\d\d) %   expected", outcome.out, re.MULTILINE)
    assert [name for name, _ in percents] == ["a", "b", "c", "d"]
    assert all(0.0 <= float(percent) <= 100.0 for _, percent in percents)
    assert "8 test videos, 2 views each" in outcome.out
    memory = re.search(r"memory, batch 4: ([\d.]+) MiB reversible, ([\d.]+) MiB plain", outcome.out)
    assert float(memory[1]) < float(memory[2])
    assert re.search(r"^time: \d:\d\d:\d\d \(data ", outcome.out, re.MULTILINE)
    run = root / "seed0_2x1"
    assert f"run:  {run}\n" in outcome.out
    assert f"data: {root / 'data_seed0_2x1'}\n" in outcome.out
    for text in ("TRAIN.ENABLE False", "SOLVER.MAX_EPOCH 2"):
        assert f"revvideo run_net --cfg {run}/config.yaml {text}" in outcome.out


def test_the_demo_leaves_a_run_folder(first):
    root, _ = first
    run = root / "seed0_2x1"
    for name in ("config.yaml", "environment.json", "results.json", "predictions.npz"):
        assert (run / name).is_file()
    assert len(tiny.losses(run)) == 4  # 16 videos, 4 a step
    (event,) = tiny.events(run, "demo")
    assert event["memory_mib"]["reversible"] < event["memory_mib"]["plain"]
    (test,) = tiny.events(run, "test")
    assert event["(a) top-1"] == test["top1_acc_all"]
    with np.load(run / "predictions.npz") as file:  # every test video once
        assert sorted(file["label"]) == list(range(len(CLASS_NAMES)))
        assert len(set(file["path"])) == len(CLASS_NAMES)


def test_a_second_call_reuses_data_and_training(first):
    root, outcome = first
    videos = {path: path.stat().st_mtime_ns for path in (root / "data_seed0_2x1").rglob("*.mp4")}
    assert len(videos) == 24
    again = tiny.done(run_demo(root))
    assert {path: path.stat().st_mtime_ns for path in (root / "data_seed0_2x1").rglob("*.mp4")} == videos
    assert "reusing the demo's data" in again.err
    assert "training is complete" in again.err
    assert len(tiny.events(root / "seed0_2x1", "train_step")) == 4
    figures, again_figures = (re.findall(r"^\([abcd]\).*", text, re.MULTILINE) for text in (outcome.out, again.out))
    assert figures == again_figures


def test_strict_turns_a_missed_figure_into_code_3(first):
    root, outcome = first
    assert "MISSED" in outcome.out  # one epoch on 16 videos teaches nothing
    strict = run_demo(root, "--strict")
    assert strict.code == 3
    assert "check failed: not as expected: (" in strict.err
    assert "Traceback" not in strict.err
    assert "MISSED" in strict.out  # the table comes first


def test_the_printed_commands_run(first):
    """Evaluate again, then train further: the printed lines as they are."""
    root, outcome = first
    lines = re.findall(r"revvideo (run_net --cfg .*)", outcome.out)
    assert len(lines) == 2
    before = len(tiny.events(root / "seed0_2x1", "train_step"))
    for line in lines:
        tiny.done(tiny.command(*line.split()))
    assert len(tiny.events(root / "seed0_2x1", "train_step")) == before + 4


def test_other_data_are_not_answered_from_the_old_training(first):
    """Another number of videos makes another data set; weights of the old one must not pass for trained on it."""
    root, _ = first
    outcome = tiny.done(run_demo(root, "--train-per-class", "1"))
    assert len(tiny.events(root / "seed0_1x1", "train_step")) == 2, outcome.err  # 8 videos, 4 a step


def test_wrong_numbers_are_refused(tmp_path):
    outcome = tiny.command("demo", "--root", tmp_path, "--train-per-class", 0)
    assert outcome.code == 2
    assert "train_per_class is 0" in outcome.err
    assert "Traceback" not in outcome.err


# Figures


@pytest.mark.parametrize(
    ("bounds", "text", "inside", "outside"),
    [((90, 100), "at least 90", 90.0, 89.9), ((0, 30), "at most 30", 30.0, 30.1), ((35, 65), "35 to 65", 65.0, 34.9)],
)
def test_figures_know_what_is_expected(bounds, text, inside, outside):
    good, bad = Figure("(x)", inside, *bounds), Figure("(x)", outside, *bounds)
    assert good.holds
    assert not bad.holds
    assert str(good).endswith(f"expected {text}")
    assert str(bad).endswith(f"expected {text}   MISSED")


# Probes

VIEWS, FRAMES = 3, 8


@pytest.fixture
def views() -> torch.Tensor:
    """uint8 (V, T, C, H, W); each frame holds its own number, each view its own offset."""
    numbers = torch.arange(VIEWS * FRAMES, dtype=torch.uint8).view(VIEWS, FRAMES, 1, 1, 1)
    return numbers.expand(VIEWS, FRAMES, 3, 4, 4).clone()


def orders(views: torch.Tensor) -> list[list[int]]:
    """The numbers of the frames of each view, from 0."""
    assert (views == views[:, :, :1, :1, :1]).all()  # whole frames
    return [(row - view * FRAMES).tolist() for view, row in enumerate(views[:, :, 0, 0, 0].int())]


def test_reverse_turns_every_view_around(views):
    assert orders(probes.reverse(views, 0)) == [list(range(FRAMES))[::-1]] * VIEWS


def test_hold_repeats_the_middle_frame_of_every_view(views):
    held = probes.hold_middle_frame(views, 0)
    assert held.shape == views.shape
    assert orders(held) == [[FRAMES // 2] * FRAMES] * VIEWS


def test_shuffle_permutes_the_frames_of_each_view_by_seed_and_video(views):
    before = views.clone()
    shuffled = orders(probes.Shuffle(0)(views, 5))
    assert torch.equal(views, before)
    assert all(sorted(order) == list(range(FRAMES)) for order in shuffled)
    assert len({tuple(order) for order in shuffled}) == VIEWS  # an order of its own each
    torch.manual_seed(1)
    np.random.seed(1)
    assert orders(probes.Shuffle(0)(views, 5)) == shuffled
    assert orders(probes.Shuffle(1)(views, 5)) != shuffled
    assert orders(probes.Shuffle(0)(views, 6)) != shuffled


def test_shuffle_is_unbiased_over_videos(views):
    """Each frame comes to each place about equally often, so no direction of time survives."""
    counts = np.zeros((FRAMES, FRAMES))
    forward = 0
    for index in range(400):
        for order in orders(probes.Shuffle(0)(views, index)):
            counts[order, range(FRAMES)] += 1
            forward += order.index(0) < order.index(FRAMES - 1)
    total = 400 * VIEWS
    assert abs(counts / total - 1 / FRAMES).max() < 5 * np.sqrt(1 / 8 * 7 / 8 / total)
    assert abs(forward / total - 0.5) < 5 * 0.5 / np.sqrt(total)


def test_partners_are_pairs_of_classes():
    labels = np.arange(len(CLASS_NAMES))
    partners = probes.partners(labels)
    assert (partners != labels).all()
    assert (probes.partners(partners) == labels).all()


def test_shares():
    labels = np.array([0, 1, 2, 3])
    partners = probes.partners(labels)
    scores = np.full((4, 8), 0.01, np.float32)
    scores[range(4), labels] = [0.5, 0.5, 0.1, 0.2]
    scores[range(4), partners] = [0.1, 0.6, 0.05, 0.1]
    scores[2, 7] = 0.9  # another class wins, but within the pair the right one does
    assert probes.top1_percent(scores, labels) == 50.0
    assert probes.top1_percent(scores, partners) == 25.0
    assert probes.within_pair_percent(scores, labels) == 75.0
