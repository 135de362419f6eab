"""Whether a position table is the fixed one of `sincos_table`, and for which grid; read from its numbers."""

import torch
from torch import Tensor

from revvideo.models.positions import sincos_table
from revvideo.models.resize_positions import Grid

TOLERANCE = 1e-5


def fixed_table(grid: Grid, dim: int, class_rows: int) -> Tensor:
    """``(1, [1 +] T H W, dim)``: the fixed positions of a grid, a class token's row of zeros first."""
    with torch.device("cpu"):  # numbers are needed, even while a model is built without memory
        table = sincos_table(grid, dim)
        return torch.cat([table.new_zeros(class_rows, dim), table]).unsqueeze(0)


def is_same_table(first: Tensor, second: Tensor) -> bool:
    """Whether two tables are equal within `TOLERANCE`, or within the rounding of the dtype of ``first``."""
    if first.shape != second.shape:
        return False
    tolerance = max(TOLERANCE, torch.finfo(first.dtype).eps if first.is_floating_point() else 0.0)
    return bool(((first.float().cpu() - second.float().cpu()).abs() <= tolerance).all())


def fixed_grid(table: Tensor, class_rows: int) -> Grid | None:
    """The grid whose fixed positions a joint table ``(1, [1 +] N, D)`` holds; None for a learned table.

    The channels of the frame change first after a whole frame, those of the row after a whole row.
    """
    dim = table.shape[-1]
    if table.is_meta or table.ndim != 3 or dim % 16 or table.shape[1] <= class_rows:
        return None
    tokens = table[0, class_rows:].detach().float().cpu()
    area = _first_change(tokens[:, : dim // 4])
    width = _first_change(tokens[:area, dim // 8 * 5 :])
    if len(tokens) % area or area % width:
        return None
    grid = (len(tokens) // area, area // width, width)
    return grid if is_same_table(table, fixed_table(grid, dim, class_rows)) else None


def _first_change(rows: Tensor) -> int:
    """The index of the first row that is not as row 0; the number of rows where there is none."""
    changed = ((rows - rows[0]).abs() > 0.01).any(dim=1).nonzero()
    return int(changed[0]) if len(changed) else len(rows)
