"""Position tables for another grid of tokens. Pure functions of a table and of its grids before and after.

L rows of a table, D width, (T, H, W) tokens along each axis. As in PySlowFast: bicubic in space, linear in time and in
relative positions, corners not aligned. Computed in float32; the dtype of the table is kept.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

Grid = tuple[int, int, int]  # tokens along (T, H, W)


def square_side(rows: int) -> int:
    """Side of the square grid that has ``rows`` tokens.

    Raises:
        ValueError: it is no square.
    """
    side = math.isqrt(max(rows, 0))
    if rows < 1 or side * side != rows:
        raise ValueError(f"a table of {rows} rows is for no square grid of tokens, so its height and width are unknown")
    return side


def joint_grid(rows: int, target: Grid, *, image: bool = False) -> Grid:
    """The grid of a joint table of ``rows`` tokens that becomes one for ``target``: as many frames, or as many pixels.

    Args:
        rows: of the table, without a class token's.
        target: the grid that it is resized to.
        image: whether the table is of an image network, whose grid has one frame.

    Raises:
        ValueError: neither gives a whole number of square frames, or both do, with different grids.
    """
    frames, height, width = target
    if image:
        return 1, square_side(rows), square_side(rows)
    readings = []
    if rows % frames == 0 and math.isqrt(rows // frames) ** 2 == rows // frames:
        side = square_side(rows // frames)
        readings.append((frames, side, side))
    if rows % (height * width) == 0:
        readings.append((rows // (height * width), height, width))
    readings = list(dict.fromkeys(readings))
    if len(readings) == 1:
        return readings[0]
    settle = "its grid is unknown; load_weights(..., source_grid=(T', H', W')) says which it is"
    if readings:
        fitting = " or ".join(grid_text(reading) for reading in readings)
        raise ValueError(f"a table of {rows} rows may be for {fitting} tokens, so {settle}")
    raise ValueError(
        f"a table of {rows} rows is neither {frames} square frames nor frames of {height} x {width} tokens, so {settle}"
    )


def grid_text(grid: Grid | tuple[int, int]) -> str:
    """``(8, 14, 14)`` -> ``8 x 14 x 14``."""
    return " x ".join(map(str, grid))


def resize_spatial(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """``(1, H W, D)`` to another (H, W), bicubic."""
    volume = table.float().transpose(1, 2).unflatten(2, source)  # (1, D, H, W)
    resized = F.interpolate(volume, size=target, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(table.dtype)


def resize_temporal(table: Tensor, frames: int) -> Tensor:
    """``(1, T, D)`` to another T, linear."""
    resized = F.interpolate(table.float().transpose(1, 2), size=frames, mode="linear", align_corners=False)
    return resized.transpose(1, 2).to(table.dtype)


def resize_joint(table: Tensor, source: Grid, target: Grid, *, class_token: bool) -> Tensor:
    """``(1, [1 +] T H W, D)`` to another grid: bicubic for images, trilinear for video; a class token's row stays."""
    first, rest = table[:, : int(class_token)], table[:, int(class_token) :]
    if source[0] == target[0] == 1:
        return torch.cat([first, resize_spatial(rest, source[1:], target[1:])], dim=1)
    volume = rest.float().transpose(1, 2).unflatten(2, source)  # (1, D, T, H, W)
    resized = F.interpolate(volume, size=target, mode="trilinear", align_corners=False)
    return torch.cat([first, resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def resize_relative(table: Tensor, rows: int) -> Tensor:
    """``(L, D)`` relative positions along one axis to another L, linear."""
    resized = F.interpolate(table.float().t().unsqueeze(0), size=rows, mode="linear", align_corners=False)
    return resized[0].t().to(table.dtype)
