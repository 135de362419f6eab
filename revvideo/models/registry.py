"""Models by name, in timm's manner: ``create_model("rev_mvit_b_16x4", num_classes=8)``."""

import difflib
import fnmatch
import os
from collections.abc import Callable, Collection
from importlib import import_module

from torch import nn

from revvideo.models.input_spec import InputSpec

_MODELS: dict[str, Callable[..., nn.Module]] = {}
_FAMILIES = ("mvit", "rev_mvit", "vit", "rev_vit", "baselines")  # modules whose import registers their models


def register_model(name: str | Callable[..., nn.Module]):
    """Decorator: make a function that builds a model available under its own name, or under the ``name`` given."""
    if callable(name):
        return register_model(name.__name__)(name)

    def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        assert name not in _MODELS, name
        _MODELS[name] = builder
        return builder

    return register


def _models() -> dict[str, Callable[..., nn.Module]]:
    for family in _FAMILIES:
        import_module(f"revvideo.models.{family}")
    return _MODELS


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_models(), pattern))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    allow: Collection[str] = (),
    infer_architecture: bool = False,
    features_only: bool = False,
    **overrides,
) -> nn.Module:
    """Build a model by name.

    Args:
        name: one of `list_models`.
        num_classes: outputs of the head; default: the data set of the name's official config (400 for Kinetics-400).
        checkpoint: a file with weights in any format of `checkpoint_formats`; loaded strictly.
        allow: exceptions from strictness, of ``"head"``, ``"interpolate"``, ``"inflate"``; see `load_weights`.
        infer_architecture: let the checkpoint decide what can be read from it (depth, class token, classes, ...).
        features_only: return a module whose output is the list of the feature maps, ``(B, C, T, H, W)`` for each stage.
        **overrides: keyword arguments of the model's builder, e.g. ``drop_path``, ``head_dropout``, ``input_size``
            (frames, height, width), ``backprop``.

    Raises:
        ValueError: an unknown name (with the nearest known one), bad arguments, or weights that do not fit.
    """
    models = _models()
    if name not in models:
        near = difflib.get_close_matches(name, models, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown model {name!r}; did you mean {near!r}? Known: {', '.join(list_models())}")
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    if checkpoint is None and (allow or infer_architecture):
        raise ValueError("allow and infer_architecture are about a checkpoint, but checkpoint is None")
    if checkpoint is None:
        model = models[name](**overrides)
    else:
        from revvideo.models.checkpoint_formats import infer_overrides, load_weights, read_weights

        weights = read_weights(checkpoint)
        inferred = infer_overrides(weights, name) if infer_architecture else {}
        model = models[name](**(inferred | overrides))
        load_weights(model, weights, allow=allow)
    return FeatureMaps(model) if features_only else model


class FeatureMaps(nn.Module):
    """A model without its head, what is left of it frozen: clips to one map ``(B, C, T, H, W)`` for each stage.

    Attributes:
        feature_info: for each map a dict of ``channels``, ``reduction`` (pixels and frames a cell covers: t, h, w) and
            ``name`` (the module that it is the output of).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        model.reset_classifier(0)
        self.model = model
        for name in model.layer_groups()[-1]:  # no map depends on them, and DDP would wait for their gradients
            model.get_parameter(name).requires_grad_(False)

    @property
    def feature_info(self) -> list[dict]:
        return self.model.feature_info

    @property
    def input_spec(self) -> InputSpec:
        return self.model.input_spec

    def forward(self, clips):
        return self.model.feature_maps(clips)
