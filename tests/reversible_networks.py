"""Networks and steps that the tests of the reversible engine share."""

import copy
from collections.abc import Callable

import torch
from gradients import assert_gradients_equal, parameter_gradients
from torch import Tensor, nn
from torch.nn import functional as F

from revvideo.models.reversible import BackpropOptions, ReversibleBlock, ReversibleSequence

BATCH, TOKENS, DIM, DEPTH = 8, 6, 8, 4


class Attention(nn.Module):
    """F: two heads, dropout behind."""

    def __init__(self, dropout: float):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        return self.drop(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """G, dropout in the middle and behind."""

    def __init__(self, dropout: float):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(self.norm(x))))))


def transformer(
    dtype=torch.float64, *, depth=DEPTH, drop_path=0.5, dropout=0.2, shared_mask=False
) -> ReversibleSequence:
    torch.manual_seed(0)
    blocks = [
        ReversibleBlock(Attention(dropout), Mlp(dropout), drop_path=drop_path, shared_mask=shared_mask)
        for _ in range(depth)
    ]
    return ReversibleSequence(blocks).to(dtype)


def streams(dtype=torch.float64, shape=(BATCH, TOKENS, DIM), requires_grad=True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x1, x2 = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x1.requires_grad_(requires_grad), x2.requires_grad_(requires_grad)


def both(pair: tuple[Tensor, Tensor]) -> Tensor:
    """A loss on both streams, each in its own way."""
    y1, y2 = (y.double() for y in pair)
    weights = torch.linspace(-1, 2, y1.numel(), dtype=y1.dtype).view_as(y1)
    return (y1 * weights).sum() + (y2 * weights).sin().sum()


def plain_step(network: nn.Module, x1: Tensor, x2: Tensor) -> None:
    both(network(x1, x2)).backward()


Scenario = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor | None] | None]


def assert_like_plain(
    scenario: Scenario, network: nn.Module | None = None, *, dtype=torch.float64, stream_dtype=None, **stream_options
) -> None:
    """The scenario leaves the gradients, the buffers and the random state that it leaves under plain backprop.

    A scenario that returns a dict has these compared in place of `.grad`.
    """
    network = transformer(dtype) if network is None else network
    network.zero_grad()
    plain = copy.deepcopy(network)
    plain.options = BackpropOptions("plain")
    results = []
    for each in (network, plain):
        x1, x2 = streams(stream_dtype or dtype, **stream_options)
        torch.manual_seed(7)
        gradients = scenario(each, x1, x2)
        random_state = torch.get_rng_state()
        if gradients is None:
            gradients = {**parameter_gradients(each), "x1": x1.grad, "x2": x2.grad}
        results.append((gradients, random_state, dict(each.named_buffers())))
    (actual, actual_random, actual_buffers), (expected, expected_random, expected_buffers) = results
    assert torch.equal(actual_random, expected_random)
    assert actual_buffers.keys() == expected_buffers.keys()
    assert all(torch.equal(actual_buffers[name], expected_buffers[name]) for name in actual_buffers)
    assert_gradients_equal(actual, expected, dtype)


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)
