"""REV.CHECK_INVERSION_PERIOD and _LIMIT: training stops where a reversible model cannot rebuild its inputs any more."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from gradients import assert_gradients_equal, parameter_gradients
from tiny_models import CLIP_SHAPE, tiny_rev_mvit
from torch import nn

from revvideo.engine.events import EventLog, read_events
from revvideo.engine.losses import make_loss
from revvideo.engine.train_step import StepSettings, TrainStep
from revvideo.errors import CheckFailed
from revvideo.models.block_plan import plan_blocks
from revvideo.models.inversion_check import InversionCheck
from revvideo.models.rev_mvit import RevMViT

FOUND = {(0, 1): 1e-7, (0, 2): 3e-6, (4, 1): 2e-2, (4, 2): 1e-4}


def make_step(folder, model: nn.Module, check_inversion, **settings) -> TrainStep:
    return TrainStep(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        make_loss("cross_entropy"),
        StepSettings(**settings),
        device=torch.device("cpu"),
        events=EventLog(folder / "events.jsonl"),
        check_inversion=check_inversion,
    )


def checks(folder) -> list[dict]:
    return [event for event in read_events(folder / "events.jsonl") if event["kind"] == "inversion_check"]


def stub(found: dict) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext(SimpleNamespace(errors=found))


def steps_of_a_stub(folder, found: dict, steps=range(1), **settings) -> TrainStep:
    train_step = make_step(folder, nn.Linear(3, 4), lambda: stub(found), **settings)
    for step in steps:
        train_step([(torch.ones(2, 3), torch.tensor([0, 1]))], 0.1, step=step)
    return train_step


def test_every_nth_step_is_checked_and_written_down(tmp_path):
    steps_of_a_stub(tmp_path, FOUND, range(7), check_inversion_period=3, check_inversion_limit=0.1)
    found = checks(tmp_path)
    assert [event["step"] for event in found] == [0, 3, 6]
    assert all((event["block"], event["stream"], event["error"]) == (4, 1, 2e-2) for event in found)
    assert found[0]["errors"] == {f"block {block}, stream {stream}": error for (block, stream), error in FOUND.items()}


@pytest.mark.parametrize("settings", [{}, {"check_inversion_period": 0}])
def test_without_a_period_nothing_is_checked(tmp_path, settings):
    steps_of_a_stub(tmp_path, FOUND, range(3), **settings)
    assert not checks(tmp_path)


@pytest.mark.parametrize("error", [2e-2, math.nan, math.inf])
def test_above_the_limit_training_stops_before_the_weights_change(tmp_path, error):
    model = nn.Linear(3, 4)
    weight = model.weight.detach().clone()
    train_step = make_step(tmp_path, model, lambda: stub(FOUND | {(4, 1): error}), check_inversion_period=1)
    with pytest.raises(CheckFailed) as caught:
        train_step([(torch.ones(2, 3), torch.tensor([0, 1]))], 0.1, step=5)
    said = str(caught.value)
    for part in ("step 5", "block 4", "stream 1", f"{error:.2e}", "1.00e-03", "BUFFER_EVERY 1", "REV.BACKPROP plain"):
        assert part in said
    assert torch.equal(model.weight, weight)
    assert model.weight.grad.abs().sum() > 0  # the backward was inside
    assert float(checks(tmp_path)[0]["error"]) == pytest.approx(error, nan_ok=True)


def test_no_errors_are_no_reason_to_stop(tmp_path):
    steps_of_a_stub(tmp_path, {}, check_inversion_period=1)
    assert checks(tmp_path)[0]["errors"] == {}


# A real model


SCALED_BLOCK, FACTOR = 4, 1e6  # in the middle of the run of the blocks 2 to 5


def model_with_a_run_of_four(**options) -> RevMViT:
    blocks = plan_blocks(
        depth=6,
        embed_dim=8,
        num_heads=1,
        dim_mul=[[1, 2.0]],
        head_mul=[[1, 2.0]],
        pool_q_stride=[[1, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=[3, 3, 3],
        widen_in_attention=True,
        drop_path=0.2,
    )
    # Kept attention outputs would hide a part of the errors.
    return tiny_rev_mvit(blocks=blocks, transitions=[1], init_scheme="fan_in", keep_mib=-1.0, **options)


def scale(branch: nn.Module) -> None:
    """Make a branch so large that adding it to a stream and subtracting it again loses the stream."""
    last = branch.attn.proj if hasattr(branch, "attn") else branch.mlp.fc2
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(FACTOR)


def train(folder, model: RevMViT, steps: int = 3) -> list[dict]:
    train_step = make_step(folder, model, model.check_inversion, check_inversion_period=1)
    for step in range(steps):
        clips = torch.randn(4, *CLIP_SHAPE, generator=torch.Generator().manual_seed(step))
        train_step([(clips, torch.arange(4))], 1e-9, step=step)
    return checks(folder)


def test_inputs_that_are_not_finite_are_not_blamed_on_the_engine():
    check, good, bad = InversionCheck(), torch.ones(2), torch.tensor([1.0, math.nan])
    check.compare(0, bad, good, bad, good)
    check.compare(1, good, good, bad, good)
    assert sorted(check.errors) == [(0, 2), (1, 1), (1, 2)]
    assert math.isnan(check.errors[1, 1])
    assert check.worst()[:2] == (1, 1)


def test_a_healthy_model_passes(tmp_path):
    found = train(tmp_path, model_with_a_run_of_four())
    assert len(found) == 3
    assert {int(name.split()[1].rstrip(",")) for name in found[0]["errors"]} == {0, 2, 3, 4, 5}  # 1 is a transition
    print("errors of a healthy model:", found[0]["errors"])
    assert all(0 <= event["error"] < 1e-5 for event in found)


# x1 = y1 - F(x2) and x2 = y2 - G(y1).
@pytest.mark.parametrize(("branch", "stream"), [("F", 1), ("G", 2)])
def test_scaled_weights_are_found_and_repaired_by_buffers(tmp_path, branch, stream):
    model = model_with_a_run_of_four()
    scale(getattr(model.rev_backbone.layers[SCALED_BLOCK], branch))
    with pytest.raises(CheckFailed, match=rf"inputs of block {SCALED_BLOCK} .*of stream {stream} is"):
        train(tmp_path, model)
    print(checks(tmp_path)[0]["errors"])

    buffered = model_with_a_run_of_four(buffer_every=1)
    buffered.load_state_dict(model.state_dict())
    train(tmp_path / "buffered", buffered)


@pytest.mark.parametrize("branch", ["F", "G"])
def test_with_buffers_the_gradients_of_scaled_weights_are_those_of_plain_backprop(branch):
    gradients = {}
    for name, options in {"buffered": {"buffer_every": 1}, "plain": {"backprop": "plain"}, "rebuilt": {}}.items():
        model = model_with_a_run_of_four(**options)
        scale(getattr(model.rev_backbone.layers[SCALED_BLOCK], branch))
        torch.manual_seed(0)
        nn.functional.cross_entropy(model(torch.randn(4, *CLIP_SHAPE)), torch.arange(4)).backward()
        gradients[name] = parameter_gradients(model)
    assert_gradients_equal(gradients["buffered"], gradients["plain"], torch.float32)
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_gradients_equal(gradients["rebuilt"], gradients["plain"], torch.float32)


# In a run


def test_the_keys_act_in_a_run(data, tmp_path):
    """Exit code 3 and the key where the limit is out of reach; nothing else where it is not."""
    keys = {"REV.CHECK_INVERSION_PERIOD": 1}
    tiny.done(tiny.run_net(data, tmp_path / "fine", tiny.TRAIN_ONLY, keys))
    found = checks(tmp_path / "fine")
    assert [event["step"] for event in found] == [0, 1]
    assert all(0 < event["error"] < event["limit"] == 1e-3 for event in found)

    stopped = tiny.run_net(data, tmp_path / "stopped", tiny.TRAIN_ONLY, keys, {"REV.CHECK_INVERSION_LIMIT": 1e-12})
    assert stopped.code == 3
    assert "REV.CHECK_INVERSION_LIMIT" in stopped.err
    assert "Traceback" not in stopped.err
    assert not tiny.events(tmp_path / "stopped", "train_step")

    plain = tiny.run_net(data, tmp_path / "plain", tiny.TRAIN_ONLY, keys, {"REV.BACKPROP": "plain"})
    assert "REV.CHECK_INVERSION_PERIOD: without effect" in tiny.done(plain).err
    assert not checks(tmp_path / "plain")
