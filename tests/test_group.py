"""Collectives of several processes: right values in the order of ranks; one process is a group without any of it."""

import contextlib
import dataclasses
import socket
import time

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from processes import run_processes, values
from tiny_models import CLIP_SHAPE, NUM_CLASSES, tiny_rev_mvit
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from revvideo.distributed.env import Process, current_process
from revvideo.distributed.group import Group, check_gpus, open_group
from revvideo.distributed.ordered_sum import ordered_sum_hook
from revvideo.distributed.watch import PACE, Pace
from revvideo.errors import InputError, RankFailed, Stopped

CPU = torch.device("cpu")
TIMEOUT_SECONDS = 30.0


@contextlib.contextmanager
def opened(timeout_seconds: float = TIMEOUT_SECONDS, pace: Pace = PACE):
    with open_group(current_process(), CPU, timeout_seconds=timeout_seconds, pace=pace) as group:
        yield group


def collectives() -> dict:
    with opened() as group:
        rank = group.rank
        tensor = torch.arange(3) + 10 * rank
        found = {
            "place": (rank, group.world_size, group.is_main, group.process.local_rank, group.device),
            "sum": group.sum(torch.tensor([1e16, 1.0, -1e16][rank : rank + 1], dtype=torch.float64), "sum"),
            "sum of two": group.sum(torch.tensor([1.0, rank]), "sum of two"),
            "any": [group.any(rank == 2, "one"), group.any(False, "none"), group.any(True, "all")],
            "gather": group.gather({"rank": rank, "long": "x" * 10 ** (2 * rank), "tensor": tensor}, "gather"),
            "broadcast": group.broadcast(("from", rank, tensor), "broadcast"),
        }
        begun = time.monotonic()
        time.sleep(0.5 * rank)
        group.barrier("barrier")
        found["waited"] = time.monotonic() - begun
    assert not dist.is_initialized()
    with opened() as group:  # once more, in the same processes
        found["again"] = group.gather(group.rank, "again")
    return found


def test_collectives_of_three_processes():
    for rank, found in enumerate(values(run_processes(3, collectives))):
        assert found["place"] == (rank, 3, rank == 0, rank, CPU)
        assert found["sum"].item() == (1e16 + 1.0) + -1e16 != 1e16 + -1e16 + 1.0  # in the order of ranks
        assert torch.equal(found["sum of two"], torch.tensor([3.0, 3.0], dtype=torch.float64))
        assert found["any"] == [True, False, True]
        assert [each["rank"] for each in found["gather"]] == [0, 1, 2]
        assert [len(each["long"]) for each in found["gather"]] == [1, 100, 10_000]
        assert [each["tensor"].tolist() for each in found["gather"]] == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
        assert found["broadcast"][:2] == ("from", 0)
        assert found["broadcast"][2].tolist() == [0, 1, 2]
        assert found["waited"] >= 0.9
        assert found["again"] == [0, 1, 2]


def test_one_process_is_a_group_without_torch_distributed(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("torch.distributed was touched")

    for name in ("init_process_group", "TCPStore", "all_gather_into_tensor", "all_gather_object"):
        monkeypatch.setattr(dist, name, refuse)
    model = nn.Linear(2, 2)
    with open_group(Process(), CPU, timeout_seconds=1.0) as group:
        assert (group.rank, group.world_size, group.is_main, group.device) == (0, 1, True, CPU)
        mine = torch.tensor([1.0, 2.0])
        total = group.sum(mine, "sum")
        assert torch.equal(total, mine.double())
        total += 1
        assert mine.tolist() == [1.0, 2.0]
        assert group.any(True, "any")
        assert not group.any(False, "any")
        assert group.gather("value", "gather") == ["value"]
        assert group.broadcast("value", "broadcast") == "value"
        group.barrier("barrier")
        assert group.replicate(model, deterministic=True) is model
        assert group.stop_requested is None
        group.request_stop("SIGTERM")
        group.request_stop("SIGUSR1")
        assert group.stop_requested == "SIGTERM"
        with group.uninterrupted():
            pass
        error = ValueError("mine")
        assert group.explain(error) is error
    with pytest.raises(ValueError, match="mine"), open_group(Process(), CPU, timeout_seconds=1.0):
        raise error
    assert Group().gather(1, "gather") == [1]


class Uneven(nn.Module):
    """Parameters of many sizes, none of which the number of processes divides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in [(7, 13), (13, 101), (101, 5), (5, 1)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


STEPS = 3
BUCKETS = {"default": {}, "tiny": {"bucket_cap_mb": 1e-4}, "static": {"static_graph": True, "bucket_cap_mb": 1e-3}}


def gradients_of(model: nn.Module, rank: int, step: int) -> list[Tensor]:
    """The gradients of one process, on values of very different sizes, so that the order of adding shows."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    model.zero_grad()
    clips = torch.randn(4, 7, generator=generator) * 10.0 ** torch.randint(-3, 4, (4, 1), generator=generator)
    model(clips).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def replicas() -> dict[str, list]:
    with opened() as group:
        models = {"replicate": group.replicate(Uneven(), deterministic=True)}
        for name, options in BUCKETS.items():
            models[name] = DistributedDataParallel(Uneven(), **options)
            models[name].register_comm_hook(None, ordered_sum_hook)
        models["not in order"] = group.replicate(Uneven(), deterministic=False)
        return {
            name: [gradients_of(model, group.rank, step) for step in range(STEPS)] for name, model in models.items()
        }


def test_gradients_are_bit_equal_to_the_sum_in_the_order_of_ranks():
    per_rank = values(run_processes(3, replicas))
    model = Uneven()
    order_shows = False
    for step in range(STEPS):
        own = [gradients_of(model, rank, step) for rank in range(3)]
        expected = [((first + second) + third) / 3 for first, second, third in zip(*own)]
        otherwise = [(first + (second + third)) / 3 for first, second, third in zip(*own)]
        order_shows |= not all(map(torch.equal, expected, otherwise))
        for found in per_rank:
            for name in ("replicate", *BUCKETS):
                assert all(map(torch.equal, found[name][step], expected)), (name, step)
            assert all(map(torch.allclose, found["not in order"][step], expected))
    assert order_shows, "the order of adding makes no difference: the test shows nothing"


def reversible_gradients() -> list:
    """Of a reversible model: of a step, then of two steps of which only the second communicates."""
    found = []
    with opened() as group:
        for deterministic in (False, True):
            replica = group.replicate(tiny_rev_mvit().double(), deterministic=deterministic)
            reversible_backward(replica, [0], slice(group.rank, group.rank + 1))
            found.append(parameter_gradients(replica.module))
            replica.zero_grad()
            with replica.no_sync():
                reversible_backward(replica, [1], slice(group.rank, group.rank + 1))
            reversible_backward(replica, [2], slice(group.rank, group.rank + 1))
            found.append(parameter_gradients(replica.module))
    return found


def reversible_backward(model: nn.Module, steps: list[int], part: slice) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        clips = torch.randn(2, *CLIP_SHAPE, generator=generator, dtype=torch.float64)
        labels = torch.randint(NUM_CLASSES, (2,), generator=generator)
        nn.functional.cross_entropy(model(clips[part]), labels[part]).backward()


def test_a_reversible_model_gets_the_gradients_of_the_whole_batch():
    model = tiny_rev_mvit(backprop="plain").double()
    expected = []
    for steps in ([0], [1, 2]):
        model.zero_grad()
        reversible_backward(model, steps, slice(None))
        expected.append(parameter_gradients(model))
    for found in values(run_processes(2, reversible_gradients)):
        for gradients, right in zip(found, expected + expected):
            assert_gradients_equal(gradients, right, torch.float64)


def buffers() -> tuple:
    with opened() as group:
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        nn.init.constant_(model[0].weight, float(group.rank))
        nn.init.constant_(model[1].running_mean, float(group.rank))
        replica = group.replicate(model, deterministic=False)
        start = model[0].weight.detach().clone()
        replica(torch.randn(4, 3) + 100 * group.rank).sum().backward()
        replica(torch.randn(4, 3)).sum().backward()  # the forward begins with rank 0's running statistics
        gathered = group.gather(model[1].num_batches_tracked.item(), "batches")
        return start.abs().max().item(), model[1].running_mean.abs().max().item(), gathered


def test_weights_and_statistics_are_those_of_rank_0():
    for start, mean, batches in values(run_processes(2, buffers)):
        assert start == 0.0
        assert mean < 50  # rank 1's own statistics would be at about 90 x weights of rank 0 (zero) + bias
        assert batches == [2, 2]


def stop() -> list:
    with opened() as group:
        group.barrier("start")
        seen = [group.stop_requested]
        if group.rank == 1:
            group.request_stop("SIGUSR1")
        deadline = time.monotonic() + 10
        while group.stop_requested is None and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(group.stop_requested)
        seen.append(group.any(group.stop_requested is not None, "stop"))
        raise Stopped(str(seen))


def stop_seen() -> str:
    with pytest.raises(Stopped) as caught:
        stop()
    return str(caught.value)


def test_a_request_to_stop_reaches_all_and_a_stop_is_no_failure():
    results = run_processes(3, stop_seen)
    assert values(results) == [str([None, "SIGUSR1", True])] * 3
    assert all(result.seconds < 8 for result in results)
    assert not any(result.output for result in results)


def finish_late() -> None:
    with opened(timeout_seconds=1) as group:
        group.barrier("last")
        if group.is_main:
            time.sleep(2.5)  # longer than the timeout: nobody waits in a collective for it


def test_who_is_done_waits_for_the_others_in_peace():
    results = run_processes(2, finish_late)
    assert values(results) == [None, None]
    assert not any(result.output for result in results)


def come_without_rank_2() -> str:
    place = current_process()
    if place.rank == 2:
        return ""
    begun = time.monotonic()
    with pytest.raises(RankFailed) as caught, opened(timeout_seconds=2):
        pass
    assert time.monotonic() - begun < 10
    return f"{place.master_addr}:{place.master_port} {caught.value}"


def test_a_missing_process_is_named():
    first, second, _ = values(run_processes(3, come_without_rank_2))
    messages = [message.split(" ", 1) for message in (first, second)]
    assert any("rank 2 did not come" in text and "rank 0 (" in text for _, text in messages)
    assert all(where in text and "DIST.TIMEOUT_SECONDS" in text for where, text in messages)


def come_but_rank_0(timeout_seconds: float, absent: bool) -> list | None:
    if absent and current_process().is_main:
        return None
    with opened(timeout_seconds) as group:
        return group.gather(group.rank, "ranks")


def test_who_starts_again_meets_although_not_all_had_come_before():
    """The store of torchrun's agent outlives the processes that it starts."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environ = {"TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": str(agent.port)}
    _, failed = run_processes(2, come_but_rank_0, 1, True, environ=environ)
    assert "rank 0 did not come" in failed.output
    for _ in range(2):
        assert values(run_processes(2, come_but_rank_0, 10, False, environ=environ)) == [[0, 1]] * 2


def come_to_a_stranger() -> None:
    with opened(timeout_seconds=1, pace=dataclasses.replace(PACE, guard_seconds=1)):
        pass


def test_a_port_of_another_program_keeps_nobody():
    """That accepts connections and says nothing: rank 0 cannot have it, and the others do not wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        first, second = run_processes(2, come_to_a_stranger, environ={"MASTER_PORT": str(port)}, timeout_seconds=20)
    assert f"rank 0 ({socket.gethostname()}) cannot open the place to meet, 127.0.0.1:{port}" in first.output
    assert (first.exitcode, second.exitcode) == (1, 1)
    assert "in meet" in second.output


def test_two_processes_on_one_gpu_are_an_error():
    check_gpus(["rank 0 (a)", "rank 1 (a)"], ["GPU-1", "GPU-2"])
    check_gpus(["rank 0 (a)", "rank 1 (a)"], [None, None])
    with pytest.raises(InputError, match=r"rank 0 \(a\) and rank 2 \(a\) both use GPU GPU-1.*LOCAL_RANK"):
        check_gpus(["rank 0 (a)", "rank 1 (a)", "rank 2 (a)"], ["GPU-1", "GPU-2", "GPU-1"])
