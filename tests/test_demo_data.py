"""The demo data: scenes in their ranges, classes that only the order of frames separates, a set never half there."""

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest

from revvideo.demo import dataset
from revvideo.demo.dataset import CLASS_NAMES, make_dataset, partner, video_generator
from revvideo.demo.scenes import (
    DIAMETER,
    FRAME_SIZE,
    LUMA,
    MAX_OVERHANG,
    NUM_FRAMES,
    SHAPES,
    draw_scene,
    render,
    render_class,
)
from revvideo.errors import InputError

MOTIONS = {"pair_index", "travel", "turn", "growth"}
SMALL = {"seed": 3, "train_per_class": 2, "test_per_class": 1, "num_processes": 1}


def scenes(pair_index: int, count: int = 200):
    return [draw_scene(video_generator(7, "train", 2 * pair_index, number), pair_index) for number in range(count)]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("demo") / "set", **SMALL)


# --- scenes ---


def test_partners_are_pairs():
    assert [CLASS_NAMES[partner(label)] for label in range(8)] == [CLASS_NAMES[label ^ 1] for label in range(8)]
    assert CLASS_NAMES[::2] == ("moves_left", "moves_up", "turns_clockwise", "grows")


@pytest.mark.parametrize("pair_index", range(4))
def test_motion_and_drift_stay_in_their_ranges(pair_index):
    for scene in scenes(pair_index):
        (x0, y0, angle0, diameter0), (x1, y1, angle1, diameter1) = scene.pose(0.0), scene.pose(1.0)
        dx, dy, turn, growth = x1 - x0, y1 - y0, math.degrees(angle1 - angle0), diameter1 / diameter0
        assert (0.35 <= -dx <= 0.60) if pair_index == 0 else dx == 0
        assert (0.35 <= -dy <= 0.60) if pair_index == 1 else dy == 0
        assert (90 <= turn <= 180) if pair_index == 2 else turn == 0
        assert (2 <= growth <= 3) if pair_index == 3 else growth == 1
        assert math.hypot(*scene.drift) <= 0.15
        assert DIAMETER[0] <= scene.diameter <= DIAMETER[1]
        for time in (0.0, 0.5, 1.0):
            x, y, _, diameter = scene.pose(time)
            for centre in (x, y):
                assert diameter / 2 - 1.001 * MAX_OVERHANG <= centre <= 1 - diameter / 2 + 1.001 * MAX_OVERHANG


def test_drift_knows_no_direction():
    drifts = np.array([scene.drift for pair_index in range(4) for scene in scenes(pair_index)])
    assert np.abs(drifts.mean(axis=0)).max() < 0.01
    assert set(np.sign(drifts[:, 0]) + 2 * np.sign(drifts[:, 1])) == {-3, -1, 1, 3}  # every quadrant


def test_mid_time_frame_says_nothing_about_the_pair():
    """From equal random numbers the four pairs differ in their motion alone, and not at all half-way through."""
    drawn = [draw_scene(np.random.default_rng(5), pair_index) for pair_index in range(4)]
    still = [{name: value for name, value in asdict(scene).items() if name not in MOTIONS} for scene in drawn]
    assert still[0] == still[1] == still[2] == still[3]
    frames = [render(scene, num_frames=3)[1] for scene in drawn]
    assert all(np.array_equal(frame, frames[0]) for frame in frames)


@pytest.mark.parametrize("label", range(1, 8, 2))
def test_second_class_is_a_first_class_scene_backwards(label):
    backwards = render_class(video_generator(1, "train", label, 0), label, num_frames=12)
    forwards = render(draw_scene(video_generator(1, "train", label, 0), label // 2), num_frames=12)
    assert np.array_equal(backwards[::-1], forwards)
    assert np.array_equal(forwards, render_class(video_generator(1, "train", label, 0), label - 1, num_frames=12))
    assert not np.array_equal(backwards, forwards)


def test_pixels_follow_the_pose():
    """The shape that one sees is where the pose says, turned and scaled as it says."""
    for pair_index in range(4):
        scene = scenes(pair_index, 1)[0]
        video = render(scene, num_frames=5)
        bright = (video @ LUMA > 255 * 0.5) == (np.dot(scene.colours[0], LUMA) > 0.5)  # (T, H, W): the shape
        areas = bright.sum(axis=(1, 2))
        for index, mask in enumerate(bright):
            x, y, _, diameter = scene.pose(index / 4)
            rows, columns = np.nonzero(mask)
            reach = np.hypot((columns + 0.5) / FRAME_SIZE - x, (rows + 0.5) / FRAME_SIZE - y).max()
            assert diameter / 2 - 2 / FRAME_SIZE < reach < diameter / 2 + 1 / FRAME_SIZE
        assert areas[-1] / areas[0] == pytest.approx(scene.growth**2, rel=0.12)


def test_turning_goes_clockwise_on_the_screen():
    scene = next(scene for scene in scenes(2) if scene.shape == "triangle")  # its centre of mass lies off the centre
    video = render(scene, num_frames=9)
    bright = (video @ LUMA > 255 * 0.5) == (np.dot(scene.colours[0], LUMA) > 0.5)
    masses = [
        np.subtract(np.argwhere(mask).mean(axis=0) + 0.5, np.multiply(scene.centre[::-1], 112)) for mask in bright
    ]
    angles = np.unwrap([math.atan2(y, x) for y, x in masses])  # y points down: growing angles are clockwise
    assert angles[-1] - angles[0] == pytest.approx(scene.turn, abs=math.radians(12))


def test_shape_stands_out_from_the_background():
    for pair_index in range(4):
        for scene in scenes(pair_index, 50):
            reach = sum(abs(np.dot(wave.colour, LUMA)) for wave in scene.background_waves)
            contrast = [abs(np.dot(np.subtract(colour, scene.background_colour), LUMA)) for colour in scene.colours]
            assert min(contrast) - reach > 0.08  # worst place of the texture; usually far more
            assert np.linalg.norm(np.subtract(*scene.colours)) > 0.08  # the texture of the shape is visible


def test_shapes_fill_their_circle_and_show_a_quarter_turn():
    y, x = np.mgrid[-1.1:1.1:111j, -1.1:1.1:111j].astype(np.float32)
    for name in SHAPES:
        inside = np.any(
            [np.all([nx * x + ny * y <= c for nx, ny, c in planes], axis=0) for planes in SHAPES[name]], axis=0
        )
        radius = np.hypot(x, y)[inside].max()
        assert 0.93 < radius <= 1.0 + 1e-6, name
        assert inside.sum() / (np.hypot(x, y) <= 1).sum() > 0.3, name
        assert (inside ^ np.rot90(inside)).sum() / inside.sum() > 0.2, name


def test_no_two_videos_share_a_scene():
    keys = [(split, label, number) for split in ("train", "test") for label in range(8) for number in range(84)]
    assert len({video_generator(0, *key).random() for key in keys}) == len(keys)
    assert video_generator(0, "train", 0, 0).random() != video_generator(1, "train", 0, 0).random()


# --- the set on disk ---


def test_lists_name_every_video_once(small_set):
    assert small_set.num_train == 16
    assert small_set.num_test == 8
    assert small_set.num_written == 24
    assert small_set.class_names.read_text().split() == list(CLASS_NAMES)
    assert small_set.val_list.read_bytes() == small_set.test_list.read_bytes()
    listed = []
    for path, per_class, split in ((small_set.train_list, 2, "train"), (small_set.test_list, 1, "test")):
        rows = [line.split(" ") for line in path.read_text().splitlines()]
        assert all(len(row) == 2 for row in rows)
        assert Counter(int(label) for _, label in rows) == dict.fromkeys(range(8), per_class)
        for name, label in rows:
            assert name.startswith(f"videos/{split}/{CLASS_NAMES[int(label)]}/")
            listed.append(small_set.root / name)
    assert sorted(listed) == sorted(small_set.root.rglob("*.mp4"))


def test_videos_are_what_they_claim(small_set):
    for label, name in enumerate(CLASS_NAMES):
        with av.open(str(small_set.root / "videos" / "test" / name / "000.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == 30
            assert stream.frames == NUM_FRAMES
            decoded = list(container.decode(stream))
        assert [round(frame.time * 30) for frame in decoded] == list(range(NUM_FRAMES))
        keys = [index for index, frame in enumerate(decoded) if frame.key_frame]
        assert keys[0] == 0
        assert max(np.diff([*keys, NUM_FRAMES])) <= 30
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
        drawn = render_class(video_generator(3, "test", label, 0), label)
        assert video.shape == drawn.shape == (90, 112, 112, 3)
        assert np.abs(video.astype(int) - drawn).mean() < 4


def test_number_of_processes_does_not_change_the_bytes(small_set, tmp_path):
    """Also: the spawned workers need nothing from the script but its guard, and neither side imports torch."""
    script = tmp_path / "make.py"
    script.write_text(
        "import sys\n"
        "from revvideo.demo.dataset import make_dataset\n"
        "if __name__ == '__main__':\n"
        "    make_dataset(sys.argv[1], seed=3, train_per_class=2, test_per_class=1, num_processes=2)\n"
        "    assert 'torch' not in sys.modules\n"
    )
    repository = Path(dataset.__file__).parents[2]
    environment = {"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, script, tmp_path / "two"], check=True, cwd=tmp_path, env=environment)
    assert tree(tmp_path / "two") == tree(small_set.root)


def test_finished_set_is_reused_untouched(small_set):
    before = {path: path.stat().st_mtime_ns for path in small_set.root.rglob("*")}
    calls = []
    again = make_dataset(small_set.root, **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert again.num_written == 0
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in small_set.root.rglob("*")} == before


def test_damaged_set_is_repaired(small_set):
    root, whole = small_set.root, tree(small_set.root)
    lost, cut = root / "videos/train/moves_up/001.mp4", root / "videos/test/grows/000.mp4"
    kept = root / "videos/train/moves_up/000.mp4"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:2000])
    (root / "train.csv").write_text("")
    calls = []
    repaired = make_dataset(root, **SMALL, progress=lambda done, total: calls.append((done, total)))
    assert repaired.num_written == 2
    assert calls[-1] == (2, 2)
    assert tree(root) == whole
    assert kept.stat().st_mtime_ns == before


def test_interrupted_set_is_completed(small_set, tmp_path, monkeypatch):
    """Stopped after five videos, one of them truncated by hand (a lost disk write): a second call completes the set."""
    root, write = tmp_path / "set", dataset.write_video
    written = []

    def write_five(path, video):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, video)

    monkeypatch.setattr(dataset, "write_video", write_five)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(root, **SMALL)
    monkeypatch.undo()
    assert None in json.loads((root / "demo_data.json").read_text())["files"].values()
    assert not (root / "train.csv").exists()
    written[0].write_bytes(written[0].read_bytes()[:3000])
    (written[1].parent / ".001.mp4.123.tmp").write_bytes(b"of a killed process")
    assert make_dataset(root, **SMALL).num_written == 24 - 4
    assert tree(root) == tree(small_set.root)


def test_other_parameters_replace_the_set_and_nothing_else(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(dataset, "render_class", lambda rng, label: render_class(rng, label, num_frames=6))  # for speed
    small = {"train_per_class": 1, "test_per_class": 1, "num_processes": 1}
    first = make_dataset(tmp_path / "set", seed=0, **small)
    (first.root / "notes.txt").write_text("mine")
    before = tree(first.root)
    with caplog.at_level("WARNING"):
        second = make_dataset(first.root, seed=1, **small)
    assert "replacing" in caplog.text
    assert second.num_written == 16
    after = tree(first.root)
    assert after.keys() == before.keys()
    assert after["notes.txt"] == b"mine"
    assert all(after[name] != before[name] for name in after if name.endswith(".mp4"))


def test_foreign_folders_and_wrong_numbers_are_refused(tmp_path):
    (tmp_path / "holiday.mp4").write_bytes(b"precious")
    with pytest.raises(InputError, match=r"holiday\.mp4"):
        make_dataset(tmp_path)
    assert tree(tmp_path) == {"holiday.mp4": b"precious"}
    with pytest.raises(InputError, match="is a file"):
        make_dataset(tmp_path / "holiday.mp4")
    (tmp_path / "demo_data.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="not a manifest"):
        make_dataset(tmp_path)
    for wrong in ({"seed": -1}, {"train_per_class": 0}, {"test_per_class": 0}, {"num_processes": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            make_dataset(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()
