"""Videos that training could not use: named once, recorded always, and too many of them end the run."""

import logging
from collections.abc import Sequence

from revvideo.engine.events import EventLog
from revvideo.errors import CheckFailed

logger = logging.getLogger(__name__)

NAMED = 20  # in the log; events.jsonl names all
NAMED_IN_ERROR = 3


class BadVideos:
    """Counts the videos that training asks for and those of them that could not be read.

    Every process of a run may hold one and give it the same lists; only the one whose diary is enabled logs.

    Args:
        events: the diary; it gets `bad_video` and `damaged_video`, one for each time that one was asked for.
        max_fraction: training stops when a larger share of the videos asked for could not be read
            (LOADER.MAX_BAD_FRACTION).
        min_judged: ... but not before so many were asked for.

    Attributes:
        asked: videos asked for since the start of training, those that were replaced included.
        bad: those of them that could not be read.
    """

    def __init__(self, events: EventLog, *, max_fraction: float, min_judged: int):
        self.events, self.max_fraction, self.min_judged = events, max_fraction, min_judged
        self.asked = self.bad = 0
        self._warned: set[str] = set()  # paths that the log has named
        self._first: dict[str, str] = {}  # path -> reason, of the first unreadable ones

    def add(self, asked: int, bad: Sequence[tuple[str, str]], damaged: Sequence[tuple[str, str]], epoch: int) -> None:
        """Take note of the videos of a step.

        Args:
            asked: videos asked for, with the unreadable ones.
            bad: (path, reason) of the unreadable ones, which were replaced by others.
            damaged: (path, reason) of videos whose good frames were used.
            epoch: counted from 0.

        Raises:
            CheckFailed: too many are unreadable.
        """
        self.asked += asked
        self.bad += len(bad)
        self._record("bad_video", "unreadable video, another one taken", bad, epoch)
        self._record("damaged_video", "damaged video, its good frames are used", damaged, epoch)
        for path, reason in bad:
            if len(self._first) < NAMED_IN_ERROR:
                self._first.setdefault(path, reason)
        share = self.bad / max(1, self.asked)
        if self.asked >= self.min_judged and share > self.max_fraction:
            raise CheckFailed(
                f"{self.bad} of {self.asked} videos could not be read ({share:.1%}); allowed are "
                f"{self.max_fraction:.1%} (LOADER.MAX_BAD_FRACTION). The first: "
                f"{'; '.join(f'{path}: {reason}' for path, reason in self._first.items())}. "
                f"{self.events.path} names each"
            )

    def _record(self, kind: str, what: str, videos: Sequence[tuple[str, str]], epoch: int) -> None:
        for path, reason in videos:
            self.events.write(kind, epoch=epoch, path=path, reason=reason)
            if self.events.enabled and path not in self._warned and len(self._warned) < NAMED:
                self._warned.add(path)
                logger.warning("%s: %s: %s", what, path, reason)

    def state_dict(self) -> dict:
        """The counts and the first names, plain values for a checkpoint."""
        return {"asked": self.asked, "bad": self.bad, "first": dict(self._first)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from the counts of a `state_dict`."""
        self.asked, self.bad, self._first = state["asked"], state["bad"], dict(state["first"])
