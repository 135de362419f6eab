"""Layers that every transformer of the family shares.

B batch, T frames, H height, W width, N tokens, C input channels, D width.
"""

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
INIT_SCHEMES = ("trunc_normal", "fan_in")


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the epsilon of the whole ViT/MViT family, 1e-6."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=LAYER_NORM_EPS)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between: ``(B, N, dim_in) -> (B, N, dim_out)``."""

    def __init__(self, dim_in: int, hidden: int, dim_out: int, *, dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim_in, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim_out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


def drop_path_mask(x: Tensor, probability: float) -> Tensor | None:
    """Stochastic depth (Huang et al. 2016): 0 with ``probability``, else ``1 / (1 - probability)``, for each sample.

    Returns:
        ``(B, 1, ..., 1)`` in the dtype of ``x``, or None when the probability is 0. Drawn in float32 from the
        generator of ``x``'s device, so that the draw does not depend on the precision of the run.
    """
    if probability == 0.0:
        return None
    keep = 1.0 - probability
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    return torch.empty(shape, device=x.device).bernoulli_(keep).div_(keep).to(x.dtype)


class DropPath(nn.Module):
    """Drops the branch ``x`` (batch first) of whole samples in training; see `drop_path_mask`."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        mask = drop_path_mask(x, self.probability if self.training else 0.0)
        return x if mask is None else x * mask

    def extra_repr(self) -> str:
        return f"probability={self.probability:.3f}"


class PatchEmbed(nn.Module):
    """Overlapping 3D patches to tokens: ``(B, C, T, H, W) -> (B, N, D)``, N running over T, then H, then W."""

    def __init__(self, in_channels: int, dim: int, *, kernel: tuple, stride: tuple, padding: tuple):
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)  # (B, D, T', H', W')
        return x.flatten(2).transpose(1, 2)  # (B, N, D)

    def grid(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Token grid (T', H', W') of a clip of ``size`` (frames, height, width)."""
        conv = self.proj
        return tuple(
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(size, conv.kernel_size, conv.stride, conv.padding, strict=True)
        )


class PositionEmbedding(nn.Module):
    """Mixed into a model, whose own parameters the tables are: their names carry no prefix in official checkpoints.

    Separable: a spatial table ``pos_embed_spatial`` (1, H'W', D) repeated over time plus a temporal table
    ``pos_embed_temporal`` (1, T', D) repeated over space, and ``pos_embed_class`` for the class token. Otherwise one
    table ``pos_embed`` over all tokens.
    """

    def add_position_tables(self, grid: tuple[int, int, int], dim: int, *, class_token: bool, separable: bool) -> None:
        frames, height, width = grid
        self.separable_positions = separable
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        if separable:
            self.pos_embed_spatial = nn.Parameter(torch.zeros(1, height * width, dim))
            self.pos_embed_temporal = nn.Parameter(torch.zeros(1, frames, dim))
            self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, frames * height * width + class_token, dim))

    def position_tables(self) -> list[nn.Parameter]:
        """The class token and the tables that exist."""
        names = ("cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class", "pos_embed")
        return [table for name in names if (table := getattr(self, name, None)) is not None]

    def add_positions(self, x: Tensor) -> Tensor:
        """Prepend the class token, if there is one, and add the positions: ``(B, N, D) -> (B, [1 +] N, D)``."""
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        if not self.separable_positions:
            return x + self.pos_embed
        frames, area = self.pos_embed_temporal.shape[1], self.pos_embed_spatial.shape[1]
        table = self.pos_embed_spatial.repeat(1, frames, 1) + self.pos_embed_temporal.repeat_interleave(area, dim=1)
        if self.cls_token is not None:
            table = torch.cat([self.pos_embed_class, table], dim=1)
        return x + table


class ClassificationHead(nn.Module):
    """Dropout and one linear layer: pooled features ``(B, D) -> logits (B, K)``."""

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.dropout(x))


def init_weights(module: nn.Module, scheme: str = "trunc_normal") -> None:
    """Initialise one module, for ``model.apply``.

    ``"trunc_normal"``, the MViT family's own: truncated normal of 0.02 for the weights of linear layers and
    convolutions; biases of linear layers *and* of LayerNorm start at 0.02, not 0 (as in PySlowFast); biases of
    convolutions keep PyTorch's default. Made for widths of 96 and more: in narrow networks it leaves the activations
    so small that the network is nearly linear, and training stays at chance for long.

    ``"fan_in"``: truncated normal of ``1 / sqrt(fan_in)``, all biases 0; activations keep their size at any width.

    Raises:
        ValueError: an unknown scheme.
    """
    if scheme not in INIT_SCHEMES:
        raise ValueError(f"the initialisation is {scheme!r}; expected one of {', '.join(INIT_SCHEMES)} (INIT.SCHEME)")
    by_fan_in = scheme == "fan_in"
    convolution = isinstance(module, (nn.Conv2d, nn.Conv3d))
    if isinstance(module, nn.Linear) or convolution:
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5 if by_fan_in else 0.02)
    biased = isinstance(module, (nn.Linear, nn.LayerNorm)) or (convolution and by_fan_in)
    if biased and module.bias is not None:
        nn.init.constant_(module.bias, 0.0 if by_fan_in else 0.02)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
