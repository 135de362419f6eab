"""Pooling attention computes what its equations say, whatever the options, and keeps nothing of the scores' size."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from revvideo import create_model
from revvideo.benchmark.explicit_attention import explicit_attention
from revvideo.benchmark.memory import peak_bytes
from revvideo.benchmark.relative_positions import compare
from revvideo.models.pooling_attention import AttentionOptions, PoolingAttention
from revvideo.models.relative_positions import relative_rows

GRID, HEADS, DIM, DIM_OUT = (2, 4, 4), 2, 12, 16


def attention(*, class_token=False, grid=GRID, dim=DIM, q_stride=(1, 2, 2), **options) -> PoolingAttention:
    torch.manual_seed(0)
    module = PoolingAttention(
        dim,
        DIM_OUT,
        num_heads=HEADS,
        grid=grid,
        q_kernel=(3, 3, 3),
        kv_kernel=(1, 3, 3),
        q_stride=q_stride,
        kv_stride=(1, 4, 4),
        qkv_bias=True,
        class_token=class_token,
        options=AttentionOptions(**options),
    ).double()
    with torch.no_grad():  # norms and tables that matter
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return module


def tokens(module: PoolingAttention, grid=GRID, batch: int = 2, dim: int = DIM) -> Tensor:
    count = math.prod(grid) + module.class_token
    return torch.randn(batch, count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# The equations once more, slowly: one head at a time, one channel at a time, no volume views.


def averages(module: PoolingAttention) -> bool:
    return module.options.pool_mode == "avg"


def slow_pool(module: PoolingAttention, x: Tensor, which: str, grid) -> tuple[Tensor, tuple]:
    pool, norm = getattr(module, f"pool_{which}"), getattr(module, f"norm_{which}")
    token, volume = (x[:, :1], x[:, 1:]) if module.class_token else (x[:, :0], x)
    batch, _, width = x.shape
    channels = []
    for channel in range(width):
        image = volume[:, :, channel].reshape(batch, 1, *grid)
        if module.options.pool_mode in ("avg", "max"):
            value = 0.0 if averages(module) else -math.inf
            padded = F.pad(image, [p for p in reversed(pool.padding) for _ in range(2)], value=value)
            patches = padded.unfold(2, pool.kernel_size[0], pool.stride[0])
            patches = patches.unfold(3, pool.kernel_size[1], pool.stride[1])
            patches = patches.unfold(4, pool.kernel_size[2], pool.stride[2]).flatten(5)
            channels.append(patches.mean(-1) if averages(module) else patches.amax(-1))
        else:
            weight = pool.weight[channel % pool.out_channels].unsqueeze(0)  # heads share the kernels
            channels.append(F.conv3d(image, weight, stride=pool.stride, padding=pool.padding))
    pooled_grid = tuple(channels[0].shape[2:])
    pooled = torch.cat([token, torch.stack([c.reshape(batch, -1) for c in channels], dim=-1)], dim=1)
    if norm is not None:
        size = norm.normalized_shape[0]
        pooled = torch.cat([norm(part) for part in pooled.split(size, dim=-1)], dim=-1)
    return pooled, pooled_grid


def slow_attention(module: PoolingAttention, x: Tensor, grid) -> Tensor:
    options = module.options
    if options.pool_first:
        pooled = {name: slow_pool(module, x, name, grid) for name in "qkv"}
        q, k, v = (getattr(module, name)(pooled[name][0]) for name in "qkv")
    else:
        if options.separate_qkv:
            projected = {name: getattr(module, name)(x) for name in "qkv"}
        else:
            projected = dict(zip("qkv", module.qkv(x).chunk(3, dim=-1), strict=True))
        pooled = {name: slow_pool(module, projected[name], name, grid) for name in "qkv"}
        q, k, v = (pooled[name][0] for name in "qkv")
    q_grid, k_grid = pooled["q"][1], pooled["k"][1]
    first, outputs = int(module.class_token), []
    for head in range(module.num_heads):
        channels = slice(head * module.head_dim, (head + 1) * module.head_dim)
        qh, kh, vh = q[..., channels], k[..., channels], v[..., channels]
        scores = qh @ kh.transpose(1, 2) / math.sqrt(module.head_dim)
        for axis, name in enumerate("thw"):
            table = getattr(module, f"rel_pos_{name}")
            if table is None:
                continue
            rows = relative_rows(table, q_grid[axis], k_grid[axis])
            q_places, k_places = (list(itertools.product(*map(range, g))) for g in (q_grid, k_grid))
            for i, q_place in enumerate(q_places):
                for j, k_place in enumerate(k_places):
                    term = (qh[:, first + i] * rows[q_place[axis], k_place[axis]]).sum(-1)
                    scores[:, first + i, first + j] = scores[:, first + i, first + j] + term
        out = scores.softmax(-1) @ vh
        if options.residual_pooling:
            out = torch.cat([out[:, :first], out[:, first:] + qh[:, first:]], dim=1)
        outputs.append(out)
    return module.proj(torch.cat(outputs, dim=-1))


OPTIONS = {
    "conv": {},
    "conv_unshared": {"pool_mode": "conv_unshared"},
    "avg": {"pool_mode": "avg"},
    "max": {"pool_mode": "max"},
    "separate q, k, v": {"separate_qkv": True},
    "pool first": {"pool_first": True},
    "pool first, unshared": {"pool_first": True, "pool_mode": "conv_unshared"},
    "pool first, avg": {"pool_first": True, "pool_mode": "avg"},
    "residual pooling": {"residual_pooling": True},
    "relative positions in space": {"relative_space": True},
    "relative positions in time": {"relative_time": True},
    "MViTv2": {"relative_space": True, "relative_time": True, "residual_pooling": True},
}


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_attention_is_its_equations(name, class_token):
    module = attention(class_token=class_token, **OPTIONS[name])
    x = tokens(module)
    torch.testing.assert_close(module(x, GRID), slow_attention(module, x, GRID))
    assert module.pooled_grid(GRID) == (2, 2, 2)


@pytest.mark.parametrize("grid", [(2, 7, 5), (3, 5, 7)])
def test_odd_and_oblong_grids(grid):
    """Strides round up; tables are made by rounding down, and are stretched."""
    module = attention(grid=grid, relative_space=True, relative_time=True)
    assert module.rel_pos_h.shape[0] == 2 * (grid[1] // 2) - 1
    x = tokens(module, grid)
    torch.testing.assert_close(module(x, grid), slow_attention(module, x, grid))


def test_relative_rows_are_distances():
    table = torch.arange(7.0)[:, None]
    assert relative_rows(table, 4, 4)[..., 0].tolist() == [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]
    assert relative_rows(table, 4, 2)[..., 0].tolist() == [[2, 0], [3, 1], [4, 2], [5, 3]]
    assert relative_rows(table, 2, 4)[..., 0].tolist() == [[3, 2, 1, 0], [5, 4, 3, 2]]
    stretched = relative_rows(torch.tensor([[0.0], [1.0], [2.0]]), 3, 3)[..., 0]  # 5 rows are wanted, 3 are there
    assert stretched.diagonal().tolist() == [1.0, 1.0, 1.0]
    assert stretched[2, 0] == 2.0


@pytest.mark.parametrize("class_token", [False, True])
def test_the_explicit_peer_computes_the_same_with_more_memory(class_token):
    grid = (4, 8, 8)
    torch.manual_seed(0)
    one = (1, 1, 1)
    module = PoolingAttention(
        DIM,
        DIM_OUT,
        num_heads=HEADS,
        grid=grid,
        q_kernel=one,
        kv_kernel=one,
        q_stride=one,
        kv_stride=one,
        qkv_bias=True,
        class_token=class_token,
        options=AttentionOptions(relative_space=True, relative_time=True),
    )
    x = tokens(module, grid, batch=8).float()

    def step() -> Tensor:
        module.zero_grad()
        y = module(x, grid)
        y.square().sum().backward()
        return torch.cat([y.detach().flatten(), *(p.grad.flatten() for p in module.parameters())])

    fused = step()
    fused_peak = peak_bytes(step, torch.device("cpu"))
    with explicit_attention():
        explicit = step()
        explicit_peak = peak_bytes(step, torch.device("cpu"))
    assert (fused - explicit).norm() < 1e-5 * explicit.norm()
    assert fused_peak < explicit_peak


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"MVIT\.MODE is 'mean'; expected one of conv, conv_unshared, avg, max"):
        AttentionOptions(pool_mode="mean")
    with pytest.raises(ValueError, match="attention width 15 is not divisible by 2 heads"):
        attention(dim=15, pool_first=True)


@pytest.mark.slow
def test_mvitv2_keeps_less_than_with_an_explicit_bias():
    measured = compare(create_model("mvitv2_s_16x4", drop_path=0.0), batch_size=1, pairs=1)
    assert measured.keys() == {"forward", "training step"}
    for ways in measured.values():
        assert ways["extra dimensions"][0] < ways["explicit bias"][0]
