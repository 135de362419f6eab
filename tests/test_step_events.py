"""What a run tells of its steps: all figures, the bad videos of all processes, advice when it waits for data."""

import math
import signal
import time

import pytest
import run_config
import tiny
from processes import run_processes
from troubles import AdviceAfter, AtStep, Send, SlowReading, run

from revvideo.engine.train_step import TrainStep

NUM_VIDEOS, NUM_BAD = 16, 2
STEPS_AN_EPOCH = NUM_VIDEOS // 4
KEYS = tiny.RANDOM | tiny.TRAIN_ONLY | {"SOLVER.MAX_EPOCH": 2, "DIST.TIMEOUT_SECONDS": 20}
BAD_KEYS = {"LOADER.MAX_BAD_FRACTION": 1.0, "AUG.ENABLE": True, "AUG.NUM_SAMPLE": 2, "LOG_PERIOD": 1}
FIELDS = {
    *("kind", "time", "restart", "step", "epoch", "loss", "lr", "grad_norm", "top1"),
    *("clips_per_second", "data_wait_share", "peak_memory_mib", "bad_videos", "steps_per_epoch"),
}


def start(data, folder, *troubles, keys=(), count=1) -> list:
    return run_processes(count, run, data, folder, (KEYS, *keys), troubles, timeout_seconds=60)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixteen videos, of which two are unreadable; each epoch asks for both."""
    root = run_config.write_training_set(tmp_path_factory.mktemp("data"), NUM_VIDEOS)
    for number in range(NUM_BAD):
        (root / f"{number}.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module", params=[1, 2])
def folder(request, data, tmp_path_factory):
    """A run that was stopped after step 3 and went on; one process, or two that read every other part of a batch."""
    folder = tmp_path_factory.mktemp("run")
    stop = AtStep(0, 2, Send(signal.SIGTERM))
    results = start(data, folder, stop, keys=(BAD_KEYS,), count=request.param)
    assert [result.exitcode for result in results] == [75] * request.param, results[0].output
    results = start(data, folder, keys=(BAD_KEYS,), count=request.param)
    assert [result.exitcode for result in results] == [0] * request.param, results[0].output
    return folder


def test_each_step_has_its_event_with_all_figures(folder):
    steps = tiny.events(folder, "train_step")
    assert [(event["step"], event["epoch"]) for event in steps] == [(n, n // STEPS_AN_EPOCH) for n in range(8)]
    assert [event["restart"] for event in steps] == [0] * 3 + [1] * 5
    for event in steps:
        assert event.keys() == FIELDS
        assert event["steps_per_epoch"] == STEPS_AN_EPOCH
        assert event["loss"] > 0
        assert event["grad_norm"] > 0
        assert event["clips_per_second"] > 0
        assert event["peak_memory_mib"] > 50
        assert 0 < event["data_wait_share"] < 1
        assert 0 <= event["top1"] <= 100
        assert all(math.isfinite(value) for value in event.values() if not isinstance(value, str))
    rates = [event["lr"] for event in steps]
    assert rates[0] < rates[1]  # the warm-up
    assert rates[2:] == sorted(set(rates[2:]), reverse=True)


def test_unreadable_videos_of_all_processes_are_recorded(data, folder):
    """Each once an epoch, wherever it was read; `bad_videos` counts them from the start of training, over restarts."""
    found = tiny.events(folder, "bad_video")
    bad = [str(data / f"{number}.mp4") for number in range(NUM_BAD)]
    assert {(event["path"], event["epoch"]) for event in found} == {(path, epoch) for path in bad for epoch in (0, 1)}
    counts = [event["bad_videos"] for event in tiny.events(folder, "train_step")]
    assert counts == sorted(counts)
    assert counts[-1] == len(found) >= 2 * NUM_BAD
    assert all(event["reason"] for event in found)


def test_one_process_and_two_read_the_same_bad_videos(data, tmp_path):
    by_count = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        results = start(data, folder, keys=(BAD_KEYS,), count=count)
        assert [result.exitcode for result in results] == [0] * count, results[0].output
        steps = tiny.events(folder, "train_step")
        by_count[count] = [event["bad_videos"] for event in steps]
        assert results[0].output.count("unreadable video, another one taken") == NUM_BAD  # each path once
    assert by_count[1] == by_count[2]


def test_the_update_of_the_weights_counts_in_the_speed(data, tmp_path, monkeypatch):
    """That of a step comes after the figures of the step are told: it is in those of the next one."""
    update = TrainStep.update

    def slow_update(step, *args, **kwargs):
        time.sleep(0.2)
        update(step, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "update", slow_update)
    tiny.done(tiny.run_net(data, tmp_path, KEYS, BAD_KEYS))
    clips = 2 * tiny.TINY["TRAIN.BATCH_SIZE"]
    assert all(event["clips_per_second"] < clips / 0.2 for event in tiny.events(tmp_path, "train_step")[1:])


@pytest.mark.parametrize("num_steps", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_the_advice_on_waiting_for_data_comes_once(tmp_path, num_steps):
    """After the first hundred steps (here also ten), of which much of the time goes into reading."""
    data = run_config.write_training_set(tmp_path, 8)
    num_epochs = math.ceil((num_steps + 20) / 8)
    one = {"TRAIN.BATCH_SIZE": 1, "MIXUP.ENABLE": False, "MODEL.LOSS_FUNC": "cross_entropy"}
    folder = tmp_path / "run"
    troubles = [SlowReading(0.03), *([] if num_steps == 100 else [AdviceAfter(num_steps)])]
    (result,) = start(data, folder, *troubles, keys=(one, {"SOLVER.MAX_EPOCH": num_epochs}))
    assert result.exitcode == 0, result.output
    assert len(tiny.losses(folder)) == 8 * num_epochs >= num_steps + 20
    (event,) = tiny.events(folder, "data_wait")
    assert event["step"] == num_steps - 1
    assert f"of the last {num_steps} steps" in event["advice"]
    assert "DATA_LOADER.NUM_WORKERS" in event["advice"]
    assert "revvideo prepare_videos" in event["advice"]
    assert result.output.count(event["advice"]) == 1
    assert result.output.count("training waits for data") == 1
