"""Layers that every transformer of the family shares.

B batch, T frames, H height, W width, N tokens, C input channels, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from revvideo.models.call_conditions import autocast_is_on

LAYER_NORM_EPS = 1e-6
INIT_SCHEMES = ("trunc_normal", "fan_in")


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the epsilon of the whole ViT/MViT family, 1e-6, as default; it returns the dtype of its input.

    On the CPU inputs of half precision are normalised in float32: there the gradient of the bias is lost otherwise,
    46 % of it for 12,544 rows of bfloat16 (torch 2.15).
    """

    def __init__(self, dim: int, eps: float = LAYER_NORM_EPS):
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x).to(x.dtype)
        parameters = (self.weight.float(), self.bias.float())
        return functional.layer_norm(x.float(), self.normalized_shape, *parameters, self.eps).to(x.dtype)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """``x`` in the dtype that autocast will want it in, cast once for several linear layers instead of by each."""
    kind = x.device.type
    if torch.compiler.is_compiling() or not autocast_is_on(kind) or x.dtype is torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


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
    """Patches to tokens: ``(B, C, T, H, W) -> (B, N, D)``, N running over T, then H, then W.

    Args:
        in_channels: C.
        dim: D.
        kernel, stride, padding: over (T, H, W); or over (H, W), for images (T = 1).
    """

    def __init__(self, in_channels: int, dim: int, *, kernel: tuple, stride: tuple, padding: tuple):
        super().__init__()
        convolution = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
        self.proj = convolution(in_channels, dim, tuple(kernel), tuple(stride), tuple(padding))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.squeeze(2) if isinstance(self.proj, nn.Conv2d) else x)  # (B, D, [T',] H', W')
        return x.flatten(2).transpose(1, 2).contiguous()  # (B, N, D), D innermost: else every layer would copy it

    def grid(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Token grid (T', H', W') of a clip of ``size`` (frames, height, width)."""
        conv, axes = self.proj, len(self.proj.kernel_size)
        sizes = zip(size[-axes:], conv.kernel_size, conv.stride, conv.padding, strict=True)
        return (1,) * (3 - axes) + tuple((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)


def classifier(dim: int, num_classes: int) -> nn.Module:
    """The last linear layer, ``(B, dim) -> (B, num_classes)``; for 0 classes none, so that features pass."""
    return nn.Linear(dim, num_classes) if num_classes else nn.Identity()


class ClassificationHead(nn.Module):
    """Dropout and one linear layer: pooled features ``(B, D) -> logits (B, K)``."""

    def __init__(self, dim: int, num_classes: int, *, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = classifier(dim, num_classes)

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
