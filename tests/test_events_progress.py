"""The diary of a run survives kills and full disks and ends nothing; progress is shown in one way only."""

import io
import json
import logging
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from revvideo.engine.events import EventLog, last_per_step, read_events
from revvideo.engine.progress import Progress, duration


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


class SmallDisk:
    """The log's file on a disk that has `room` for so many more bytes."""

    def __init__(self, log: EventLog, room: int):
        self.file, self.room = log._file, room
        log._file = self

    def write(self, data: bytes) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def close(self) -> None:
        self.file.close()


def test_what_a_full_disk_refuses_is_written_later(tmp_path, caplog):
    """Wherever a line is cut: each event is in the file once, in order, with one warning."""
    caplog.set_level(logging.INFO)
    with EventLog(tmp_path / "length.jsonl") as log:
        log.write("step", step=0)
    length = (tmp_path / "length.jsonl").stat().st_size + 4  # the time may be written with fewer digits
    for room in range(length):
        caplog.clear()
        path = tmp_path / f"{room}.jsonl"
        with EventLog(path) as log:
            log.write("start")
            disk = SmallDisk(log, room)
            for step in range(3):
                log.write("step", step=step)
            disk.room = 10**6
            log.write("step", step=3)
            log.write("step", step=4)
        events = list(read_events(path))
        assert [event.get("step") for event in events] == [None, 0, 1, 2, 3, 4], room
        assert [event["time"] for event in events] == sorted(event["time"] for event in events)
        messages = [(record.levelname, record.getMessage()) for record in caplog.records]
        assert [level for level, _ in messages] == ["WARNING", "INFO"], messages
        assert "No space left" in messages[0][1]
        assert str(path) in messages[0][1]


def test_more_than_memory_may_hold_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("revvideo.engine.events.MAX_WAITING", 10)
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.write("step", step=0)
        disk = SmallDisk(log, 0)
        for step in range(1, 26):
            log.write("step", step=step)
        disk.room = 10**6
        log.write("step", step=26)
    events = list(read_events(path))
    assert [event.get("step") for event in events] == [0, None, *range(17, 27)]
    assert (events[1]["kind"], events[1]["count"]) == ("events_lost", 16)


def test_a_disk_that_stays_full_ends_nothing(tmp_path, caplog):
    log = EventLog(tmp_path / "events.jsonl")
    SmallDisk(log, 5)
    for step in range(3):
        log.write("step", step=step)
    log.close()
    log.close()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "3 events are lost" in caplog.messages[1]
    assert list(read_events(log.path)) == []
    with pytest.raises(ValueError, match="closed"):
        log.write("step", step=3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_without_room(caplog):
    """The operating system's own error, not one that a test makes."""
    with EventLog("/dev/full", restart=0) as log:
        log.write("step", step=0)
    assert "No space left" in caplog.messages[0]


def test_listeners_are_told_everything_and_end_nothing(tmp_path, caplog):
    class Curves:
        told, closed = 0, 0

        def __call__(self, event):
            self.told += 1
            raise OSError(28, "No space left on device")

        def close(self):
            self.closed += 1
            raise RuntimeError("not twice")

    heard, curves = [], Curves()
    path = tmp_path / "events.jsonl"
    with EventLog(path, listeners=[curves, heard.append]) as log:
        for step in range(3):
            log.write("step", step=step, loss=torch.tensor(math.nan))
    assert heard == list(read_events(path))
    assert [event["step"] for event in heard] == [0, 1, 2]
    assert (curves.told, curves.closed) == (3, 1)
    (warning,) = caplog.messages
    assert "Curves failed (OSError" in warning


def test_a_listener_is_told_what_the_disk_refuses(tmp_path):
    heard = []
    log = EventLog(tmp_path / "events.jsonl", listeners=[heard.append])
    SmallDisk(log, 0)
    log.write("step", step=0)
    log.close()
    assert [event["step"] for event in heard] == [0]


def test_the_diary_of_another_rank_writes_nothing(tmp_path):
    path, heard = tmp_path / "run" / "events.jsonl", []
    with EventLog(path, listeners=[heard.append], enabled=False) as log:
        log.write("step", step=0)
        with pytest.raises(ValueError, match="their own time"):
            log.write("step", time=3)
    assert not path.parent.exists()
    assert heard == []


def test_names_that_are_no_text(tmp_path):
    """A file name of other bytes than UTF-8 comes back as it was."""
    name = os.fsdecode(b"a\xff\xe9.mp4")
    with EventLog(tmp_path / "events.jsonl") as log:
        log.write("bad_video", path=name)
    (event,) = read_events(log.path)
    assert os.fsencode(event["path"]) == b"a\xff\xe9.mp4"


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


def test_a_terminal_without_columns_gets_lines(caplog):
    """A pseudo-terminal that nobody has given a size, as in containers: tqdm would show nothing."""
    near, far = os.openpty()
    with os.fdopen(near, "w"), os.fdopen(far, "w") as stream:
        assert stream.isatty()
        assert len(shown(caplog, stream, 8)) == 2


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_disabled_shows_nothing(caplog, stream):
    assert shown(caplog, stream, 10, enabled=False) == []
    assert stream.getvalue() == ""


def test_resumed_progress_and_durations(caplog):
    lines = shown(caplog, io.StringIO(), 10, initial=7)
    assert [line.split(",")[0] for line in lines] == ["train: 8/10", "train: 10/10"]
    assert [duration(seconds) for seconds in (0, 59.6, 3723, 360000)] == ["0:00:00", "0:01:00", "1:02:03", "100:00:00"]


def test_time_to_the_end_of_the_run(caplog, monkeypatch):
    """Two steps a second: 8 more steps of this epoch, 7192 of the run."""
    clock = [0.0]
    monkeypatch.setattr("revvideo.engine.progress.time.monotonic", lambda: clock[0])
    logger = logging.getLogger("revvideo.test_progress")
    stream, terminal = io.StringIO(), Terminal()
    lines = Progress(12, "train", log_period=1, logger=logger, stream=stream, total_remaining=7192)
    alone = Progress(12, "alone", log_period=1, logger=logger, stream=stream)
    with Progress(12, "bar", log_period=1, logger=logger, stream=terminal, total_remaining=7192) as bar:
        clock[0] = 2.0
        with caplog.at_level(logging.INFO, logger.name):
            for progress in (lines, alone, bar):
                progress.update(4, loss=0.5)
    assert caplog.messages == [
        "train: 4/12, eta 0:00:04 (run 1:00:00), 2.00 it/s, loss 0.5",
        "alone: 4/12, eta 0:00:04, 2.00 it/s, loss 0.5",
    ]
    assert "run 1:00:00, loss 0.5" in terminal.getvalue()


def test_a_terminal_that_goes_away_does_not_end_the_loop(caplog):
    """A closed window or a broken connection: tqdm then says nothing more."""
    writes = []

    class Gone(Terminal):
        def write(self, text):
            writes.append(text)
            raise OSError(5, "Input/output error")

    assert shown(caplog, Gone(), 10) == []
    assert writes


def test_these_modules_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import revvideo.engine.events, revvideo.engine.progress"
    code += ", revvideo.engine.schedule, revvideo.engine.data_wait"
    code += ", revvideo.engine.bad_videos, revvideo.engine.tensorboard"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
