"""Models by name, in timm's manner: ``create_model("rev_mvit_b_16x4", num_classes=8)``."""

import difflib
import fnmatch
from collections.abc import Callable

from torch import nn

from revvideo.models.mvit import MViT, PatchSpec, plan_blocks
from revvideo.models.rev_mvit import RevMViT

_MODELS: dict[str, Callable[..., nn.Module]] = {}

# MViT-B (Fan et al. 2021, table 3): the width and the heads double, the resolution halves at blocks 1, 3 and 14.
_MVIT_B = {
    "embed_dim": 96,
    "num_heads": 1,
    "dim_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "head_mul": [[1, 2.0], [3, 2.0], [14, 2.0]],
    "pool_q_stride": [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
    "pool_kv_stride_adaptive": [1, 8, 8],
    "pool_kvq_kernel": [3, 3, 3],
}


def register_model(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Make a function that builds a model available under its own name."""
    _MODELS[builder.__name__] = builder
    return builder


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def create_model(name: str, *, num_classes: int | None = None, **overrides) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of `list_models`.
        num_classes: outputs of the head; default: the data set of the name's official config (400 for Kinetics-400).
        **overrides: keyword arguments of the model's builder, e.g. ``drop_path``, ``head_dropout``, ``input_size``,
            ``backprop``.

    Raises:
        ValueError: an unknown name (with the nearest known one), or bad arguments.
    """
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown model {name!r}; did you mean {near!r}? Known: {', '.join(list_models())}")
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return _MODELS[name](**overrides)


@register_model
def rev_mvit_b_16x4(*, depth: int = 16, drop_path: float = 0.05, **overrides) -> RevMViT:
    """Rev-MViT-B 16x4 of Kinetics-400: 34.96 M parameters, 63.9 GFLOPs (PySlowFast REV_MVIT_B_16x4_CONV)."""
    blocks = plan_blocks(depth=depth, qkv_bias=False, drop_path=drop_path, widen_in_attention=True, **_MVIT_B)
    return RevMViT(blocks=blocks, transitions=[1, 3, 14], **_kinetics_16x4(overrides))


@register_model
def mvit_b_16x4(*, depth: int = 16, drop_path: float = 0.2, class_token: bool = True, **overrides) -> MViT:
    """MViT-B 16x4 of Kinetics-400: 36.61 M parameters, 70.8 GFLOPs (PySlowFast MVIT_B_16x4_CONV)."""
    blocks = plan_blocks(depth=depth, drop_path=drop_path, **_MVIT_B)
    return MViT(blocks=blocks, class_token=class_token, **_kinetics_16x4(overrides))


def _kinetics_16x4(overrides: dict) -> dict:
    defaults = {
        "num_classes": 400,
        "input_size": (16, 224, 224),
        "in_channels": 3,
        "patch": PatchSpec(),
        "separable_positions": True,
        "head_dropout": 0.5,
    }
    return defaults | overrides
