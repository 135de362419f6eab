"""Which samples a process reads in an epoch, and in which order."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from revvideo.data.sampling import order_generator
from revvideo.errors import InputError


class EpochSampler(Sampler[tuple[int, int]]):
    """The (epoch, sample index) keys of one process in one epoch.

    The epoch's order is cut into batches of batch_size * world_size samples, of which each process takes its part; what
    does not fill a whole one is left out in this epoch.

    Args:
        num_samples: of the data set.
        batch_size: videos a step and process.
        seed: of the order.
        shuffle: a new order each epoch; False keeps that of the list.
        rank, world_size: this process, and how many there are.

    Raises:
        InputError: fewer samples than one batch over all processes.
    """

    def __init__(
        self, num_samples: int, *, batch_size: int, seed: int, shuffle: bool = True, rank: int = 0, world_size: int = 1
    ):
        if num_samples < batch_size * world_size:
            raise InputError(
                f"{num_samples} training videos do not fill one batch of {batch_size * world_size} "
                f"({batch_size} on each of {world_size} processes): lower TRAIN.BATCH_SIZE"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.num_batches = num_samples // self.samples_per_step
        self.set_epoch(0)

    @property
    def samples_per_step(self) -> int:
        """Samples of a batch over all processes."""
        return self.batch_size * self.world_size

    def set_epoch(self, epoch: int, start_sample: int = 0) -> None:
        """Choose the epoch, and how many samples of its order were used before (to go on in the middle of it)."""
        if not 0 <= start_sample <= self.num_samples:
            raise ValueError(f"start_sample is {start_sample}, but an epoch has {self.num_samples} samples")
        self.epoch = epoch
        self.start_sample = start_sample

    def identity(self) -> dict:
        """What the order of the samples depends on besides the epoch."""
        return {"num_samples": self.num_samples, "seed": self.seed, "shuffle": self.shuffle}

    def __len__(self) -> int:
        return (self.num_samples - self.start_sample) // self.samples_per_step * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start_sample, num_items = self.epoch, self.start_sample, len(self)
        order = self._order()
        for batch in range(num_items // self.batch_size):
            for sample in self._share(order, start_sample + batch * self.samples_per_step):
                yield epoch, sample

    def samples_at(self, start_sample: int) -> list[int]:
        """This process's samples of the batch that begins after `start_sample` samples of the epoch."""
        return list(self._share(self._order(), start_sample))

    def _order(self) -> Sequence[int]:
        if not self.shuffle:
            return range(self.num_samples)
        return order_generator(self.seed, self.epoch).permutation(self.num_samples).tolist()

    def _share(self, order: Sequence[int], start_sample: int) -> Sequence[int]:
        first = start_sample + self.rank * self.batch_size
        return order[first : first + self.batch_size]
