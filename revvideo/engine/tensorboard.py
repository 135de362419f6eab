"""The curves of a run for TensorBoard, drawn from the events: a listener of `EventLog`.

The records are written here rather than by torch's SummaryWriter. Its thread dies at the first error of the disk, with
a traceback and all that it held; it holds up to two minutes back, which a kill takes; and it loads TensorFlow where
that is installed. Format: a TFRecord file of `Event` messages, made by the package tensorboard's own classes.
"""

import io
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from revvideo.errors import InputError

TRAIN_SCALARS = ("loss", "lr", "grad_norm", "top1", "clips_per_second", "data_wait_share", "peak_memory_mib")
NOT_FIGURES = {"kind", "time", "restart", "step", "epoch", "weights"}
WRITE_SECONDS = 5.0  # records wait in memory for so long, or until a checkpoint is there
MAX_WAITING_BYTES = 16 * 2**20  # while the disk is full
_FILE_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\.")


class TensorBoardLog:
    """Writes the scalars of `train_step` and `validation` events as TensorBoard reads them.

    The horizontal axis is the number of the optimizer step, from 0. The `step` of a validation counts the steps made
    before it, so it stands at the last of them; the next step, after a restart too, leaves it where it is. A step that
    comes again, after a restart from a checkpoint or a roll-back, takes the place of its first time and of all that
    followed it. Tags: `train/loss` and so on; `validation/top1_acc` and so on, and where `weights` names others than
    the raw ones, `validation_ema/top1_acc`.

    Args:
        folder: of the event files; one more is made there with the first scalar.
        purge_step: hide what earlier files hold from this step on; None: from the first step that is told.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike, purge_step: int | None = None):
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise InputError(
                f"TENSORBOARD.ENABLE is True, but the package tensorboard cannot be used ({error}); install it with "
                "`pip install revvideo[tensorboard]`, or set TENSORBOARD.ENABLE False"
            ) from error
        self._event, self._session_log, self._summary, self._record_writer = Event, SessionLog, Summary, RecordWriter
        self.folder = Path(folder)
        self._purge_step = purge_step
        self._last_step: int | None = None  # trained in this process
        self._file: io.FileIO | None = None
        self._waiting = bytearray()  # from the first byte that is not in the file
        self._tried = -WRITE_SECONDS

    def __call__(self, event: dict) -> None:
        """Take an event.

        Raises:
            OSError: the file cannot be written; what waits is tried again some seconds later.
        """
        if event["kind"] == "train_step":
            self._add_train_step(event)
        elif event["kind"] == "validation":
            self._add_validation(event)
        if self._waiting and (event["kind"] == "checkpoint" or time.monotonic() - self._tried >= WRITE_SECONDS):
            self.flush()

    def _add_train_step(self, event: dict) -> None:
        step, is_first = event["step"], self._last_step is None
        if is_first:
            self._begin(step if self._purge_step is None else self._purge_step, event["time"])
        elif step <= self._last_step:
            self._purge(step, event["time"])
        self._last_step = step
        self._add("train", step, event["time"], {name: event[name] for name in TRAIN_SCALARS if name in event})

    def _add_validation(self, event: dict) -> None:
        steps_made = event["step"]
        if self._last_step is None:  # resumed between the last step of an epoch and its validation
            self._begin(steps_made if self._purge_step is None else self._purge_step, event["time"])
            self._last_step = steps_made - 1
        weights = event.get("weights", "raw")
        prefix = "validation" if weights == "raw" else f"validation_{weights}"
        figures = {name: value for name, value in event.items() if name not in NOT_FIGURES}
        self._add(prefix, steps_made - 1, event["time"], figures)

    def _begin(self, purge_step: int, seconds: float) -> None:
        continues = self._purge_step is not None or bool(self._earlier_files())
        self._add_record(self._event(wall_time=seconds, file_version="brain.Event:2"))
        if continues:
            self._purge(purge_step, seconds)

    def _purge(self, step: int, seconds: float) -> None:
        start = self._session_log(status=self._session_log.START)
        self._add_record(self._event(wall_time=seconds, step=step, session_log=start))

    def _add(self, prefix: str, step: int, seconds: float, figures: dict) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in _numbers(prefix, figures)]
        self._add_record(self._event(wall_time=seconds, step=step, summary=self._summary(value=values)))

    def _add_record(self, event) -> None:
        if len(self._waiting) < MAX_WAITING_BYTES:  # more is given up: events.jsonl is the truth
            record = io.BytesIO()
            self._record_writer(record).write(event.SerializeToString())
            self._waiting += record.getvalue()

    def flush(self) -> None:
        """Write what waits. A record that was cut by an error is completed by the next call.

        Raises:
            OSError: the file cannot be made or written.
        """
        self._tried = time.monotonic()
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = io.FileIO(self.folder / self._new_name(), "x")
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]

    def _new_name(self) -> str:
        """TensorBoard reads the files of a folder in the order of their names, so this one comes after all others."""
        seconds = max([int(time.time()), *(second + 1 for second in self._earlier_files())])
        return f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.revvideo"

    def _earlier_files(self) -> list[int]:
        """The time in the name of each event file in the folder."""
        if not self.folder.is_dir():
            return []
        return [int(found[1]) for path in self.folder.iterdir() if (found := _FILE_NAME.match(path.name))]

    def close(self) -> None:
        """Write what waits and close the file; closing twice is harmless.

        Raises:
            OSError: the last records could not be written.
        """
        try:
            if self._waiting:
                self.flush()
        finally:
            self._waiting.clear()
            if self._file is not None:
                self._file.close()


def _numbers(prefix: str, figures: dict) -> Iterator[tuple[str, float]]:
    """(tag, value) of the numbers among `figures`."""
    for name, value in figures.items():
        if (isinstance(value, (int, float)) and not isinstance(value, bool)) or value in ("nan", "inf", "-inf"):
            yield f"{prefix}/{name}", float(value)
