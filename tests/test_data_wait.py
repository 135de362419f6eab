"""Training that waits for data is told to the user once, with what helps."""

import logging
import re

import pytest

from revvideo.engine.data_wait import DataWait

logger = logging.getLogger("revvideo.test_data_wait")


def advised_at(waits, **arguments) -> list[int]:
    """Numbers of the steps, of a second each, after which there was advice."""
    watch = DataWait(logger, **arguments)
    return [number for number, wait in enumerate(waits) if watch.add(wait, 1.0) is not None]


def test_advice_comes_once_and_after_the_whole_window(caplog):
    assert advised_at([0.21] * 500) == [99]
    assert len(caplog.messages) == 1
    assert "21% of the time of the last 100 steps" in caplog.messages[0]


@pytest.mark.parametrize("waits", [[0.19] * 500, [1.0] * 99, ([0.9] * 20 + [0.0] * 80) * 5, []])
def test_no_advice_below_the_limit_or_before(waits, caplog):
    assert advised_at(waits) == []
    assert caplog.messages == []


def test_only_the_last_steps_count():
    """After long quiet, half of each step: the fifth such step of ten brings the share above a fifth."""
    assert advised_at([0.0] * 90 + [0.5] * 50, steps=10) == [94]


def test_the_share_is_one_of_time_not_of_steps():
    watch = DataWait(logger, steps=4)
    for _ in range(10):
        for wait, seconds in ((0.9, 1.0), (0.0, 9.0)):  # 90 % of the first, 9 % of the time
            assert watch.add(wait, seconds) is None


@pytest.mark.parametrize(
    ("num_workers", "num_processes", "expected"),
    [
        (2, 1, r": raise DATA_LOADER\.NUM_WORKERS \(8 cores, now 2\), or .*prepare_videos"),
        (1, 4, r": raise DATA_LOADER\.NUM_WORKERS for each of 4 processes \(8 cores, now 1\), or .*prepare_videos"),
        (0, 16, r": raise DATA_LOADER\.NUM_WORKERS for each of 16 processes \(8 cores, now 0\), or .*prepare_videos"),
        (None, 1, r": raise DATA_LOADER\.NUM_WORKERS \(8 cores\), or .*prepare_videos"),
        (8, 1, r", and DATA_LOADER\.NUM_WORKERS \(8 cores, now 8\) leaves no core idle: re-encode .*prepare_videos"),
    ],
)
def test_the_advice_knows_the_cores(num_workers, num_processes, expected):
    watch = DataWait(logger, steps=1, num_workers=num_workers, num_processes=num_processes, num_cores=8)
    advice = watch.add(0.5, 1.0)
    assert re.search(expected, advice), advice


def test_the_cores_of_this_process_are_found():
    assert DataWait(logger).num_cores >= 1
