"""When the state of a training goes to the disk, and what happens when the disk does not take it."""

import logging
import time
from pathlib import Path

from revvideo.engine.checkpoint import checkpoint_name, load_checkpoint
from revvideo.engine.checkpoint_folder import CheckpointFolder
from revvideo.engine.events import EventLog
from revvideo.engine.training_state import TrainingState
from revvideo.errors import NotSaved

logger = logging.getLogger(__name__)

FINAL_TRIES = 5
RETRY_SECONDS = 60.0


class Saver:
    """Writes checkpoints of a training and goes back to them; all processes call it, the first one writes.

    Args:
        state: of the training.
        checkpoints: where to.
        events: the diary; it gets `checkpoint` and `resume`.
        minutes: a checkpoint is due when the last one is so old; 0: never.
        retry_seconds: one that could not be written is due again after so long.

    Attributes:
        last: the checkpoint that training would go on from, of those that it has written or begun with; others may lie
            in the folder.
    """

    def __init__(
        self,
        state: TrainingState,
        checkpoints: CheckpointFolder,
        events: EventLog,
        *,
        minutes: float = 0.0,
        retry_seconds: float = RETRY_SECONDS,
    ):
        self.state, self.checkpoints, self.events = state, checkpoints, events
        self.minutes, self.retry_seconds = minutes, retry_seconds
        self.last: Path | None = None
        self._saved_at = time.monotonic()
        self._retry_at: float | None = None

    def due(self) -> bool:
        """Whether it is time, by the clock of the first process; False in the others."""
        if not self.state.group.is_main:
            return False
        now = time.monotonic()
        if self._retry_at is not None:
            return now >= self._retry_at
        return self.minutes > 0 and now - self._saved_at >= 60.0 * self.minutes

    def save(self, *, is_best: bool = False, tries: int = 1) -> Path | None:
        """Write a checkpoint of the present position.

        A write that fails is told, noted, and due again later.

        Args:
            is_best: the validation right before was the best so far: the checkpoint is kept, and linked to.
            tries: so often at once, 0.5 s and more between them.

        Returns:
            The file, in the first process; None where it was not written.
        """
        began = time.monotonic()
        content = self.state.content(is_best=is_best)
        if content is None:
            return None
        position = self.state.position
        path = self._write(checkpoint_name(position.epoch - 1, position.steps), content, tries)
        now = time.monotonic()
        if path is None:
            self._retry_at = now + self.retry_seconds
            return None
        self._saved_at, self._retry_at, self.last = now, None, path
        where = {"epoch": position.epoch - 1, "step": position.step, "path": str(path)}
        self.events.write("checkpoint", **where, seconds=round(now - began, 3))
        logger.info("checkpoint after step %d: %s", position.step, path)
        if is_best:
            self.checkpoints.mark_best(path)
        return path

    def save_surely(self, why: str, *, is_best: bool = False) -> None:
        """`save`, before the process ends.

        Args:
            why: it ends, for the message.
            is_best: see `save`.

        Raises:
            NotSaved: it could not be written; in all processes.
        """
        group = self.state.group
        written = self.save(is_best=is_best, tries=FINAL_TRIES) is not None
        if group.any(written, "checkpoint written"):
            return
        last = group.broadcast(self.last, "last checkpoint")
        raise NotSaved(
            f"{why}, but no checkpoint could be written to {self.checkpoints.folder} in {FINAL_TRIES} tries "
            f"({self.events.path} has the reasons); with room on the disk the same command goes on from "
            f"{'the start' if last is None else last}"
        )

    def _write(self, name: str, content: dict, tries: int) -> Path | None:
        with self.state.group.uninterrupted():
            path = self.checkpoints.save(name, content)
            for number in range(1, tries):
                if path is not None:
                    break
                time.sleep(2.0 ** (number - 2))
                path = self.checkpoints.save(name, content)
        return path

    def resume(self, path: Path) -> None:
        """Continue exactly where a checkpoint of this run was written.

        Raises:
            InputError: the checkpoint is of another model or optimizer.
        """
        content = load_checkpoint(path)
        self.state.restore(content, source=path)
        self.last = path
        if content.get("is_best") and self.state.group.is_main:
            self.checkpoints.mark_best(path)  # a kill may have come between the file and the link
        position = self.state.position
        self.events.write("resume", path=str(path), epoch=position.epoch - 1, step=position.step)
        where = f"{position.steps} steps of epoch {position.epoch + 1}" if position.steps else f"epoch {position.epoch}"
        logger.info("resumed after %s from %s", where, path)
