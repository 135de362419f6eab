"""Loaders: which samples make which batch, worker processes, collation.

Batches depend on (seed, epoch, sample) and not on the number of workers; the k-th batch over all processes holds the
same samples for any number of processes.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from revvideo.data.batch import Batch, collate_clips
from revvideo.data.dataset import EvalClips, TrainClips
from revvideo.data.epoch_sampler import EpochSampler
from revvideo.data.image_dataset import EvalImages, TrainImages
from revvideo.data.video_reader import VideoError
from revvideo.data.worker_signals import hold_signals
from revvideo.data.worker_watch import Mark, StartWorker, WorkerBoard, is_timeout
from revvideo.errors import InputError, WorkerFailed


class ClipLoader:
    """A DataLoader whose data set's own errors arrive as themselves, and whose failing workers name what they read.

    It takes nothing from torch's global random generator. Worker processes run torch with one thread each (torch's own
    rule); they live as long as the loader. One iteration goes at a time: the next one ends what is left of it.

    Args:
        dataset: `TrainClips`, `EvalClips`, or one like them: `manifest.paths`, and `on_read`, which it calls with the
            index of each video that it opens.
        sampler: the keys of its items.
        batch_size: items a batch; None gives single items.
        collate: a list of items to a batch; None leaves items as they are.
        num_workers: processes that decode; 0 decodes in this one (DATA_LOADER.NUM_WORKERS).
        pin_memory: for fast copies to a GPU (DATA_LOADER.PIN_MEMORY).
        prefetch_factor: batches that each worker prepares ahead (LOADER.PREFETCH); None is torch's default.
        multiprocessing_context: fork, spawn or forkserver (LOADER.START_METHOD); None is the platform's default.
        timeout_seconds: a worker that is at one video for longer ends the iteration (LOADER.TIMEOUT_SECONDS); 0 waits
            for ever. Without workers nothing watches.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler,
        *,
        batch_size: int | None,
        collate,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        multiprocessing_context: str | None = None,
        timeout_seconds: float = 0,
    ):
        self.dataset = dataset
        self.sampler = sampler
        self.timeout_seconds = timeout_seconds
        self._iterations = 0
        self._options = {
            "batch_size": batch_size,
            "sampler": sampler,
            "collate_fn": _GuardedCollate(collate),
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "pin_memory": pin_memory,
            "prefetch_factor": prefetch_factor if num_workers else None,
            "multiprocessing_context": multiprocessing_context if num_workers else None,
            # How often the board is looked at while no batch comes; the DataLoader's own limit is never the last word.
            "timeout": min(timeout_seconds / 4, _LOOK_SECONDS) if num_workers else 0,
        }
        self._begin()

    def _begin(self) -> None:
        """New worker processes (they start with the next iteration)."""
        num_workers = self._options["num_workers"]
        self._board = WorkerBoard(num_workers) if num_workers else None
        self._loader = DataLoader(
            _Guarded(self.dataset),
            generator=torch.Generator(),
            worker_init_fn=StartWorker(self._board) if num_workers else None,
            **self._options,
        )

    def __len__(self) -> int:
        """Items that the next iteration gives (batches in training, videos in evaluation)."""
        return len(self._loader)

    def __iter__(self) -> Iterator:
        self._iterations += 1
        number, items = self._iterations, self._iterator()
        while (item := self._next(items)) is not _END:
            if isinstance(item, Exception):
                raise item
            yield item
            if number != self._iterations:
                # The workers serve one iteration at a time; this one would get the other one's batches.
                raise RuntimeError("another iteration over this loader has begun; one can go on at a time")

    def _iterator(self) -> Iterator:
        with hold_signals():
            items = self._asked(lambda: iter(self._loader))
            if items is _WAITED:  # workers are still busy with an iteration that was left in the middle
                self.close()
                items = iter(self._loader)
        return items

    def _next(self, items: Iterator):
        began = time.monotonic_ns()
        while (item := self._asked(lambda: next(items, _END))) is _WAITED:
            try:
                self._board.check_silence(began, self.timeout_seconds, self.dataset.manifest.paths)
            except WorkerFailed:
                self._kill(self._board.silent_processes(self.timeout_seconds))
                self.close()
                raise
        return item

    def _asked(self, work: Callable):
        """What the DataLoader answers, its failures named; `_WAITED` where it has waited for its workers in vain."""
        try:
            with self.failures_named():
                return work()
        except WorkerFailed:
            self.close()
            raise
        except RuntimeError as error:
            if not is_timeout(error):
                raise
            return _WAITED

    def close(self) -> None:
        """End the worker processes; the next iteration starts new ones.

        Losing the last reference does the same, unless a cycle holds it (that of an exception and its frames): the
        garbage collector closes the queues first, no message arrives, and torch waits 5 s for each process.
        """
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        self._begin()

    @staticmethod
    def _kill(silent: set[int]) -> None:
        """End workers that no message reaches and perhaps no SIGTERM either: Python would wait for them at its end."""
        for process in multiprocessing.active_children():
            if process.pid in silent:
                with contextlib.suppress(RuntimeError):  # torch's about the dead worker, from its signal handler
                    process.kill()
                    process.join(_KILL_SECONDS)

    @contextlib.contextmanager
    def failures_named(self):
        """Gives torch's error about a dead worker process the path that the worker was reading.

        The iteration does it itself; but the signal that tells of the death may arrive while the caller works on a
        batch, so that loops over a loader run in this context, too.

        Raises:
            WorkerFailed: instead of torch's RuntimeError.
        """
        try:
            yield
        except WorkerFailed:
            raise
        except RuntimeError as error:
            explained = self._board and self._board.explain_death(error, self.dataset.manifest.paths)
            if explained is None:
                raise
            raise explained from None


class TrainLoader(ClipLoader):
    """A `ClipLoader` over an `EpochSampler`: it begins anywhere in any epoch, and knows how far it is."""

    sampler: EpochSampler

    @property
    def samples_per_step(self) -> int:
        """Videos of a batch over all processes."""
        return self.sampler.samples_per_step

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch; `len` counts those from where the next iteration begins."""
        return self.sampler.num_batches

    def set_epoch(self, epoch: int, start_sample: int = 0) -> None:
        """Before each epoch of training; see `EpochSampler.set_epoch`."""
        self.sampler.set_epoch(epoch, start_sample)
        self._given = start_sample

    def __iter__(self) -> Iterator[Batch]:
        self._given = self.sampler.start_sample
        for batch in super().__iter__():
            self._given += self.samples_per_step
            yield batch

    def origin(self, batch: Batch) -> dict:
        """Where the batch that was given last comes from, in plain values, so that it can be made again.

        Returns:
            `samples`, indices in the list, and `seed` and `epoch`, which with them key every random decision about the
            clips: `dataset[epoch, sample]` gives them again. `videos`: what was read for them, the paths of the samples
            or of stand-ins for unreadable ones.
        """
        paths = self.dataset.manifest.paths
        read = batch.index.view(batch.num_videos, -1)[:, 0].tolist()
        return {
            "videos": [paths[index] for index in read],
            "samples": self.sampler.samples_at(self._given - self.samples_per_step),
            "seed": self.sampler.seed,
            "epoch": self.sampler.epoch,
        }

    def state_dict(self) -> dict:
        """The position: `epoch`, and `samples`, how many of it were given out over all processes; and whose it is."""
        given = getattr(self, "_given", self.sampler.start_sample)
        return {"epoch": self.sampler.epoch, "samples": given, **self.sampler.identity()}

    def load_state_dict(self, state: dict) -> None:
        """The next iteration goes on after the samples of `state`; it may come from another number of processes.

        Raises:
            InputError: the state is of another list, seed or order, so that its samples are not these.
        """
        for name, value in self.sampler.identity().items():
            if state[name] != value:
                raise InputError(
                    f"the position of the loader that was saved is of {name} {state[name]}, but this run has {value}; "
                    "go on with the same list and RNG_SEED, or take the weights alone (TRAIN.AUTO_RESUME False with "
                    "TRAIN.CHECKPOINT_FILE_PATH and TRAIN.CHECKPOINT_EPOCH_RESET True)"
                )
        self.set_epoch(state["epoch"], state["samples"])


_END, _WAITED = object(), object()
_LOOK_SECONDS = 20.0
_KILL_SECONDS = 2.0


class _Guarded(Dataset):
    """Hands the data set's own errors on as values, so that they cross the process border unchanged."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._mark: Mark | None = None

    def watch(self, mark: Mark) -> None:
        """Tell `mark` what is being read; called in a worker process, for its copy of the data set."""
        self._mark = self.dataset.on_read = mark

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except (InputError, VideoError) as error:
            return error
        finally:
            if self._mark is not None:
                self._mark(None)


class _GuardedCollate:
    def __init__(self, collate):
        self.collate = collate

    def __call__(self, items):
        for item in items if isinstance(items, list) else [items]:
            if isinstance(item, Exception):
                return item
        return self.collate(items) if self.collate is not None else items


def train_loader(
    dataset: TrainClips | TrainImages,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
    **workers,
) -> TrainLoader:
    """Batches of training clips; call `set_epoch` before each epoch.

    Args:
        dataset: the clips.
        batch_size: videos a step and process; a batch has batch_size * num_clips_per_video clips.
        seed: of the order of the samples.
        shuffle: see `EpochSampler`.
        rank, world_size: this process, and how many there are.
        **workers: num_workers, pin_memory, prefetch_factor, multiprocessing_context, timeout_seconds of `ClipLoader`.

    Returns:
        A `TrainLoader` that yields `Batch`.
    """
    sampler = EpochSampler(
        len(dataset), batch_size=batch_size, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size
    )
    return TrainLoader(
        dataset,
        sampler,
        batch_size=batch_size,
        collate=collate_clips,
        **workers,
    )


def eval_loader(
    dataset: EvalClips | EvalImages,
    videos: Sequence[int] | None = None,
    **workers,
) -> ClipLoader:
    """One item of `EvalClips` a video: no padding, no drop.

    Args:
        dataset: the clips or pictures.
        videos: the numbers of those that this process takes, in this order; None: all of them.
        **workers: see `train_loader`.
    """
    return ClipLoader(
        dataset,
        range(len(dataset)) if videos is None else videos,
        batch_size=None,
        collate=None,
        **workers,
    )
