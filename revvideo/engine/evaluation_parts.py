"""Scores on the disk while an evaluation runs, so that one that was killed goes on where it was.

A part holds the scores of some videos, whole batches of them (video_batches.py): `videos_0000016.npz`, named by the
first. All parts lie in a folder that is named by what decides the scores, so that no other evaluation takes them.
"""

import logging
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from revvideo.engine.metrics import VideoScores
from revvideo.paths import replace_file

logger = logging.getLogger(__name__)

# What a file that is cut off, of another format or of other arrays raises. RuntimeError: zipfile, where a flipped bit
# says that a member is encrypted or packed by a method that it does not know.
UNREADABLE = (OSError, EOFError, ValueError, KeyError, IndexError, AssertionError, RuntimeError, zipfile.BadZipFile)


class EvaluationParts:
    """The parts of one evaluation that one process writes; see above.

    Args:
        folder: of this evaluation; made with the first part.
        flush_videos: most videos that a kill costs a process (EVAL.FLUSH_VIDEOS), or a batch where that has more.
        videos_per_batch: videos that are finished at a time.
    """

    def __init__(self, folder: Path, *, flush_videos: int, videos_per_batch: int):
        self.folder, self.flush_videos, self.videos_per_batch = folder, flush_videos, videos_per_batch
        self._waiting: list[int] = []
        self._failing = False

    def read(self, scores: VideoScores, paths: Sequence[str], labels: Sequence[int]) -> None:
        """Put into `scores` what earlier starts have written; a damaged part is left out, with a warning.

        Args:
            scores: of this evaluation.
            paths, labels: of the list, by index.
        """
        for path in sorted(self.folder.glob("videos_*.npz")):
            try:
                with np.load(path) as file:  # allow_pickle is off
                    scores.restore(dict(file), paths, labels)
            except UNREADABLE as error:
                logger.warning("%s cannot be used, its videos are evaluated again: %s", path, error)

    def add(self, scores: VideoScores, indices: Sequence[int]) -> None:
        """A batch of videos is finished: write, where the next one would be too much to lose."""
        self._waiting += indices
        if len(self._waiting) + self.videos_per_batch > self.flush_videos:
            self.flush(scores)

    def flush(self, scores: VideoScores) -> None:
        """Write what waits. A disk that cannot be written is one warning; the next flush tries again."""
        if not self._waiting:
            return
        portion = scores.portion(self._waiting)

        def write(path: Path) -> None:
            with open(path, "wb") as file:  # given a path, numpy would add .npz to it
                np.savez(file, **portion)

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / f"videos_{min(self._waiting):07d}.npz", write, durable=True)
        except OSError as error:
            if not self._failing:
                logger.warning("%s cannot be written (%s): a kill would lose this evaluation", self.folder, error)
            self._failing = True
            return
        self._waiting, self._failing = [], False

    def remove(self) -> None:
        """Delete the parts: the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)
