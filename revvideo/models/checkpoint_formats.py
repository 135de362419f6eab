"""Weights of any origin into any model that fits: reading, writing, strict loading, and what network they belong to.

Read: PySlowFast's .pyth files, revvideo's own checkpoints, pytorchvideo's MViT, mmpretrain's RevViT, safetensors, and
files that hold nothing but a state dict. Written: PySlowFast's format and safetensors. docs/checkpoints.md shows how.
"""

from revvideo.models.infer_architecture import infer_overrides, read_architecture
from revvideo.models.load_weights import LoadReport, fit_weights, load_weights
from revvideo.models.weights_file import Weights, read_weights, write_weights

__all__ = [
    "LoadReport",
    "Weights",
    "fit_weights",
    "infer_overrides",
    "load_weights",
    "read_architecture",
    "read_weights",
    "write_weights",
]
