"""What the processes of a run tell each other at every step, in one collective."""

import dataclasses
import time

import torch

from revvideo.distributed.group import Group
from revvideo.engine.train_step import StepOutcome

OTHER_PROCESS = "another process"


@dataclasses.dataclass(frozen=True)
class StepTotals:
    """A step over all processes; equal in each of them, but for the name of the stop's reason.

    Attributes:
        loss: mean over all clips.
        top1: percent of all clips.
        num_videos, num_bad, num_damaged: videos read, replaced because unreadable, and read with filled-in frames.
        seconds, wait_seconds: of the step, with the wait, and of the wait for its batch, mean over the processes.
        clips_per_second: of all processes together.
        stop_reason: why to stop, None to go on.
        save_due: whether to write a checkpoint.
    """

    loss: float
    top1: float
    num_videos: int
    num_bad: int
    num_damaged: int
    seconds: float
    wait_seconds: float
    clips_per_second: float
    stop_reason: str | None
    save_due: bool

    @property
    def data_wait_share(self) -> float:
        """Share of the step that went into waiting for the batch."""
        return self.wait_seconds / self.seconds

    @classmethod
    def agree(
        cls,
        group: Group,
        *,
        what: str,
        outcome: StepOutcome,
        num_videos: int,
        num_bad: int,
        num_damaged: int,
        began_at: float,
        wait_seconds: float,
        stop_reason: str | None,
        save_due: bool,
    ) -> "StepTotals":
        """Add up what this process and the others have.

        Args:
            group: the processes.
            what: name of the step, for messages.
            outcome: of this process; it is waited for here.
            num_videos, num_bad, num_damaged: of its batch.
            began_at: `time.perf_counter()` when the step began, at the latest when it asked for the batch.
            wait_seconds: how long the batch took to come.
            stop_reason: why this process wants to stop, or None.
            save_due: whether it wants a checkpoint.
        """
        loss, correct = outcome.loss.item() * outcome.num_clips, outcome.num_correct.item()
        seconds = time.perf_counter() - began_at
        mine = [loss, correct, outcome.num_clips, num_videos, num_bad, num_damaged, seconds, wait_seconds]
        mine += [stop_reason is not None, save_due]
        loss, correct, clips, videos, bad, damaged, seconds, wait, stops, saves = group.sum(
            torch.tensor(mine, dtype=torch.float64), what
        ).tolist()
        seconds, wait = seconds / group.world_size, wait / group.world_size
        return cls(
            loss=loss / clips,
            top1=100.0 * correct / clips,
            num_videos=int(videos),
            num_bad=int(bad),
            num_damaged=int(damaged),
            seconds=seconds,
            wait_seconds=wait,
            clips_per_second=clips / seconds,
            stop_reason=(stop_reason or OTHER_PROCESS) if stops else None,
            save_due=saves > 0,
        )
