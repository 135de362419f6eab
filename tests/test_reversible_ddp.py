"""Two gloo processes under DistributedDataParallel get the gradients that one process gets from the whole batch."""

import contextlib
from pathlib import Path

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from revvideo.models.mvit import PatchSpec, plan_blocks
from revvideo.models.rev_mvit import RevMViT

PROCESSES, STEPS, BATCH = 2, 3, 4

# Small buckets, so that the reduction of the last blocks runs during the backward of the first ones.
OPTIONS = {
    "plain": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "static_graph": {"static_graph": True},
    "bucket views": {"gradient_as_bucket_view": True},
}


def tiny_model(backprop: str) -> RevMViT:
    """Six blocks, two of them stage transitions; float64, no drop path."""
    torch.manual_seed(0)
    blocks = plan_blocks(
        depth=6,
        embed_dim=8,
        num_heads=1,
        dim_mul=[[1, 2.0], [3, 2.0]],
        head_mul=[[1, 2.0], [3, 2.0]],
        pool_q_stride=[[1, 1, 2, 2], [3, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3],
        qkv_bias=False,
        widen_in_attention=True,
    )
    return RevMViT(
        blocks=blocks,
        transitions=[1, 3],
        num_classes=5,
        backprop=backprop,
        input_size=(4, 32, 32),
        in_channels=3,
        patch=PatchSpec(),
        separable_positions=True,
    ).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    clips = torch.randn(BATCH, 3, 4, 32, 32, generator=generator, dtype=torch.float64)
    return clips, torch.randint(5, (BATCH,), generator=generator)


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


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    share = BATCH // PROCESSES
    part = slice(rank * share, (rank + 1) * share)
    try:
        found = {
            name: train(DistributedDataParallel(tiny_model("reversible"), bucket_cap_mb=0.02, **options), part)
            for name, options in OPTIONS.items()
        }
        found["no_sync"] = accumulate(DistributedDataParallel(tiny_model("reversible")), part)
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
    return train(tiny_model("plain"), slice(None))


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_get_the_gradients_of_the_whole_batch(found, expected, name):
    for of_process in found:
        for step in range(STEPS):
            assert_gradients_equal(of_process[name][step], expected[step], torch.float64)


def test_gradient_accumulation_without_communication(found):
    expected = accumulate(tiny_model("plain"), slice(None))
    for of_process in found:
        assert_gradients_equal(of_process["no_sync"], expected, torch.float64)
