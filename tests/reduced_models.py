"""Every model of the registry, by name, small enough for a test: few blocks, narrow, small clips."""

import torch
from torch import nn

from revvideo import create_model

NUM_CLASSES = 5


def reduced_options(name: str) -> dict:
    """Overrides that shrink the model called ``name``."""
    frames = 1 if model_on_meta(name).input_spec.image else 4
    if name.startswith("ptv/mvit"):
        return {"input_size": (8, 32, 32), "embed_dim": 16}
    if name.startswith("ptv/"):
        narrow = {"width_factor": 1.0, "depth_factor": 1.0} if "x3d" in name else {"width": 8}
        return {"input_size": (8 if "csn" in name else frames, 64, 64), **narrow}
    return {"input_size": (frames, 32, 32), "embed_dim": 16, "num_heads": 2, "depth": _smallest_depth(name)}


def _smallest_depth(name: str) -> int:
    for depth in range(2, 20):
        try:
            model_on_meta(name, depth=depth)
        except ValueError:
            continue
        return depth
    raise AssertionError(name)


def model_on_meta(name: str, **overrides) -> nn.Module:
    """A model of which only names, shapes and settings are of interest."""
    with torch.device("meta"):
        return create_model(name, **overrides)


def reduced_model(name: str, **overrides) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    return create_model(name, **({"num_classes": NUM_CLASSES} | reduced_options(name) | overrides))


class UnderAutocast(nn.Module):
    """A model whose forward runs under CPU autocast to ``dtype``, or as it is for None; logits are float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, clips):
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
            logits = self.model(clips)
        return logits.float()


def clips_for(model: nn.Module, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *model.input_spec.shape, generator=generator)
