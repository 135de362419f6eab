"""The reversible engine with any F and G."""

import pytest
import torch
from reversible_networks import DEPTH, DIM, assert_like_plain, both, plain_step, streams, transformer
from torch import nn

from revvideo.models.reversible import ReversibleBlock, ReversibleSequence

# Any F and G


class DepthwiseMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.scale * self.conv(x).tanh()


def convolutions() -> ReversibleSequence:
    torch.manual_seed(0)
    blocks = [
        (
            nn.Sequential(
                nn.Conv2d(4, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(inplace=True),
                nn.Conv2d(6, 4, 1),
            ),
            nn.Sequential(nn.BatchNorm2d(4, momentum=None), DepthwiseMixer()),
        )
        for _ in range(3)
    ]
    return ReversibleSequence(blocks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolutions_with_batch_norm(dtype, training):
    network = convolutions().to(dtype)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert_like_plain(plain_step, network.train(training), dtype=dtype, shape=(4, 4, 5, 5))  # compares buffers too
    unchanged = [torch.equal(buffer, before[name]) for name, buffer in network.named_buffers()]
    assert unchanged == [not training] * len(before)
    counts = [count.item() for name, count in network.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [int(training)] * 6


def test_streams_in_other_memory_formats():
    def scenario(network, x1, x2):  # the second is a strided view; the streams that the backward rebuilds are dense
        both(network(x1[:, :4].to(memory_format=torch.channels_last), x2[:, ::2])).backward()

    assert_like_plain(scenario, convolutions().double(), shape=(4, 8, 5, 5))


def test_branches_without_parameters_or_gradients():
    class Constant(nn.Module):
        def forward(self, x):
            return x.detach().cos()

    network = ReversibleSequence([(nn.Identity(), nn.Tanh()), (Constant(), nn.Linear(DIM, DIM))]).double()
    assert_like_plain(plain_step, network)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_branch_that_overwrites_its_input_is_refused(requires_grad):
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x.mul_(2))

    network = ReversibleSequence([(Doubled(DIM, DIM), nn.Linear(DIM, DIM))]).double()
    x1, x2 = streams(requires_grad=requires_grad)
    with pytest.raises(RuntimeError, match=r"in-?place"):  # the recompute would find another input than the forward
        plain_step(network, x1 * 1, x2 * 1)


def test_parameters_shared_between_blocks_and_inside_a_branch():
    network = transformer()
    network.layers[2].G = network.layers[0].G
    network.layers[3].F.proj.weight = network.layers[1].F.proj.weight
    mixer = nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))
    mixer[2].weight = mixer[0].weight
    network.layers[1].G = mixer.double()
    assert_like_plain(plain_step, network)
    counts = []
    network.layers[0].G.fc1.weight.register_hook(counts.append)
    plain_step(network, *streams())
    assert len(counts) == 1


def test_an_empty_sequence_is_the_identity():
    x1, x2 = streams()
    y1, y2 = ReversibleSequence([])(x1, x2)
    assert torch.equal(y1, x1)
    assert torch.equal(y2, x2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ReversibleBlock(torch.sin, nn.Identity()), r"^F is a builtin_function_or_method.*torch\.nn\.Module"),
        (lambda: ReversibleBlock(nn.Identity(), None), "^G is a NoneType"),
        (lambda: ReversibleBlock(nn.Identity(), nn.Identity(), drop_path=1.0), r"drop_path is 1\.0.*\[0, 1\)"),
        (lambda: ReversibleBlock(nn.Identity(), nn.Identity(), drop_path=-0.1), r"drop_path is -0\.1"),
        (lambda: ReversibleSequence([], backprop="fast"), "'fast'; expected one of reversible, plain.*REV.BACKPROP"),
        (lambda: transformer()(torch.ones(2, 3), torch.ones(2, 4)), r"\(2, 3\) and \(2, 4\); expected one shape"),
        (lambda: transformer()(*streams(), intermediates=[DEPTH]), r"\[4\] ask for a block outside 0\.\.3"),
        (lambda: transformer()(*streams(), intermediates=[-1]), r"\[-1\] ask for a block outside 0\.\.3"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
