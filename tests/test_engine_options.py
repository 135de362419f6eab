"""Chunks, kept attention, buffered blocks and the overlapped recomputation change nothing but memory and time."""

import logging
from collections import Counter

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from reversible_networks import assert_like_plain, plain_step, streams, transformer
from tiny_models import CLIP_SHAPE, tiny_rev_mvit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from revvideo.models import overlapped_recompute, reversible
from revvideo.models.branch_call import BranchCall, Pieces
from revvideo.models.keep_plan import BlockMemory, KeepPlan, plan_keeping
from revvideo.models.reversible import BackpropOptions, ReversibleSequence

BATCH = 3


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def step(model: nn.Module, dtype: torch.dtype, autocast: bool = False):
    """Gradients, the operators of the backward, and the generator's state after it."""
    generator = torch.Generator().manual_seed(2)
    clips = torch.randn(BATCH, *CLIP_SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(clips)
    loss = nn.functional.cross_entropy(logits.float() if autocast else logits, torch.tensor([0, 3, 1]))
    with Calls() as calls:
        loss.backward()
    return parameter_gradients(model), calls.counts, torch.get_rng_state()


OPTIONS = {
    "everything in one piece": {"chunk_tokens": 0},
    "chunks that do not divide": {"chunk_tokens": 50},
    "a few tokens at a time": {"chunk_tokens": 9, "keep_mib": 100.0},
    "all kept that can be": {"keep_mib": 100.0},
    "nothing kept": {"keep_mib": -1},
    "kept where it costs nothing": {"keep_mib": 0},
    "every block buffered": {"buffer_every": 1},
    "every second block buffered": {"buffer_every": 2, "chunk_tokens": 33},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradients_and_random_numbers_are_those_of_plain_backprop(options, dtype, dropout):
    both = [
        step(tiny_rev_mvit(drop_path=0.4, dropout=dropout, **backprop).to(dtype), dtype)
        for backprop in (options, {"backprop": "plain"})
    ]
    assert_gradients_equal(both[0][0], both[1][0], dtype)
    assert torch.equal(both[0][2], both[1][2])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_under_autocast_are_those_of_plain_backprop(options):
    both = [
        step(tiny_rev_mvit(drop_path=0.4, **backprop), torch.float32, autocast=True)
        for backprop in (options, {"backprop": "plain"})
    ]
    assert_gradients_equal(both[0][0], both[1][0], torch.bfloat16)


@pytest.mark.parametrize("mode", ["aten", "taps", "auto"])
@pytest.mark.parametrize("residual", [False, True])
def test_projections_by_heads_have_the_gradients_of_whole_ones(mode, residual):
    from reduced_models import clips_for, reduced_model

    gradients = []
    for backprop in ("reversible", "plain"):
        network = {"residual_pooling": residual, "relative_space": residual, "qkv_bias": True}
        model = reduced_model("rev_mvit_b_16x4", backprop=backprop, pooling=mode, **network).double()
        torch.nn.functional.cross_entropy(model(clips_for(model).double()), torch.tensor([0, 1])).backward()
        gradients.append(parameter_gradients(model))
    assert_gradients_equal(*gradients, torch.float64)


ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.mark.parametrize(("keep_mib", "recomputed"), [(-1, 6), (100.0, 0)])
def test_kept_attention_is_not_computed_again(keep_mib, recomputed):
    _, operators, _ = step(tiny_rev_mvit(keep_mib=keep_mib), torch.float32)
    assert operators[ATTENTION] == recomputed
    assert operators[f"{ATTENTION}_backward"] == 6


def test_chunks_are_made():
    _, whole, _ = step(tiny_rev_mvit(keep_mib=-1, chunk_tokens=0), torch.float32)
    _, chunked, _ = step(tiny_rev_mvit(keep_mib=-1, chunk_tokens=64), torch.float32)
    # 3 samples of 4 x 8 x 8, 4 x 4 x 4 and 4 x 2 x 2 tokens: 12, 3 and 1 chunks in 1, 2 and 3 of the six blocks.
    assert chunked["gelu"] - whole["gelu"] == (12 - 1) * 1 + (3 - 1) * 2
    assert chunked[ATTENTION] - whole[ATTENTION] == 3 - 1 + 0  # by samples, about 8 chunks: only in the first stage


def test_pieces_are_few_and_of_nearly_one_size():
    assert Pieces.equal(10, 4, by_token=True).sizes == [4, 4, 2]
    assert Pieces.equal(9, 8, by_token=False).sizes == [5, 4]
    x = torch.arange(24).view(2, 4, 3)
    assert [p.shape for p in Pieces([5, 3], by_token=True).of(x)] == [(1, 5, 3), (1, 3, 3)]
    assert [p.shape for p in Pieces([1, 1], by_token=False).of(x)] == [(1, 4, 3), (1, 4, 3)]


def test_a_tokenwise_branch_of_the_wrong_shape_is_refused():
    class Halves(nn.Linear):
        tokenwise = True

    wrong = ReversibleSequence([(nn.Linear(8, 8), Halves(8, 4))], chunk_tokens=4)
    with pytest.raises(ValueError, match=r"F or G returned the shape \(1, 4, 4\); expected"):
        wrong(*streams(torch.float32))


class SharedGradient(nn.Module):
    """A tokenwise branch with two parameters to which autograd returns one and the same gradient tensor."""

    tokenwise = True

    def __init__(self):
        super().__init__()
        self.weight, self.delta = (nn.Parameter(torch.randn(8, 8, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return nn.functional.linear(x, self.weight + self.delta)


def test_gradients_that_autograd_shares_are_summed_up_once_in_chunks():
    torch.manual_seed(0)
    network = ReversibleSequence([(nn.Linear(8, 8).double(), SharedGradient())], chunk_tokens=5)
    assert_like_plain(plain_step, network)


def test_the_last_block_is_divided_in_the_backward_though_its_gradients_are_slices():
    def gelus(**options):
        model = tiny_rev_mvit(keep_mib=-1, **options)
        streams, _ = model.rev_backbone(model.embed(torch.randn(BATCH, *CLIP_SHAPE)), model.grid)
        with Calls() as calls:
            torch.cat(streams, dim=-1).square().sum().backward()
        return calls.counts["gelu"]

    # Six blocks; 4 x 2 x 2 tokens of 3 samples in the last three, in chunks of 24: two in each instead of one.
    assert gelus(chunk_tokens=24) - gelus(chunk_tokens=0) == (32 - 1) * 1 + (8 - 1) * 2 + (2 - 1) * 3


def test_attention_is_kept_without_chunks_too():
    _, operators, _ = step(tiny_rev_mvit(keep_mib=100.0, chunk_tokens=0), torch.float32)
    assert operators[ATTENTION] == 0


def test_random_state_is_real_under_fake_tensors_and_in_an_export():
    """The state is noted in the forward of a reversible step, which planners trace and exporters may."""
    from torch._subclasses import FakeTensorMode

    from revvideo.models.call_conditions import _random_state

    expected = _random_state(torch.device("cpu"))
    assert expected == [torch.get_rng_state().numpy().tobytes()]
    with FakeTensorMode():
        assert _random_state(torch.device("cpu")) == expected
    model = tiny_rev_mvit().eval()
    clips = torch.randn(1, *CLIP_SHAPE)
    with torch.no_grad():
        exported = torch.export.export(model, (clips,))
        torch.testing.assert_close(exported.module()(clips), model(clips))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 3, 8, 32, 32\); expected at least one clip"):
        tiny_rev_mvit()(torch.randn(0, *CLIP_SHAPE))


def test_a_float64_model_under_autocast_stays_in_float64():
    model = tiny_rev_mvit().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.randn(1, *CLIP_SHAPE, dtype=torch.float64)).dtype is torch.float64


# The plan


def block(attention: int, stream: int, *, projections: int = 0) -> BlockMemory:
    rest = {"kept": 0, "activation": stream, "keys": 0, "hidden": 0, "weights": 0}
    transition = projections > 0
    return BlockMemory(transition=transition, attention=attention, stream=stream, projections=projections, **rest)


def test_late_blocks_keep_what_does_not_raise_the_peak():
    blocks = [block(8, 8), *(block(2, 2) for _ in range(4))]  # peak: 7.5 x 8 = 60 in the first; 15 in each other one
    assert plan_keeping(blocks, 0) == KeepPlan(attention=frozenset({1, 2, 3, 4}))
    blocks = [block(8, 8), *(block(20, 2) for _ in range(4))]
    assert plan_keeping(blocks, 0).attention == {3, 4}  # 15 + 2 x 20 <= 60
    assert plan_keeping(blocks, 15).attention == {2, 3, 4}
    assert plan_keeping(blocks, None).attention == {1, 2, 3, 4}  # 36 more
    assert plan_keeping(blocks, 1000).attention == {0, 1, 2, 3, 4}


def test_projections_of_transitions_come_after_attention():
    blocks = [block(8, 8), block(1, 8, projections=10)]  # 60, and 48 + 10 in the transition
    assert plan_keeping(blocks, 0) == KeepPlan(frozenset({1}), frozenset({1}))
    assert plan_keeping(blocks, 8) == KeepPlan(frozenset({0, 1}), frozenset({1}))  # 8 + 1 + 58 <= 68
    assert plan_keeping([block(8, 8), block(1, 8, projections=20)], 8) == KeepPlan(frozenset({0, 1}))


# Buffered blocks and the check


def check_of(model: nn.Module, dtype=torch.float32):
    with model.check_inversion() as check:
        step(model, dtype)
    return check


def test_the_check_compares_both_inputs_of_every_reversible_block():
    model = tiny_rev_mvit(drop_path=0.3)
    errors = check_of(model).errors
    assert errors.keys() == {(block, stream) for block in (0, 2, 4, 5) for stream in (1, 2)}  # 1 and 3 are transitions
    assert 0 < max(errors.values()) < 1e-5
    assert max(check_of(tiny_rev_mvit().double(), torch.float64).errors.values()) < 1e-14
    assert model.rev_backbone.inversion_check is None


def test_the_check_changes_no_gradient():
    expected = step(tiny_rev_mvit(drop_path=0.3), torch.float32)[0]
    model = tiny_rev_mvit(drop_path=0.3)
    with model.check_inversion():
        actual = step(model, torch.float32)[0]
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_block_that_swallows_its_input_is_named_and_buffers_repair_it():
    def scaled(**options):
        model = tiny_rev_mvit(**options)
        for parameter in model.rev_backbone.layers[4].G.mlp.parameters():
            parameter.data.mul_(1000.0)
        return model

    block, stream, error = check_of(scaled(keep_mib=-1)).worst()
    assert (block, stream) == (4, 2)  # x2 = y2 - G(y1), with a G that is far larger than x2
    assert error > 1e-3
    plain = step(scaled(backprop="plain"), torch.float32)[0]
    with pytest.raises(AssertionError, match="gradients differ"):
        assert_gradients_equal(step(scaled(keep_mib=-1), torch.float32)[0], plain, torch.float32)
    assert_gradients_equal(step(scaled(keep_mib=-1, buffer_every=1), torch.float32)[0], plain, torch.float32)


def test_buffers_end_the_growth_of_the_error_with_depth():
    def errors(buffer_every: int) -> float:
        torch.manual_seed(0)
        network = transformer(torch.float32, depth=24, dropout=0.0, drop_path=0.0)
        network.options = BackpropOptions(buffer_every=buffer_every)
        check = reversible.InversionCheck()
        x1, x2 = streams(torch.float32)
        (y1, y2), _ = reversible.run_blocks(network.layers, x1, x2, options=network.options, check=check)
        (y1 + y2).square().sum().backward()
        return check.worst()[2]

    assert errors(4) < 0.5 * errors(0)


# Overlapped recomputation: its order of things runs on the CPU without streams, too.


@pytest.fixture
def overlapping(monkeypatch):
    """As on a device with streams."""
    monkeypatch.setattr(reversible, "can_overlap", lambda device: True)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"buffer_every": 1}, {"buffer_every": 2}])
def test_overlapped_gradients_are_those_of_plain_backprop(overlapping, depth, options):
    network = transformer(depth=depth)
    network.options = BackpropOptions(parallel=True, **options)
    assert_like_plain(plain_step, network)


def test_the_next_recomputation_is_launched_before_the_gradient(overlapping, monkeypatch):
    order = []
    replay, gradients = BranchCall.replay, overlapped_recompute.Replayed.gradients

    def logged_replay(self, *args, **kwargs):
        order.append("replay")
        return replay(self, *args, **kwargs)

    def logged_gradients(self, grad):
        order.append("gradient")
        return gradients(self, grad)

    monkeypatch.setattr(BranchCall, "replay", logged_replay)
    monkeypatch.setattr(overlapped_recompute.Replayed, "gradients", logged_gradients)
    network = transformer(depth=2)
    network.options = BackpropOptions(parallel=True)
    sum(network(*streams())).sum().backward()
    assert order == ["replay", "replay", "gradient", "replay", "gradient", "replay", "gradient", "gradient"]


def test_without_streams_one_line_says_that_the_backward_is_serial(caplog):
    overlapped_recompute._tell_serial.cache_clear()
    network = transformer()
    network.options = BackpropOptions(parallel=True)
    with caplog.at_level(logging.INFO):
        assert_like_plain(plain_step, network)
    assert [r.message for r in caplog.records if "REV.PARALLEL has no effect on a cpu" in r.message] == [
        "REV.PARALLEL has no effect on a cpu: recomputation and gradients run one after the other"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two CUDA streams")
@pytest.mark.parametrize("depth", [3, 4])
def test_overlapped_gradients_on_cuda(depth):
    gradients = []
    for options in (BackpropOptions(parallel=True), BackpropOptions("plain")):
        network = transformer(depth=depth, dropout=0.0, drop_path=0.0).cuda()
        network.options = options
        x1, x2 = (x.detach().cuda().requires_grad_() for x in streams())
        for _ in range(5):  # races would differ from time to time
            network.zero_grad()
            (network(x1, x2)[0].square().sum()).backward()
        gradients.append(parameter_gradients(network))
    assert_gradients_equal(*gradients, torch.float64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_tokens": -2}, r"chunk_tokens is -2; expected a whole number, -1 or more \(REV.CHUNK\)"),
        ({"keep_mib": -3}, r"keep_mib is -3.*REV.KEEP_MIB"),
        ({"keep_mib": float("nan")}, r"keep_mib is nan.*REV.KEEP_MIB"),
        ({"buffer_every": 1.5}, r"buffer_every is 1.5.*REV.BUFFER_EVERY"),
    ],
)
def test_numbers_outside_of_their_limits(options, message):
    with pytest.raises(ValueError, match=message):
        BackpropOptions(**options)
