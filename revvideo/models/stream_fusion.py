"""Fusion of the two residual streams of a reversible network into one (Mangalam et al. 2022, section 3.3)."""

import re

import torch
from torch import Tensor, nn

from revvideo.models.layers import LayerNorm, Mlp

_ELEMENTWISE = {
    "add": lambda x1, x2: x1 + x2,
    "avg": lambda x1, x2: (x1 + x2) * 0.5,
    "max": torch.maximum,
    "min": torch.minimum,
}
_CONCATENATION = re.compile(r"(ln\+)?concat_linear(?:_(\d+\.?\d*|\.\d+)(?:_(\d*\.?\d+))?)?")


def fused_width(mode: str, dim: int) -> int:
    """Width of two fused streams of width ``dim``: twice as wide when they are concatenated."""
    return 2 * dim if "concat" in mode else dim


class StreamFusion(nn.Module):
    """Two streams ``(B, N, D)`` to one: ``(B, N, D)``, or ``(B, N, 2D)`` for the concatenating modes.

    Args:
        mode: ``"add"``, ``"avg"``, ``"max"``, ``"min"``; ``"concat"``; or ``"[ln+]concat_linear[_MULT[_DROP]]"``, which
            adds to the concatenation an MLP of it, MULT (default 1) times as wide inside, with dropout DROP; with
            ``ln+`` an MLP of its LayerNorm (epsilon 1e-5).
        dim: width D of each stream.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, mode: str, dim: int):
        super().__init__()
        self.mode, self.width, self.fuse_fn = mode, fused_width(mode, dim), None
        if mode == "concat" or mode in _ELEMENTWISE:
            return
        match = _CONCATENATION.fullmatch(mode)
        if match is None or not 0.0 <= float(match[3] or 0.0) < 1.0:
            raise ValueError(
                f"the fusion of the streams is {mode!r}; expected {', '.join(sorted(_ELEMENTWISE))}, concat or "
                "[ln+]concat_linear[_MULT[_DROP]] (MVIT.REV.RESPATH_FUSE, MVIT.REV.PRE_Q_FUSION)"
            )
        hidden = int(self.width * float(match[2] or 1.0))
        mlp = Mlp(self.width, hidden, self.width, dropout=float(match[3] or 0.0))
        self.fuse_fn = nn.Sequential(LayerNorm(self.width, eps=1e-5), mlp) if match[1] else mlp

    @property
    def concatenates(self) -> bool:
        return self.mode not in _ELEMENTWISE

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        if not self.concatenates:
            return _ELEMENTWISE[self.mode](x1, x2)
        return self.mix(torch.cat([x1, x2], dim=-1))

    def mix(self, x: Tensor) -> Tensor:
        """The concatenating modes, for streams that are concatenated already: ``(B, N, 2D) -> (B, N, 2D)``."""
        return x if self.fuse_fn is None else x + self.fuse_fn(x)

    def extra_repr(self) -> str:
        return self.mode
