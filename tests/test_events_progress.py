"""The diary of a run survives kills, progress is shown in one way only, and the process knows its place."""

import io
import json
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from revvideo.distributed.env import Process, current_process
from revvideo.engine.events import EventLog, last_per_step, read_events
from revvideo.engine.progress import Progress, duration
from revvideo.errors import InputError


def test_restart_numbers_and_reserved_names(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    for restart in range(3):
        with EventLog(path) as log:
            assert log.restart == restart
            log.write("start", note="ä <b>")
    events = list(read_events(path))
    assert [event["restart"] for event in events] == [0, 1, 2]
    assert all(event["kind"] == "start" and event["note"] == "ä <b>" and event["time"] > 1e9 for event in events)
    with EventLog(path, restart=7) as log, pytest.raises(ValueError, match="their own time"):
        log.write("step", time=3)


def test_a_half_written_line_is_skipped_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.write("step", step=1, loss=2.0)
        log.write("step", step=2, loss=1.5)
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        with EventLog(path) as log:
            log.write("step", step=9, loss=1.0)
        events = list(read_events(path))
        complete = whole[: cut + 1].count(b"\n") + (whole[:cut].count(b"}") > whole[: cut + 1].count(b"\n"))
        assert [event["step"] for event in events] == [1, 2][:complete] + [9], cut
        assert events[-1]["restart"] == (1 if complete else 0)


def test_a_failed_write_does_not_spoil_the_next_line(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    file = log._file

    class Full:
        def write(self, data):
            file.write(data[:10])
            raise OSError(28, "No space left on device")

    log._file = Full()
    with pytest.raises(OSError, match="No space"):
        log.write("step", step=1)
    log._file = file
    log.write("step", step=2)
    log.close()
    assert [event["step"] for event in read_events(path)] == [2]


def test_every_line_is_valid_json(tmp_path):
    path = tmp_path / "events.jsonl"
    values = {"nan": math.nan, "inf": -math.inf, "np": np.float32(0.5), "int": np.int64(3), "torch": torch.tensor(1.5)}
    with EventLog(path) as log:
        log.write("step", **values, array=np.arange(2), nested={"a": [float("inf"), (1, None, True)]}, path=path)

    def refuse(name):
        raise AssertionError(name)

    event = json.loads(path.read_text(), parse_constant=refuse)
    assert (event["nan"], event["inf"], event["np"], event["int"], event["torch"]) == ("nan", "-inf", 0.5, 3, 1.5)
    assert math.isnan(float(event["nan"]))
    assert (event["array"], event["nested"], event["path"]) == ([0, 1], {"a": ["inf", [1, None, True]]}, str(path))


def test_of_a_step_written_twice_the_last_line_counts():
    events = [
        {"kind": "step", "step": 1, "loss": 1.0},
        {"kind": "step", "step": 2, "loss": 0.9},
        {"kind": "checkpoint", "step": 1},
        {"kind": "start"},
        {"kind": "step", "step": 2, "loss": 0.8},
        {"kind": "step", "step": 3, "loss": 0.7},
    ]
    steps = [event for event in last_per_step(events) if event["kind"] == "step"]
    assert [(event["step"], event["loss"]) for event in steps] == [(1, 1.0), (2, 0.8), (3, 0.7)]
    assert len(last_per_step(events)) == 4


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(caplog, stream, steps, **arguments):
    logger = logging.getLogger("revvideo.test_progress")
    progress = Progress(steps, "train", log_period=4, logger=logger, stream=stream, **arguments)
    with caplog.at_level(logging.INFO, logger.name), progress:
        for step in range(arguments.get("initial", 0), steps):
            progress.update(loss=torch.tensor(1 / (step + 1)), lr=0.1)
    return [record.getMessage() for record in caplog.records]


def test_plain_lines_without_a_terminal(caplog):
    stream = io.StringIO()
    lines = shown(caplog, stream, 10)
    assert [line.split(",")[0] for line in lines] == ["train: 4/10", "train: 8/10", "train: 10/10"]
    assert "eta 0:00:0" in lines[0]
    assert "it/s" in lines[0]
    assert lines[0].endswith("loss 0.25, lr 0.1")
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal_and_no_lines(caplog):
    stream = Terminal()
    assert shown(caplog, stream, 10) == []
    assert "10/10" in stream.getvalue()
    assert "loss 0.1" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_disabled_shows_nothing(caplog, stream):
    assert shown(caplog, stream, 10, enabled=False) == []
    assert stream.getvalue() == ""


def test_resumed_progress_and_durations(caplog):
    lines = shown(caplog, io.StringIO(), 10, initial=7)
    assert [line.split(",")[0] for line in lines] == ["train: 8/10", "train: 10/10"]
    assert [duration(seconds) for seconds in (0, 59.6, 3723, 360000)] == ["0:00:00", "0:01:00", "1:02:03", "100:00:00"]


def test_the_process_knows_its_place():
    assert current_process({}) == Process(rank=0, world_size=1, local_rank=0)
    place = current_process({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "HOME": "/"})
    assert (place.rank, place.world_size, place.local_rank, place.is_main) == (5, 8, 1, False)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "incomplete: RANK='0', WORLD_SIZE not set, LOCAL_RANK not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "contradicts itself: RANK='2', WORLD_SIZE='2'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "contradicts itself"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "contradicts itself"),
        ({"RANK": "", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "not a whole number: RANK=''"),
    ],
)
def test_a_broken_environment_is_an_error_that_lists_it(environ, message):
    with pytest.raises(InputError, match=message):
        current_process(environ)


def test_these_modules_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import revvideo.engine.events, revvideo.engine.progress"
    code += ", revvideo.engine.schedule, revvideo.distributed.env"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
