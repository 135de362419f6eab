"""The folder of a run's checkpoints: which one is good, which ones are kept, and what happens when none can be written.

Only one process of a run writes here. Whenever it dies, the newest checkpoint that it had completed is there, whole:
files are replaced, never changed, and old ones are deleted only when a newer one is safe on the disk.
"""

import contextlib
import logging
import os
from pathlib import Path

from revvideo.engine.checkpoint import (
    checkpoint_position,
    latest_checkpoint,
    list_checkpoints,
    save_checkpoint,
    warn_of_passed_over,
)
from revvideo.engine.checksums import SUFFIX, checksum_path
from revvideo.engine.events import EventLog
from revvideo.errors import InputError
from revvideo.paths import sync_folder

logger = logging.getLogger(__name__)

BEST_NAME = "best.pyth"  # nothing with "checkpoint" in it: PySlowFast would take it for the newest one
LEFTOVERS = ".*.pyth*.tmp"


class CheckpointFolder:
    """Writes checkpoints into a folder, keeps the newest ones and the best, and finds the newest valid one.

    Args:
        folder: local; made when the first checkpoint is written.
        keep: how many of the newest to keep, besides the best; 0: all.
        events: takes `checkpoint_failed` (path, reason), `checkpoint_passed_over` (path, reason) and
            `checkpoint_not_deleted` (path, reason).
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int, events: EventLog | None = None):
        assert keep >= 0, keep
        self.folder, self.keep, self.events = Path(folder), keep, events
        self._best: str | None = None  # what the link should say, also where it could not be made
        self._failing = False  # since the last checkpoint that could be written
        self._passed_over: set[str] = set()  # names that `latest` has found damaged
        self._warned: set[str] = set()  # what the log has been told once

    def save(self, name: str, state: dict) -> Path | None:
        """Write a checkpoint; then delete those that need not be kept.

        Args:
            name: of `checkpoint_name`.
            state: of `checkpoint_state`.

        Returns:
            Its path, or None if it could not be written: the disk is full, read-only, ... Then the older ones are as
            they were, every failure is an event, and the first of a series a warning.

        Raises:
            TypeError: something in `state` could not be read back; it is named.
        """
        path = self.folder / name
        assert checkpoint_position(path) is not None, name
        self._delete_leftovers()
        try:
            save_checkpoint(path, state)
        except OSError as error:
            self._failed(path, error)
            return None
        if self._failing:
            logger.info("checkpoints can be written again: %s", path)
        self._failing = False
        self._passed_over.discard(name)
        self._prune(path)
        return path

    def mark_best(self, path: Path) -> None:
        """Point the link `best.pyth` at a checkpoint of this folder, which is kept from now on; the one before is not.

        A link that cannot be made is one warning, and an event `checkpoint_failed`; this process keeps the checkpoint
        all the same.
        """
        assert path.parent == self.folder, path
        self._best = path.name
        temporary = self.folder / f".{BEST_NAME}.tmp"
        try:
            temporary.unlink(missing_ok=True)
            os.symlink(path.name, temporary)  # relative: the run's folder may move
            os.replace(temporary, self.folder / BEST_NAME)
            sync_folder(self.folder)
        except OSError as error:
            path = self.folder / BEST_NAME
            self._warn_once("best", f"could not make the link {path}: {error.strerror}; a restart cannot tell the best")
            self._event("checkpoint_failed", path, error)

    def best(self) -> Path | None:
        """The checkpoint that was marked as the best one, by this process or an earlier one; None if there is none."""
        name = self._best
        if name is None:
            with contextlib.suppress(OSError):  # no link, or a plain file in its place, as some ways of copying leave
                name = os.readlink(self.folder / BEST_NAME)
        path = self.folder / name if name else None
        return path if path is not None and path.parent == self.folder and path.is_file() else None

    def latest(self) -> Path | None:
        """The newest valid checkpoint by epochs and steps, or None; each one passed over is a warning and an event.

        Raises:
            InputError: the folder cannot be read.
        """
        return latest_checkpoint(self.folder, passed_over=self._pass_over)

    def _pass_over(self, path: Path, error: InputError) -> None:
        if path.name not in self._passed_over:
            self._passed_over.add(path.name)
            warn_of_passed_over(path, error)
            self._event("checkpoint_passed_over", path, error)

    def _prune(self, saved: Path) -> None:
        """Delete what need not be kept now that `saved` is safe, and checksums whose checkpoint is gone.

        Files that are newer by their name are none of this course of training (it began anew, or from an older
        checkpoint): they are neither counted nor touched.
        """
        position, best = checkpoint_position(saved), self.best()
        paths = list_checkpoints(self.folder)
        newer = [path for path in paths if checkpoint_position(path) > position and path.name not in self._passed_over]
        if newer:
            self._warn_once(
                "newer",
                f"{newer[0]} is of a later step than {saved.name}, which has just been written: an earlier run's? "
                f"It stays ({len(newer)} such), and a restart with TRAIN.AUTO_RESUME would go on from it",
            )
        older = [path for path in paths if checkpoint_position(path) <= position]
        whole = [path for path in older if path.name not in self._passed_over]
        keep = {saved, best, *(whole[: self.keep] if self.keep else whole)}
        for path in older:
            if path not in keep and not (self.keep == 0 and path.name in self._passed_over):
                self._delete(path)
        left = {checksum_path(path) for path in list_checkpoints(self.folder)}
        for path in self.folder.glob(f"epoch_*.pyth{SUFFIX}"):
            if path not in left:
                self._delete(path)

    def _delete_leftovers(self) -> None:
        """Delete the half-written files that a kill has left, before the next one needs their room."""
        for path in self.folder.glob(LEFTOVERS):
            self._delete(path)

    def _delete(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._warn_once("not deleted", f"could not delete {path}: {error.strerror}")
            self._event("checkpoint_not_deleted", path, error)

    def _failed(self, path: Path, error: OSError) -> None:
        if not self._failing:
            logger.warning(
                "could not write %s: %s; the checkpoints before it are untouched, and the next one is tried when it is "
                "due (said once; events.jsonl names each failure)",
                path,
                error.strerror or error,
            )
        self._failing = True
        self._event("checkpoint_failed", path, error)

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", message)

    def _event(self, kind: str, path: Path, error: Exception) -> None:
        if self.events is not None:
            self.events.write(kind, path=str(path), reason=str(error))
