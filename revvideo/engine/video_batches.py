"""Which videos go through the model together: the same ones, at the same places, however they are divided among
processes and whatever was evaluated before."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class VideoBatches:
    """The videos of a list in batches of consecutive ones; the forward passes of all batches have one shape.

    Kernels choose their order of summation by the shape, and may by the place in the batch. Both follow from the
    numbers below alone, so the scores of a video have the same bits for any number of processes, after a kill, and
    beside videos that cannot be read (which leave a hole).

    Args:
        num_videos: of the list, N.
        num_views: views of each video, V.
        max_clips: most clips of a forward pass. More views than that go through the model in several passes.
    """

    num_videos: int
    num_views: int
    max_clips: int

    @property
    def videos_per_batch(self) -> int:
        """k: as many whole videos as `max_clips` allows, at least one; a short list is divided evenly."""
        num_batches = _ceil_div(self.num_videos, max(1, self.max_clips // self.num_views))
        return max(1, _ceil_div(self.num_videos, max(1, num_batches)))

    @property
    def clips_per_forward(self) -> int:
        """Clips of each forward pass: the k * V clips of a batch in as few equal passes as possible."""
        clips = self.videos_per_batch * self.num_views
        return _ceil_div(clips, _ceil_div(clips, self.max_clips))

    def batch_of(self, index: int) -> int:
        """Number of the batch that a video is in."""
        return index // self.videos_per_batch

    def videos_in(self, batch: int) -> range:
        """The videos of a batch; the last one may have fewer."""
        first = batch * self.videos_per_batch
        return range(first, min(first + self.videos_per_batch, self.num_videos))

    def share(self, rank: int, world_size: int, done: Collection[int] = ()) -> list[int]:
        """The videos of one process, batch after batch.

        Args:
            rank, world_size: number of the process, and how many there are.
            done: videos that are evaluated already, in whole batches; the others are divided among the processes.

        Returns:
            Indices; over all processes each of the N videos once, apart from `done`.
        """
        batches = range(_ceil_div(self.num_videos, self.videos_per_batch))
        left = [batch for batch in batches if not all(video in done for video in self.videos_in(batch))]
        return [video for batch in left[rank::world_size] for video in self.videos_in(batch)]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
