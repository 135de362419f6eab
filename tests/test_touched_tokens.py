"""Pooling of the tokens that a strided pooling reads gives what pooling of all of them gives, gradients included."""

import pytest
import torch
from torch.nn import functional as F

from revvideo.benchmark.memory import peak_bytes
from revvideo.models.depthwise_pooling import depthwise_pool
from revvideo.models.touched_tokens import gather_tokens, touched_tokens

GEOMETRIES = {
    "stride 8": ((2, 24, 16), (3, 3, 3), (1, 8, 8), (1, 1, 1)),
    "odd sizes, the last window hangs over": ((3, 17, 13), (3, 3, 3), (1, 8, 4), (1, 1, 1)),
    "even sizes, the last window ends inside": ((2, 15, 12), (3, 3, 3), (1, 4, 4), (1, 1, 1)),
    "a stride in time, no padding": ((9, 4, 6), (2, 2, 2), (3, 1, 2), (0, 0, 0)),
    "wide padding": ((1, 14, 14), (1, 3, 3), (1, 5, 5), (0, 2, 2)),
    "one window that hangs over on both sides": ((1, 1, 20), (1, 3, 3), (1, 4, 8), (0, 1, 1)),
}


def pooled(x, grid, weight, stride, padding):
    volume = x.view(x.shape[0], *grid, -1).permute(0, 4, 1, 2, 3)
    return depthwise_pool(volume, weight, stride, padding, operator="taps")


@pytest.mark.parametrize(("grid", "kernel", "stride", "padding"), GEOMETRIES.values(), ids=GEOMETRIES)
def test_pooling_of_the_gathered_tokens_is_the_pooling_of_all(grid, kernel, stride, padding):
    torch.manual_seed(0)
    touched = touched_tokens(grid, kernel, stride, padding)
    count = grid[0] * grid[1] * grid[2]
    x = torch.randn(2, count, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, *kernel, dtype=torch.float64, requires_grad=True)
    whole = pooled(x, grid, weight, stride, padding)
    gathered = gather_tokens(x, touched)
    assert gathered.shape[1] == touched.grid[0] * touched.grid[1] * touched.grid[2] < count
    part = pooled(gathered, touched.grid, weight, touched.stride, touched.padding)
    torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(whole)
    ours, theirs = (torch.autograd.grad(y, (x, weight), grad) for y in (part, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    # Exactly the tokens that are read have a gradient: nothing is gathered for nothing.
    read = torch.autograd.grad(pooled(x, grid, torch.ones_like(weight), stride, padding).sum(), x)[0][0, :, 0] != 0
    assert torch.equal(read.nonzero()[:, 0], touched.index())


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 3, 3), (1, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((3, 3, 3), (1, 3, 3)), ((3, 15, 15), (1, 16, 16))],
)
def test_nothing_is_gathered_where_nearly_all_tokens_are_read(kernel, stride):
    assert touched_tokens((8, 56, 56), kernel, stride, tuple(k // 2 for k in kernel)) is None


@pytest.mark.parametrize(
    ("grid", "stride", "share"),
    [((8, 56, 56), (1, 8, 8), 0.13), ((8, 56, 56), (1, 4, 4), 0.54), ((8, 28, 28), (1, 4, 4), 0.51)],
)
def test_shares_of_the_first_blocks_of_rev_mvit_b(grid, stride, share):
    touched = touched_tokens(grid, (3, 3, 3), stride, (1, 1, 1))
    assert touched.index().numel() / (grid[0] * grid[1] * grid[2]) == pytest.approx(share, abs=0.005)


def test_the_backward_needs_one_tensor_of_the_input_s_size():
    x = torch.randn(1, 8 * 56 * 56, 32, requires_grad=True)
    gathered = gather_tokens(x, touched_tokens((8, 56, 56), (3, 3, 3), (1, 4, 4), (1, 1, 1)))
    grad = torch.randn_like(gathered)
    peak = peak_bytes(lambda: torch.autograd.grad(gathered, x, grad, retain_graph=True), torch.device("cpu"))
    assert peak <= 1.01 * x.numel() * x.element_size()


@pytest.mark.slow
def test_compiles_without_a_break():
    touched = touched_tokens((2, 16, 16), (3, 3, 3), (1, 8, 8), (1, 1, 1))
    x = torch.randn(2, 512, 4)
    compiled = torch.compile(lambda x: F.relu(gather_tokens(x, touched)), fullgraph=True)
    torch.testing.assert_close(compiled(x), F.relu(gather_tokens(x, touched)))
