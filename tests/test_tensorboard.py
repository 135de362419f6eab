"""TensorBoard shows what the events say: read back with its own reader."""

import logging
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from revvideo.engine.events import EventLog
from revvideo.engine.tensorboard import TensorBoardLog
from revvideo.errors import InputError

FIELDS = {"grad_norm": 2.0, "top1": 50.0, "clips_per_second": 8.5, "data_wait_share": 0.1, "peak_memory_mib": 512.0}
needs_tensorboard = pytest.mark.usefixtures("reader")


@pytest.fixture
def reader():
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    return module.EventAccumulator


@pytest.fixture
def read(reader):
    """A function: folder -> tag -> [(step, value)], everything that TensorBoard would draw."""

    def read_folder(folder):
        accumulator = reader(str(folder), size_guidance={"scalars": 0}).Reload()
        tags = accumulator.Tags()["scalars"]
        return {tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in tags}

    return read_folder


def train(log: EventLog, steps, factor: float = 1.0) -> None:
    for step in steps:
        log.write("train_step", step=step, epoch=step // 4, loss=factor * step, lr=1e-5, **FIELDS)


def train_losses(factor: float, steps) -> list[tuple[int, float]]:
    return [(step, factor * step) for step in steps]


def opened(run, **arguments) -> EventLog:
    return EventLog(run / "events.jsonl", listeners=[TensorBoardLog(run / "tensorboard", **arguments)])


@needs_tensorboard
def test_what_is_drawn(tmp_path, read):
    with opened(tmp_path) as log:
        log.write("start", command=["x"])
        train(log, range(3))
        others = {"top5_acc": None, "failed": [{"path": "a"}], "strict": True}
        log.write("validation", epoch=0, step=3, weights="raw", top1_acc=12.5, num_videos=8, **others)
        log.write("validation", epoch=0, step=3, weights="ema", top1_acc=25.0, num_videos=8, **others)
        log.write("train_step", step=3, epoch=0, loss=math.nan, lr=0.5)
        log.write("validation", epoch=1, step=4, weights="raw", top1_acc=13.5)
    found = read(tmp_path / "tensorboard")
    losses = found["train/loss"]
    assert losses[:3] == train_losses(1.0, range(3))
    assert losses[3][0] == 3
    assert math.isnan(losses[3][1])
    assert found["train/lr"] == [(step, np.float32(1e-5)) for step in range(3)] + [(3, 0.5)]
    for name, value in FIELDS.items():
        assert found[f"train/{name}"] == [(step, np.float32(value)) for step in range(3)], name
    assert found["validation/top1_acc"] == [(2, 12.5), (3, 13.5)]
    assert found["validation_ema/top1_acc"] == [(2, 25.0)]
    assert found["validation/num_videos"] == [(2, 8.0)]
    expected = {"loss", "lr", *FIELDS}
    assert {tag for tag in found if tag.startswith("train/")} == {f"train/{name}" for name in expected}
    figures = {f"{prefix}/{name}" for prefix in ("validation", "validation_ema") for name in ("top1_acc", "num_videos")}
    assert {tag for tag in found if tag.startswith("validation")} == figures


@needs_tensorboard
def test_points_stand_at_the_time_of_their_event(tmp_path, reader):
    with opened(tmp_path) as log:
        TensorBoardLog(tmp_path / "other")  # makes nothing by itself
        heard = []
        log.listeners += (heard.append,)
        train(log, range(2))
    points = reader(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [point.wall_time for point in points] == [event["time"] for event in heard]
    assert not (tmp_path / "other").exists()


@needs_tensorboard
@pytest.mark.parametrize("explicit", [False, True])
def test_a_restart_takes_the_place_of_the_steps_after_it(tmp_path, read, explicit):
    """Three starts within a second; each begins before the last one's end."""
    starts = [(1.0, range(0, 8)), (10.0, range(5, 9)), (100.0, range(3, 6))]
    for factor, steps in starts:
        purge = {"purge_step": steps[0]} if explicit and factor > 1 else {}
        with opened(tmp_path, **purge) as log:
            train(log, steps, factor)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    expected = train_losses(1.0, range(3)) + train_losses(100.0, range(3, 6))
    assert read(tmp_path / "tensorboard")["train/loss"] == expected


@needs_tensorboard
@pytest.mark.parametrize("validated", [True, False])
def test_a_restart_at_a_validation_loses_and_doubles_nothing(tmp_path, read, validated):
    """The checkpoint after step 3, the end of an epoch, is from after its validation or from before it."""
    with opened(tmp_path) as log:
        train(log, range(4))
        if validated:
            log.write("validation", epoch=0, step=4, top1_acc=20.0)
        train(log, range(4, 7), 10.0)
    with opened(tmp_path) as log:
        if not validated:
            log.write("validation", epoch=0, step=4, top1_acc=20.0)
        train(log, range(4, 6))
    found = read(tmp_path / "tensorboard")
    assert found["train/loss"] == train_losses(1.0, range(6))
    assert found["validation/top1_acc"] == [(3, 20.0)]


@needs_tensorboard
def test_a_roll_back_takes_the_place_of_what_it_undoes(tmp_path, read):
    with opened(tmp_path) as log:
        train(log, range(6))
        train(log, range(2, 5), 10.0)
    assert read(tmp_path / "tensorboard")["train/loss"] == train_losses(1.0, range(2)) + train_losses(10.0, range(2, 5))


@needs_tensorboard
def test_what_came_before_a_checkpoint_survives_a_kill(tmp_path, read):
    """A kill leaves the file as it is; half a record at its end hides nothing of the next file."""
    log = opened(tmp_path)
    train(log, range(5))
    log.write("checkpoint", step=4)
    train(log, range(5, 7))  # waits in memory, and is lost
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert read(tmp_path / "tensorboard")["train/loss"] == train_losses(1.0, range(5))
    os.truncate(file, file.stat().st_size - 7)
    with opened(tmp_path) as later:
        train(later, range(4, 6), 10.0)
    assert read(tmp_path / "tensorboard")["train/loss"] == train_losses(1.0, range(4)) + train_losses(10.0, range(4, 6))
    log.close()


class SmallDisk:
    """The listener's file on a disk that has `room` for so many more bytes."""

    def __init__(self, curves: TensorBoardLog, room: int):
        curves.flush()
        self.file, self.room = curves._file, room
        curves._file = self

    def write(self, data) -> int:
        if self.room == 0:
            raise OSError(28, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return written

    def close(self) -> None:
        self.file.close()


@needs_tensorboard
@pytest.mark.parametrize("room", [0, 1, 13, 300])
def test_a_full_disk_is_one_warning_and_loses_nothing(tmp_path, read, caplog, monkeypatch, room):
    monkeypatch.setattr("revvideo.engine.tensorboard.WRITE_SECONDS", 0.0)
    with opened(tmp_path) as log:
        train(log, range(2))
        disk = SmallDisk(log.listeners[0], room)
        train(log, range(2, 6))
        disk.room = 10**6
        train(log, range(6, 8))
    assert read(tmp_path / "tensorboard")["train/loss"] == train_losses(1.0, range(8))
    (warning,) = caplog.messages
    assert "TensorBoardLog failed" in warning
    assert "No space left" in warning


@needs_tensorboard
def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("revvideo.engine.tensorboard.WRITE_SECONDS", 0.0)
    (tmp_path / "tensorboard").write_text("a file is in the way")
    with opened(tmp_path) as log:
        train(log, range(5))
    (warning,) = caplog.messages
    assert "TensorBoardLog failed" in warning


@needs_tensorboard
def test_memory_is_limited_while_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("revvideo.engine.tensorboard.MAX_WAITING_BYTES", 1000)
    with opened(tmp_path) as log:
        train(log, range(200))
        assert len(log.listeners[0]._waiting) < 2000


def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"pip install revvideo\[tensorboard\].*TENSORBOARD\.ENABLE False"):
        TensorBoardLog(tmp_path)


@needs_tensorboard
def test_neither_torch_nor_tensorflow_is_loaded(tmp_path):
    code = "import sys; from revvideo.engine.tensorboard import TensorBoardLog\n"
    code += f"log = TensorBoardLog({str(tmp_path)!r})\n"
    code += "log({'kind': 'train_step', 'step': 0, 'time': 1.0, 'loss': 2.0}); log.close()\n"
    code += "assert not {'torch', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
