"""Absolute positions of tokens: learned tables, joint or one each for space and time, or fixed sines and cosines.

B batch, N tokens, D width, (T', H', W') the grid of the tokens.
"""

import torch
from torch import Tensor, nn

from revvideo.models.resize_positions import Grid, resize_joint, resize_spatial, resize_temporal

POSITIONS = ("joint", "separable", "sincos", "sincos_twice", "none")


class PositionEmbedding(nn.Module):
    """Mixed into a model, whose own parameters the tables are: their names carry no prefix in official checkpoints.

    - ``"separable"``: a spatial table ``pos_embed_spatial`` (1, H'W', D) repeated over time plus a temporal table
      ``pos_embed_temporal`` (1, T', D) repeated over space, and ``pos_embed_class`` for the class token.
    - ``"joint"``: one table ``pos_embed`` (1, [1 +] T'H'W', D).
    - ``"sincos"``: ``pos_embed`` is fixed, see `sincos_table`. PySlowFast adds it twice where MVIT.USE_ABS_POS is left
      on, and its checkpoints were trained so: ``"sincos_twice"``.
    - ``"none"``: no table.
    """

    def add_position_tables(self, grid: Grid, dim: int, *, class_token: bool, positions: str) -> None:
        if positions not in POSITIONS:
            raise ValueError(f"positions is {positions!r}; expected one of {', '.join(POSITIONS)}")
        frames, height, width = grid
        self.positions = positions
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        if positions == "separable":
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, frames, dim))
            self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        elif positions == "joint":
            self.pos_embed = nn.Parameter(torch.zeros(1, frames * height * width + class_token, dim))
        elif positions != "none":
            table = sincos_table(grid, dim)  # (T'H'W', D)
            table = torch.cat([table.new_zeros(int(class_token), dim), table])
            self.pos_embed = nn.Parameter(table.unsqueeze(0), requires_grad=False)

    def learned_tables(self) -> list[nn.Parameter]:
        """The class token and the learned tables that exist."""
        names = ("cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class", "pos_embed")
        tables = [table for name in names if (table := getattr(self, name, None)) is not None]
        return [table for table in tables if table.requires_grad]

    def resize_position_tables(self, source: Grid, target: Grid) -> None:
        """Interpolate the tables from one grid of tokens to another; fixed ones are computed anew."""
        if self.positions == "separable":
            spatial = resize_spatial(self.pos_embed_spatial.data, source[1:], target[1:])
            self.pos_embed_spatial.data = spatial
            self.pos_embed_temporal.data = resize_temporal(self.pos_embed_temporal.data, target[0])
        elif self.positions == "joint":
            has_token = self.cls_token is not None
            self.pos_embed.data = resize_joint(self.pos_embed.data, source, target, class_token=has_token)
        elif self.positions != "none":
            old = self.pos_embed.data
            table = sincos_table(target, old.shape[-1]).to(old)
            self.pos_embed.data = torch.cat([old[0, : int(self.cls_token is not None)], table]).unsqueeze(0)

    def add_positions(self, x: Tensor) -> Tensor:
        """Prepend the class token, if there is one, and add the positions: ``(B, N, D) -> (B, [1 +] N, D)``."""
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)  # (B, 1 + N, D)
        if self.positions == "none":
            return x
        if self.positions == "sincos_twice":
            return x + 2 * self.pos_embed
        if self.positions != "separable":
            return x + self.pos_embed
        frames, area = self.pos_embed_temporal.shape[1], self.pos_embed_spatial.shape[1]
        table = self.pos_embed_spatial.repeat(1, frames, 1) + self.pos_embed_temporal.repeat_interleave(area, dim=1)
        if self.cls_token is not None:
            table = torch.cat([self.pos_embed_class, table], dim=1)
        return x + table


def sincos_table(grid: Grid, dim: int) -> Tensor:
    """Fixed positions of the tokens of ``grid``, ``(T'H'W', dim)`` float32 (Feichtenhofer et al. 2022, MAE for video).

    A quarter of the channels encodes the frame, three eighths the column, three eighths the row; each part is the
    sines, then the cosines, of the coordinate times ``10000^(-i / n)``, i = 0 .. n - 1, n half the part's channels.

    Raises:
        ValueError: ``dim`` is not divisible by 16.
    """
    if dim % 16:
        raise ValueError(
            f"MVIT.EMBED_DIM is {dim}; sine-cosine positions (MVIT.USE_FIXED_SINCOS_POS) need a multiple of 16"
        )

    def waves(length: int, channels: int) -> Tensor:
        half = channels // 2
        rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * rates  # (length, half)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    frames, height, width = grid
    time = waves(frames, dim // 4)[:, None, None].expand(-1, height, width, -1)
    column = waves(width, dim // 8 * 3)[None, None].expand(frames, height, -1, -1)
    row = waves(height, dim // 8 * 3)[None, :, None].expand(frames, -1, width, -1)
    return torch.cat([time, column, row], dim=-1).flatten(0, 2).float()
