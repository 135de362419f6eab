"""The official configs, names and shapes of their tensors in PySlowFast, and weights and inputs made from names.

Every tensor is drawn from a generator of its own, seeded with its name, so the same weights can be made here and there.
"""

import gzip
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from revvideo import build_model, load_config

DATA = Path(__file__).parent / "data"
LABEL = 7  # of the golden input
NO_DROPOUT = ("MODEL.DROPOUT_RATE", 0.0, "MVIT.DROPOUT_RATE", 0.0, "MVIT.DROPPATH_RATE", 0.0)

# Name of the golden -> shipped config
CONFIGS = {
    "REV_MVIT_B_16x4_CONV": "Kinetics/REV_MVIT_B_16x4_CONV.yaml",
    "MVIT_B_16x4_CONV": "Kinetics/MVIT_B_16x4_CONV.yaml",
    "MVIT_B_32x3_CONV": "Kinetics/MVIT_B_32x3_CONV.yaml",
    "MVITv2_S_16x4": "Kinetics/MVITv2_S_16x4.yaml",
    "MVITv2_B_32x3": "Kinetics/MVITv2_B_32x3.yaml",
    "MVITv2_L_40x3_test": "Kinetics/MVITv2_L_40x3_test.yaml",
    "REV_VIT_S": "ImageNet/REV_VIT_S.yaml",
    "REV_VIT_B": "ImageNet/REV_VIT_B.yaml",
    "REV_MVIT_B_16_CONV": "ImageNet/REV_MVIT_B_16_CONV.yaml",
    "MVIT_B_16_CONV": "ImageNet/MVIT_B_16_CONV.yaml",
    "IN_MVITv2_T": "ImageNet/MVITv2_T.yaml",
    "IN_MVITv2_S": "ImageNet/MVITv2_S.yaml",
    "IN_MVITv2_B": "ImageNet/MVITv2_B.yaml",
    "k400_VIT_B_16x4_FT": "masked_ssl/k400_VIT_B_16x4_FT.yaml",
    "k400_VIT_L_16x4_FT": "masked_ssl/k400_VIT_L_16x4_FT.yaml",
    "in1k_VIT_B_MaskFeat_FT": "masked_ssl/in1k_VIT_B_MaskFeat_FT.yaml",
}


def _read_shapes() -> dict[str, dict[str, list[int]]]:
    return json.loads(gzip.decompress((DATA / "state_dicts.json.gz").read_bytes()))


OFFICIAL_SHAPES = _read_shapes()  # golden -> {name: shape}, in PySlowFast's order


def built(golden: str, overrides: Iterable = ()) -> nn.Module:
    """The network of the shipped config."""
    return build_model(load_config(CONFIGS[golden], list(overrides)))


def without_memory(build, *args, **options) -> nn.Module:
    """What `build` makes, on the meta device: names and shapes only."""
    with torch.device("meta"):
        return build(*args, **options)


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def golden_tensor(name: str, shape: Iterable[int]) -> np.ndarray:
    """Standard normal float32 numbers that depend on nothing but the name and the shape."""
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def golden_weight(name: str, shape: Iterable[int]) -> Tensor:
    """Small numbers; weights of LayerNorm around one."""
    values = golden_tensor(name, shape) * np.float32(0.02)
    if values.ndim == 1 and name.endswith(".weight"):
        values += np.float32(1.0)
    return torch.from_numpy(values)


def golden_weights(golden: str) -> dict[str, Tensor]:
    """A state dict of an official config."""
    return {name: golden_weight(name, shape) for name, shape in OFFICIAL_SHAPES[golden].items()}


def golden_input(model: nn.Module) -> Tensor:
    """One clip or image of the model's own shape."""
    return torch.from_numpy(golden_tensor("input", (1, *model.input_spec.shape)))


def golden_model(golden: str, overrides: Iterable = NO_DROPOUT) -> nn.Module:
    """The network of the shipped config with golden weights."""
    model = without_memory(built, golden, overrides).to_empty(device="cpu")
    model.load_state_dict(golden_weights(golden))
    return model
