"""Worker processes: the same batches whatever their number and start; a silent or dead one is told with its path."""

import functools
import gc
import json
import multiprocessing
import os
import re
import signal
import time

import pytest
import torch
from videos import write_video

from revvideo.data import dataset as dataset_module
from revvideo.data import worker_watch
from revvideo.data.dataset import ClipSpec, EvalClips, TrainClips
from revvideo.data.loader import eval_loader, train_loader
from revvideo.data.manifest import Manifest
from revvideo.data.rand_augment import RandAugment, parse_policy
from revvideo.data.transforms import EvalTransform, TrainTransform
from revvideo.data.video_reader import open_video
from revvideo.errors import InputError, WorkerFailed

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
CLIP = ClipSpec(num_frames=4, sampling_rate=2)
NUM_VIDEOS, BATCH = 8, 2


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{i}.mp4", 12 + i, size=(32, 48), seed=i) for i in range(NUM_VIDEOS)]
    return Manifest(tuple(paths), tuple(range(NUM_VIDEOS)), "list")


def loader_of(manifest, batch_size=BATCH, seed=0, clips=2, **options):
    augment = RandAugment(parse_policy("rand-m7-n4-mstd0.5-inc1"))
    transform = TrainTransform(24, relative_scales=(0.3, 1.0), augment=augment)
    dataset = TrainClips(manifest, CLIP, transform, seed=seed, num_clips_per_video=clips)
    return train_loader(dataset, batch_size=batch_size, seed=seed, **options)


def batches(loader, epoch):
    loader.set_epoch(epoch)
    return [copied(batch) for batch in loader]


def copied(batch):
    return batch.video.clone(), batch.label.tolist(), batch.index.tolist(), batch.bad


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert torch.equal(a[0], b[0])
        assert a[1:] == b[1:]


@pytest.fixture(scope="module")
def wanted(manifest):
    """The batches of two epochs, read in this process."""
    loader = loader_of(manifest)
    return [batches(loader, epoch) for epoch in range(2)]


# The same batches


@pytest.mark.parametrize(
    ("num_workers", "method"),
    [(2, "fork"), (3, "fork"), *(pytest.param(n, "spawn", marks=pytest.mark.slow) for n in (2, 3))],
)
def test_batches_are_the_same_for_any_workers(manifest, wanted, num_workers, method):
    loader = loader_of(manifest, num_workers=num_workers, multiprocessing_context=method, timeout_seconds=120)
    for epoch in range(2):
        assert_same(batches(loader, epoch), wanted[epoch])


def test_a_spawned_worker_gives_the_same_batches(manifest, wanted):
    """One is enough to see that all of the data set and the loader can be pickled; it costs the start of a Python."""
    loader = loader_of(manifest, num_workers=1, multiprocessing_context="spawn", timeout_seconds=120)
    assert_same(batches(loader, 1), wanted[1])


def test_an_iteration_ends_when_another_one_begins(manifest, wanted):
    """With workers both would share one queue, and the first one would give the batches of the second."""
    for num_workers in (0, 1):
        loader = loader_of(manifest, num_workers=num_workers)
        loader.set_epoch(0)
        first = iter(loader)
        next(first)
        loader.set_epoch(1)
        second = iter(loader)
        assert_same([copied(next(second))], wanted[1][:1])
        with pytest.raises(RuntimeError, match="another iteration over this loader has begun"):
            next(first)
        assert_same([copied(batch) for batch in second], wanted[1][1:])
        loader.close()


def test_leaving_iterations_leaks_neither_processes_nor_descriptors(manifest):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # loaders of other tests
    before, counts = (len(multiprocessing.active_children()), descriptors()), []
    loader = loader_of(manifest, num_workers=2, multiprocessing_context="fork")
    for epoch in range(12):
        loader.set_epoch(epoch)
        for _ in loader:
            break
        counts.append(descriptors())
    assert len(multiprocessing.active_children()) == before[0] + 2
    assert max(counts[6:]) <= max(counts[:6]) + 12  # three for each batch that is on its way; a leak would be more
    del loader, _
    gc.collect()
    assert len(multiprocessing.active_children()) <= before[0]
    assert descriptors() <= before[1] + 1  # the memory that worker processes share has one of its own


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_restored_loader_goes_on_in_the_middle_of_the_epoch(manifest, wanted, num_workers):
    loader = loader_of(manifest, num_workers=num_workers)
    assert_same(batches(loader, 0), wanted[0])
    loader.set_epoch(1)
    assert loader.state_dict()["samples"] == 0
    given = iter(loader)
    assert_same([copied(next(given)), copied(next(given))], wanted[1][:2])
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["epoch"], state["samples"]) == (1, 2 * BATCH)  # prefetched batches are not given out ones
    restored = loader_of(manifest, num_workers=num_workers)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert len(restored) == 2
    assert_same([copied(batch) for batch in restored], wanted[1][2:])
    assert restored.state_dict()["samples"] == NUM_VIDEOS // BATCH * BATCH
    assert_same(batches(restored, 0), wanted[0])
    assert_same(batches(loader, 0), wanted[0])  # after an iteration that was left in the middle


def test_a_position_serves_another_number_of_processes(manifest, wanted):
    loader = loader_of(manifest)
    loader.set_epoch(1, start_sample=BATCH)
    state = loader.state_dict()
    parts = []
    for rank in range(2):
        part = loader_of(manifest, batch_size=1, rank=rank, world_size=2)
        part.load_state_dict(state)
        parts.append([batch.video.clone() for batch in part])
    for whole, *both in zip(wanted[1][1:], *parts, strict=True):
        assert torch.equal(whole[0], torch.cat(both))


def test_a_position_of_another_run_is_refused(manifest):
    state = loader_of(manifest).state_dict()
    with pytest.raises(InputError, match=r"seed 0, but this run has 1.*RNG_SEED"):
        loader_of(manifest, seed=1).load_state_dict(state)
    with pytest.raises(InputError, match=r"shuffle True, but this run has False"):
        loader_of(manifest, shuffle=False).load_state_dict(state)


def test_another_batch_size_goes_on_at_the_same_sample(manifest):
    order = [index for _, _, indices, _ in batches(loader_of(manifest, clips=1), 1) for index in indices]
    loader = loader_of(manifest, clips=1)
    loader.set_epoch(1, start_sample=BATCH)
    larger = loader_of(manifest, batch_size=3, clips=1)
    larger.load_state_dict(loader.state_dict())
    found = [batch.index.tolist() for batch in larger]
    assert found == [order[BATCH : BATCH + 3], order[BATCH + 3 :]]
    assert larger.state_dict()["samples"] == NUM_VIDEOS
    assert larger.batches_per_epoch == NUM_VIDEOS // 3


def test_the_origin_of_a_batch_names_its_videos_and_seeds(manifest):
    loader = loader_of(manifest)
    loader.set_epoch(1)
    for batch in loader:
        origin = loader.origin(batch)
        assert origin["samples"] == list(dict.fromkeys(batch.index.tolist()))  # two clips of each
        assert origin["videos"] == [manifest.paths[index] for index in origin["samples"]]
    assert (origin["seed"], origin["epoch"]) == (0, 1)


# Signals to the whole job


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("start", ["late", "at once"])
def test_workers_survive_a_stop_signal_to_all_processes_and_end_with_their_parent(
    manifest, wanted, number, start, monkeypatch
):
    loader = loader_of(manifest, num_workers=2)
    loader.set_epoch(0)
    if start == "late":  # the signal comes before they listen
        listen = worker_watch.listen_to_parent_only
        monkeypatch.setattr(worker_watch, "listen_to_parent_only", lambda: (time.sleep(1), listen()))
        given, found = loader._iterator(), []
    else:
        given = iter(loader)
        found = [copied(next(given))]
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    sender = multiprocessing.get_context("fork").Process(
        target=lambda: [os.kill(worker.pid, number) for worker in workers]
    )
    sender.start()
    sender.join()
    assert sender.exitcode == 0
    found += [copied(batch) for batch in given]
    assert_same(found, wanted[0])
    assert all(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.terminate()  # SIGTERM, too, but from the parent
        worker.join(10)
        assert worker.exitcode is not None
    loader.close()


# Workers that fail


def open_with(action, ending, path, *args, **kwargs):
    if path.endswith(ending):
        action()
    return open_video(path, *args, **kwargs)


def reading(monkeypatch, action, ending):
    """In processes that fork from now on, `action` is called when a path with this ending is opened."""
    monkeypatch.setattr(dataset_module, "open_video", functools.partial(open_with, action, ending))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as deaf as a process that waits for a dead file system
    time.sleep(600)


@pytest.mark.parametrize("kind", ["train", pytest.param("eval", marks=pytest.mark.slow)])
def test_a_hanging_read_ends_with_its_path(manifest, monkeypatch, kind):
    workers = {"num_workers": 2, "multiprocessing_context": "fork", "timeout_seconds": 1}
    if kind == "train":
        loader = loader_of(manifest, shuffle=False, **workers)
    else:
        loader = eval_loader(EvalClips(manifest, CLIP, EvalTransform(24, 32)), **workers)
    with monkeypatch.context() as patch:
        reading(patch, hang, "5.mp4")
        began = time.monotonic()
        with pytest.raises(
            WorkerFailed, match=r"has been reading .*/5\.mp4 for 1\.\d s; LOADER\.TIMEOUT_SECONDS is 1"
        ) as caught:
            list(loader)
        assert time.monotonic() - began < 30
        silent = int(re.search(r"process (\d+)", str(caught.value))[1])
        assert silent not in [process.pid for process in multiprocessing.active_children()]
    assert len(list(loader)) == (NUM_VIDEOS // BATCH if kind == "train" else NUM_VIDEOS)  # by new workers
    loader.close()


def test_a_slow_batch_is_not_a_silent_worker(manifest, monkeypatch):
    """Four videos of a quarter of a second each: longer than the limit, but none of them is."""
    reading(monkeypatch, functools.partial(time.sleep, 0.25), ".mp4")
    workers = {"num_workers": 1, "multiprocessing_context": "fork", "timeout_seconds": 0.8}
    loader = loader_of(manifest, batch_size=4, **workers)
    assert len(list(loader)) == 2


def test_a_worker_that_never_begins_is_silent_too(manifest):
    loader = loader_of(manifest, num_workers=1, timeout_seconds=1)
    with pytest.raises(WorkerFailed, match=r"no batch for .* not one of the 1 loader workers"):
        loader._board.check_silence(time.monotonic_ns() - 3 * 10**9, -1, manifest.paths)
    loader._board.check_silence(time.monotonic_ns(), 60, manifest.paths)


def test_a_killed_worker_is_told_with_its_path(manifest, monkeypatch):
    loader = loader_of(manifest, shuffle=False, num_workers=2, multiprocessing_context="fork", timeout_seconds=60)
    with monkeypatch.context() as patch:
        reading(patch, die, "3.mp4")
        with pytest.raises(WorkerFailed, match=r"died while reading .*/3\.mp4, begun .*NUM_WORKERS"):
            list(loader)
    assert len(list(loader)) == NUM_VIDEOS // BATCH
    loader.close()
    assert len(list(loader)) == NUM_VIDEOS // BATCH
    loader.close()


def test_a_death_that_is_noticed_while_the_caller_works_is_told_with_its_path(manifest):
    """Its signal ends whatever the caller does, so that torch's error does not come out of the iteration."""
    loader = loader_of(manifest, num_workers=2)
    for worker in range(2):
        loader._board.mark(worker, 3 + worker)
        loader._board._rows[worker, 0] = 1000 + worker  # its process
    with pytest.raises(
        WorkerFailed, match=r"worker 1 \(process 1001\) died while reading .*/4\.mp4, begun 0\.\d s ago"
    ):
        raise_in(loader, "DataLoader worker (pid 1001) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match=r"^DataLoader worker \(pid 77\)"):
        raise_in(loader, "DataLoader worker (pid 77) is killed by signal: Killed. ")  # of another loader


def raise_in(loader, message):
    with loader.failures_named():
        raise RuntimeError(message)


def test_other_errors_keep_their_text(manifest):
    loader = loader_of(manifest, num_workers=1)
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        raise_in(loader, "CUDA out of memory")
