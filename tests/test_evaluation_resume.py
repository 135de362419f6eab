"""An evaluation that was killed goes on: identical results, and no video that was written is evaluated again."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import run_config
import tiny
import torch
from plain_views import write_sharp_checkpoint
from processes import run_processes
from troubles import AtView, run

from revvideo.engine.evaluation_parts import EvaluationParts
from revvideo.engine.metrics import VideoScores

NUM_VIDEOS, NUM_VIEWS, FLUSH = 21, 2, 4
BAD = 5  # the number of a video that cannot be read
NUM_BATCHES = 11  # of two videos, one forward pass each
SLOW_CHANGES = ("list", "protocol")


@dataclasses.dataclass
class Kill:
    """SIGKILL to the process that calls it."""

    def __call__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(NUM_VIDEOS):
        path = root / f"{number}.mp4"
        tiny.write_video(path, 12 + number, size=(tiny.HEIGHT, tiny.WIDTH), seed=number)
        if number == BAD:
            path.write_bytes(path.read_bytes()[:500])
        rows.append((path.name, number % 4))
    tiny.write_list(root / "test.csv", rows)
    return root


@pytest.fixture(scope="module")
def layers(data, tmp_path_factory) -> tuple[dict, ...]:
    """Two videos in a batch, which is one forward pass."""
    folder = tmp_path_factory.mktemp("sharp")
    path = write_sharp_checkpoint(run_config.config(data, folder), folder / "sharp.pyth")
    keys = {
        "TRAIN.ENABLE": False,
        "TEST.CHECKPOINT_FILE_PATH": path,
        "TEST.NUM_ENSEMBLE_VIEWS": NUM_VIEWS,
        "TEST.BATCH_SIZE": 4,
        "EVAL.FLUSH_VIDEOS": FLUSH,
        "EVAL.SAVE_VIEWS": True,
        "DIST.TIMEOUT_SECONDS": 20,
    }
    return (keys,)


def start(data, folder, layers, *troubles, count=1) -> list:
    return run_processes(count, run, data, folder, layers, troubles, timeout_seconds=60)


def codes(results: list) -> list[int]:
    return [result.exitcode for result in results]


def files(folder: Path) -> tuple[dict, dict, dict]:
    results, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("results", "metrics"))
    del results["wall_seconds"]
    with np.load(folder / "predictions.npz") as file:
        return results, metrics, {name: (array.shape, array.tobytes()) for name, array in file.items()}


@pytest.fixture(scope="module")
def straight(data, layers, tmp_path_factory) -> tuple[dict, dict, dict]:
    """What an evaluation without interruption writes."""
    folder = tmp_path_factory.mktemp("straight")
    assert codes(start(data, folder, layers)) == [0]
    found = files(folder)
    assert found[0]["num_videos"] == NUM_VIDEOS - 1
    return found


def forwards(*starts: list) -> int:
    """Forward passes of all processes of some starts: a line each, by `AtView`."""
    return sum(result.output.count("looks at views") for results in starts for result in results)


def again(data, folder, layers, count: int = 1) -> list:
    """Rerun to the end; nothing happens on the way."""
    results = start(data, folder, layers, AtView("test", 0, Kill()), count=count)
    assert codes(results) == [0] * count
    assert not (folder / "evaluation").exists()
    return results


@pytest.mark.parametrize(("count", "at"), [(1, 8), (2, 4), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_kill_and_rerun(data, layers, straight, tmp_path, count, at):
    """The last process is killed in its `at`-th batch; the others end with code 1."""
    killed = start(data, tmp_path, layers, AtView("test", at, Kill(), rank=count - 1), count=count)
    assert codes(killed) == [*[1] * (count - 1), -signal.SIGKILL]
    assert not (tmp_path / "results.json").exists()
    rerun = again(data, tmp_path, layers, count)
    assert files(tmp_path) == straight
    twice = forwards(killed, rerun) - NUM_BATCHES
    print(f"{count} processes, killed at batch {at}: {twice} batches of 2 videos evaluated twice")
    assert 0 <= 2 * twice <= FLUSH * count
    events = tiny.events(tmp_path, "evaluation_resumed")
    assert [event["num_expected"] for event in events] == [NUM_VIDEOS] * (at > 1)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(data, layers, straight, tmp_path):
    killed = start(data, tmp_path, layers, AtView("test", 7, Kill()))
    rerun = again(data, tmp_path, layers, 3)
    assert files(tmp_path) == straight
    assert forwards(killed, rerun) - NUM_BATCHES <= FLUSH // 2


def parts_of_a_killed_run(data, folder, layers) -> list[Path]:
    start(data, folder, layers, AtView("test", 8, Kill()))
    (found,) = (folder / "evaluation").iterdir()
    return sorted(found.iterdir())


def test_a_damaged_part_is_told_and_evaluated_again(data, layers, straight, tmp_path):
    first, second, third = parts_of_a_killed_run(data, tmp_path, layers)
    first.write_bytes(first.read_bytes()[:-40])
    content = bytearray(second.read_bytes())
    content[len(content) // 2] ^= 255
    second.write_bytes(content)
    (rerun,) = again(data, tmp_path, layers)
    assert files(tmp_path) == straight
    for path in (first, second):
        assert f"{path} cannot be used" in rerun.output
    assert str(third) not in rerun.output
    assert forwards([rerun]) == NUM_BATCHES - FLUSH // 2


@pytest.mark.parametrize("change", ["weights", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CHANGES)])
def test_scores_of_another_evaluation_are_not_used(data, layers, tmp_path, change):
    parts = parts_of_a_killed_run(data, tmp_path / "run", layers)
    keys = dict(layers[0])
    if change == "weights":
        cfg = run_config.config(data, tmp_path)
        keys["TEST.CHECKPOINT_FILE_PATH"] = write_sharp_checkpoint(cfg, tmp_path / "other.pyth", seed=6)
    elif change == "list":
        rows = [(str(data / f"{number}.mp4"), (number + 1) % 4) for number in range(NUM_VIDEOS)]
        data = tmp_path
        tiny.write_list(data / "test.csv", rows)
    else:
        keys["EVAL.VIEWS"] = "to_end"
    (result,) = start(data, tmp_path / "run", (keys,), AtView("test", 0, Kill()))
    assert result.exitcode == 0, result.output
    assert forwards([result]) == NUM_BATCHES
    assert "scores of evaluations that were interrupted" in result.output
    assert all(path.exists() for path in parts)


def test_keys_without_a_say_in_the_scores_may_change(data, layers, straight, tmp_path):
    parts_of_a_killed_run(data, tmp_path, layers)
    others = {"DATA_LOADER.NUM_WORKERS": 1, "EVAL.FLUSH_VIDEOS": 100, "LOG_PERIOD": 3, "LOADER.INDEX_CACHE": ""}
    rerun = again(data, tmp_path, (*layers, others))
    assert files(tmp_path) == straight
    assert forwards(rerun) == NUM_BATCHES - 3 * FLUSH // 2


# The parts alone


def scores_of(indices, scores: VideoScores | None = None) -> VideoScores:
    scores = VideoScores(2) if scores is None else scores
    for index in indices:
        scores.add(index, range(2), torch.tensor([[index, 1.0], [0.0, index]]), label=1, path=f"{index}.mp4")
    return scores


def test_a_part_is_written_before_the_next_batch_would_be_too_much(tmp_path):
    for flush, batch, sizes in ((4, 2, [4, 4]), (5, 2, [4, 4]), (1, 1, [1] * 8), (1, 4, [4, 4]), (3, 1, [3, 3])):
        folder = tmp_path / f"{flush}_{batch}"
        parts, scores = EvaluationParts(folder, flush_videos=flush, videos_per_batch=batch), VideoScores(2)
        for first in range(0, 8, batch):
            parts.add(scores_of(range(first, first + batch), scores), range(first, first + batch))
        assert [len(np.load(path)["index"]) for path in sorted(folder.iterdir())] == sizes
        parts.flush(scores)
        found = VideoScores(2)
        parts.read(found, [f"{index}.mp4" for index in range(8)], [1] * 8)
        assert all(np.array_equal(found.arrays()[name], array) for name, array in scores.arrays().items())
        parts.remove()
        assert not folder.exists()


def test_a_part_of_failed_videos_alone_with_the_scores_of_views(tmp_path, caplog):
    parts, scores = EvaluationParts(tmp_path, flush_videos=2, videos_per_batch=2), VideoScores(2, keep_views=True)
    for index in range(2):
        scores.add_failure(index, f"{index}.mp4", "cut off")
    parts.add(scores, range(2))
    found = VideoScores(2, keep_views=True)
    parts.read(found, ["0.mp4", "1.mp4"], [1] * 2)
    assert found.failures == scores.failures
    assert not caplog.text
    assert found.arrays()["view_scores"].shape == (0, 1, 0)


def test_a_flipped_bit_in_the_table_of_a_part_is_harmless(tmp_path):
    """Such as one that says that an array is encrypted, or packed in another way."""
    parts, scores = EvaluationParts(tmp_path, flush_videos=1, videos_per_batch=1), scores_of(range(2))
    parts.add(scores, range(2))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for place in range(content.index(b"PK\x01\x02"), len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        found = VideoScores(2)
        parts.read(found, ["0.mp4", "1.mp4"], [1] * 2)
        assert not found.indices or all(
            np.array_equal(found.arrays()[name], array) for name, array in scores.arrays().items()
        )


def test_a_disk_that_cannot_be_written_costs_one_warning(tmp_path, caplog):
    folder = tmp_path / "file" / "parts"
    (tmp_path / "file").write_text("no folder")
    parts, scores = EvaluationParts(folder, flush_videos=1, videos_per_batch=1), VideoScores(2)
    for index in range(3):
        parts.add(scores_of([index], scores), [index])
    assert caplog.text.count("cannot be written") == 1
    (tmp_path / "file").unlink()
    parts.flush(scores)
    (path,) = folder.iterdir()
    assert np.load(path)["index"].tolist() == [0, 1, 2]


def test_a_video_that_two_parts_hold_counts_once(tmp_path, caplog):
    """Two starts at the same time, such as a job that Slurm has started twice."""
    for number in range(2):
        parts = EvaluationParts(tmp_path, flush_videos=9, videos_per_batch=1)
        scores = scores_of(range(number, 3))
        parts.add(scores, range(number, 3))
        parts.flush(scores)
    found = VideoScores(2)
    parts.read(found, ["0.mp4", "1.mp4", "2.mp4"], [1] * 3)
    found.check_complete(3)
    assert "cannot be used" in caplog.text
