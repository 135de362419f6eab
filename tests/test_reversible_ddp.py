"""Two gloo processes under DistributedDataParallel get the gradients that one process gets from the whole batch."""

import contextlib
from pathlib import Path

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from tiny_models import CLIP_SHAPE, NUM_CLASSES, tiny_rev_mvit
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

PROCESSES, STEPS, BATCH = 2, 3, 4

OPTIONS = {
    "plain": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "bucket views": {"gradient_as_bucket_view": True},
    "static_graph and bucket views": {"static_graph": True, "gradient_as_bucket_view": True},
}
SMALL_BUCKETS = {"bucket_cap_mb": 0.02}  # so that there are several


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    clips = torch.randn(BATCH, *CLIP_SHAPE, generator=generator, dtype=torch.float64)
    return clips, torch.randint(NUM_CLASSES, (BATCH,), generator=generator)


def backward(model: nn.Module, step: int, part: slice) -> None:
    clips, labels = batch(step)
    nn.functional.cross_entropy(model(clips[part]), labels[part]).backward()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return parameter_gradients(model.module if isinstance(model, DistributedDataParallel) else model)


def train(model: nn.Module, part: slice) -> list[dict[str, Tensor | None]]:
    """Gradients of each of a few steps of SGD on a part of each batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(model, step, part)
        found.append(gradients(model))
        optimizer.step()
    return found


def accumulate(model: nn.Module, part: slice) -> dict[str, Tensor | None]:
    """Gradients summed over two batches; only the second backward communicates."""
    with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
        backward(model, 0, part)
    backward(model, 1, part)
    return gradients(model)


def order_of_events(model: nn.Module, part: slice) -> list[str]:
    """The names of parameters as their gradients come, and "reduce" as each bucket is handed to the reduction."""
    order = []

    def reduce(_, bucket):
        order.append("reduce")
        return allreduce_hook(None, bucket)

    ddp = DistributedDataParallel(model, **SMALL_BUCKETS)
    ddp.register_comm_hook(None, reduce)
    backward(ddp, 0, part)  # after the first step the buckets are in the order of the backward
    order.clear()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda _, name=name: order.append(name))
    backward(ddp, 1, part)
    return order


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    share = BATCH // PROCESSES
    part = slice(rank * share, (rank + 1) * share)
    try:
        found = {
            name: train(DistributedDataParallel(tiny_rev_mvit().double(), **SMALL_BUCKETS, **options), part)
            for name, options in OPTIONS.items()
        }
        found["no_sync"] = accumulate(DistributedDataParallel(tiny_rev_mvit().double()), part)
        views = DistributedDataParallel(tiny_rev_mvit().double(), gradient_as_bucket_view=True, **SMALL_BUCKETS)
        found["no_sync, bucket views"] = accumulate(views, part)
        found["order"] = order_of_events(tiny_rev_mvit().double(), part)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """Per process: configuration -> gradients of each step."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=PROCESSES)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def expected() -> list[dict]:
    return train(tiny_rev_mvit(backprop="plain").double(), slice(None))


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_get_the_gradients_of_the_whole_batch(found, expected, name):
    for of_process in found:
        for step in range(STEPS):
            assert_gradients_equal(of_process[name][step], expected[step], torch.float64)


@pytest.mark.parametrize("name", ["no_sync", "no_sync, bucket views"])
def test_gradient_accumulation_without_communication(found, name):
    expected = accumulate(tiny_rev_mvit(backprop="plain").double(), slice(None))
    for of_process in found:
        assert_gradients_equal(of_process[name], expected, torch.float64)


def test_the_reduction_runs_during_the_backward(found):
    """Most buckets are on their way before the first block has its gradients; a bucket's hook comes after its last."""
    for of_process in found:
        order = of_process["order"]
        first_block = next(i for i, name in enumerate(order) if name.startswith("rev_backbone.layers.0."))
        early, all_of_them = order[:first_block].count("reduce"), order.count("reduce")
        assert all_of_them >= 4
        assert early >= all_of_them / 2, f"{early} of {all_of_them} buckets before the backward of the first block"
