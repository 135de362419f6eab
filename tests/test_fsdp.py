"""FSDP2: two gloo processes that shard a reversible model get the gradients and the weights that DDP gets; what cannot
be sharded by itself is refused."""

from pathlib import Path

import pytest
import torch
from gradients import assert_gradients_equal
from tiny_models import CLIP_SHAPE, NUM_CLASSES, TRANSITIONS, tiny_mvit, tiny_rev_mvit
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from revvideo.distributed.sharding import default_groups, shard_model

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch's FSDP2 does not run on a CPU (2.6)"
)

PROCESSES, STEPS, BATCH = 2, 3, 4

WAYS = {"transitions apart": {}}
MORE_WAYS = {
    "the whole model": {"groups": ()},
    "freed between forward and backward": {"groups": (), "reshard_after_forward": True},
    "transitions kept gathered": {"reshard_after_forward": False},
    "stem, backbone and head apart": {"groups": ("patch_embed", "rev_backbone", "head")},
}
BY_HAND = {
    "a block": lambda model: fully_shard(model.rev_backbone.layers[2]),
    "a branch": lambda model: fully_shard(model.rev_backbone.layers[2].F),
    "inside a branch": lambda model: fully_shard(model.rev_backbone.layers[2].F.attn),
}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    clips = torch.randn(BATCH, *CLIP_SHAPE, generator=generator, dtype=torch.float64)
    return clips, torch.randint(NUM_CLASSES, (BATCH,), generator=generator)


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train(model: nn.Module, part: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The gradients of the last of a few steps of AdamW, and the parameters after it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        clips, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(clips[part]), labels[part]).backward()
        optimizer.step()
    named = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    return {name: whole(p.grad) for name, p in named.items()}, {name: whole(p) for name, p in named.items()}


def round_trip(part: slice) -> dict:
    """The full state dict of a trained sharded model, and the logits of the models that it is loaded into."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    clips = batch(STEPS)[0]
    sharded = shard_model(tiny_rev_mvit().double())
    train(sharded, part)
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    single = tiny_rev_mvit().double()
    single.load_state_dict(state)
    again = shard_model(tiny_rev_mvit().double(), groups=())
    set_model_state_dict(again, state, options=StateDictOptions(full_state_dict=True))
    with torch.no_grad():
        logits = {name: model.eval()(clips) for name, model in (("it", sharded), ("one", single), ("other", again))}
    return {"names": list(state), "logits": logits}


def error_by_hand(shard) -> str:
    model = tiny_rev_mvit().double()
    shard(model)
    fully_shard(model)
    with pytest.raises(ValueError, match="fully_shard") as caught:
        model(batch(0)[0])
    return str(caught.value)


def worker(rank: int, folder: str, more: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    share = BATCH // PROCESSES
    part = slice(rank * share, (rank + 1) * share)
    ways = MORE_WAYS if more else WAYS
    try:
        found = {name: train(shard_model(tiny_rev_mvit().double(), **way), part) for name, way in ways.items()}
        found["DDP"] = train(DistributedDataParallel(tiny_rev_mvit().double()), part)
        if more:
            found["plain model"] = train(shard_model(tiny_mvit().double()), part)
            found["plain model, DDP"] = train(DistributedDataParallel(tiny_mvit().double()), part)
            found["round trip"] = round_trip(part)
        else:
            found["by hand"] = {name: error_by_hand(shard) for name, shard in BY_HAND.items()}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_processes(folder: Path, more: bool) -> list[dict]:
    torch.multiprocessing.spawn(worker, (str(folder), more), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each process found."""
    return run_processes(tmp_path_factory.mktemp("fsdp"), more=False)


def assert_equal_training(found: list[dict], name: str, reference: str) -> None:
    for of_process in found:
        (gradients, weights), (expected_gradients, expected_weights) = of_process[name], of_process[reference]
        assert_gradients_equal(gradients, expected_gradients, torch.float64)
        torch.testing.assert_close(weights, expected_weights, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", WAYS)
def test_sharded_training_is_that_of_ddp(found, name):
    assert_equal_training(found, name, "DDP")


@pytest.fixture(scope="module")
def found_more(tmp_path_factory) -> list[dict]:
    return run_processes(tmp_path_factory.mktemp("more"), more=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_WAYS)
def test_other_ways_of_sharding(found_more, name):
    assert_equal_training(found_more, name, "DDP")


@pytest.mark.slow
def test_a_sharded_plain_model(found_more):
    assert_equal_training(found_more, "plain model", "plain model, DDP")


@pytest.mark.slow
def test_the_state_dict_is_that_of_one_process_and_loads_everywhere(found_more):
    for of_process in found_more:
        names, logits = of_process["round trip"]["names"], of_process["round trip"]["logits"]
        assert names == list(tiny_rev_mvit().state_dict())
        for name in ("one", "other"):
            torch.testing.assert_close(logits[name], logits["it"], rtol=1e-12, atol=1e-14)
        assert not torch.equal(logits["it"], tiny_rev_mvit().double().eval()(batch(STEPS)[0]))


@pytest.mark.parametrize("name", BY_HAND)
def test_the_engine_refuses_blocks_that_were_sharded_by_hand(found, name):
    for of_process in found:
        assert "shard_model" in of_process["by hand"][name]


def test_the_default_groups():
    assert default_groups(tiny_rev_mvit()) == [f"rev_backbone.layers.{i}" for i in TRANSITIONS]
    assert default_groups(tiny_mvit()) == [f"blocks.{i}" for i in range(6)]
    assert default_groups(nn.Linear(2, 2)) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rev_backbone.layers.2", "never called as a whole"),
        ("rev_backbone.layers", "never called as a whole"),
        ("rev_backbone.layers.2.F", "calls again in the backward"),
        ("rev_backbone.layers.2.G.mlp", "calls again in the backward"),
        ("rev_backbone.layers.1.F.attn", "calls again in the backward"),
        ("rev_backbone.layers.9", "no submodule"),
        ("", "no submodule"),
    ],
)
def test_what_cannot_be_sharded_by_itself_is_refused_at_once(name, said):
    model = tiny_rev_mvit()
    with pytest.raises(ValueError, match=said) as caught:
        shard_model(model, groups=["head", name])
    if said != "no submodule":
        assert str(default_groups(model)) in str(caught.value)
    assert type(model.head) is type(tiny_rev_mvit().head)  # nothing was sharded
