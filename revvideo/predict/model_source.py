"""A trained model ready to predict: its weights, how its input is read, and the names of its classes.

Shared by all that works on a finished model: prediction, visualisation, feature extraction, export.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo import build
from revvideo.build.checkpoint_config import warn_of_another_config
from revvideo.build.input_spec import input_spec
from revvideo.config import load_config
from revvideo.config.datasets import dataset_kind
from revvideo.config.loader import Overrides
from revvideo.config.shipped import is_config
from revvideo.data.lists.class_names import read_class_file
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.errors import InputError
from revvideo.models.checkpoint_formats import Weights, infer_overrides, load_weights, read_weights
from revvideo.models.input_spec import InputSpec
from revvideo.models.registry import create_model, list_models
from revvideo.predict.input_config import checkpoint_config, spec_config, with_overrides

logger = logging.getLogger(__name__)

ModelOrName = nn.Module | CfgNode | str | os.PathLike


@dataclass(frozen=True)
class LoadedModel:
    """A trained model and what belongs to it.

    Attributes:
        model: in evaluation mode, on `device`: float clips `(B, C, T, H, W)` to logits `(B, K)`.
        cfg: how the evaluator reads its input: DATA, TEST, EVAL, LOADER, AUG, MODEL.HEAD_ACT; frozen. Where the model
            was given by name or as a module, MODEL and MVIT do not describe it.
        class_names: name of each class number; empty where nothing tells them.
        checkpoint: the file that the weights are from; "" for a module that has its own.
        device: where the model is.
    """

    model: nn.Module
    cfg: CfgNode
    class_names: tuple[str, ...]
    checkpoint: str
    device: torch.device

    @property
    def input_spec(self) -> InputSpec:
        """Frames, stride, size and normalisation of the clips."""
        return input_spec(self.cfg)

    @property
    def is_image(self) -> bool:
        """Whether it takes pictures instead of videos."""
        return self.input_spec.image or dataset_kind(self.cfg, "test") == "imagenet"

    def class_name(self, number: int) -> str:
        """The name of a class; "class 7" where none is known."""
        return self.class_names[number] if number < len(self.class_names) else f"class {number}"


def load_predictor_model(
    model: ModelOrName | None = None,
    checkpoint: str | os.PathLike | None = None,
    *,
    classes: Sequence[str] | str | os.PathLike | None = None,
    overrides: Overrides = (),
    device: str | torch.device | None = None,
    averaged: bool = False,
) -> LoadedModel:
    """Find, build and load a trained model.

    Args:
        model: what the network is: a module (used as it is, or filled from `checkpoint`), a name of `list_models`, a
            config (a file, the name of a shipped one, or a loaded one), or None: the config that `checkpoint` carries.
        checkpoint: a file of any format of `checkpoint_formats`, or a run folder or folder of checkpoints, of which
            the newest whole one counts. None: only with a module that has its weights.
        classes: names in the order of the class numbers, or a file of them (docs/data.md); None: those that the
            checkpoint holds.
        overrides: config keys that win over all others, such as `["DATA.SAMPLING_RATE", 2]` or a dict.
        device: None takes the first GPU where there is one.
        averaged: the averaged weights of the checkpoint (EMA.ENABLE) instead of the last ones.

    Raises:
        InputError: nothing tells the network, there are no weights for it, they do not fit, the number of class names
            is not that of the classes, or there is no such device.
    """
    path = "" if checkpoint is None else _checkpoint_file(os.fspath(checkpoint))
    weights = read_weights(path) if path else None
    if weights is not None and averaged:
        weights = _averaged(weights)
    names = _given_names(classes)
    held = None if weights is None else _held_config(model, weights, overrides)
    if model is None:
        if held is None:
            reason = f"{path} carries no config" if path else "there is neither a model nor a checkpoint"
            raise InputError(f"{reason}; name the network: a model (`revvideo models`) or a config")
        model = held
    place = _device(device)
    network, cfg = _network(model, weights, held, overrides, len(names) if names else None)
    network = network.to(place).eval()
    build.check_pooling(cfg, place)
    names = names or _held_names(weights)
    _check_names(names, network, given=classes is not None)
    return LoadedModel(network, cfg, names, path, place)


def _device(wanted: str | torch.device | None) -> torch.device:
    """The device of that name, which is there; None: the first GPU, else the CPU."""
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:  # torch lists all kinds that it could be built for
        raise InputError(f"--device is {str(wanted)!r}; expected cpu, cuda or cuda:NUMBER") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"--device is {device}, but {count} GPUs are here; expected cpu, or a number below that")
    return device


def _checkpoint_file(path: str) -> str:
    if not os.path.isdir(path):
        return path
    for folder in (os.path.join(path, "checkpoints"), path):
        newest = latest_checkpoint(folder)
        if newest is not None:
            return str(newest)
    raise InputError(f"{path} holds no whole checkpoint; expected a run folder, a folder of checkpoints or a file")


def _averaged(weights: Weights) -> Weights:
    average = weights.extra.get("ema_state")
    if average is None:
        raise InputError(f"{weights.source} holds no averaged weights; it was trained without EMA.ENABLE")
    return Weights(average, weights.format, f"{weights.source}, averaged weights", average, weights.extra)


def _network(
    model: ModelOrName, weights: Weights | None, held: CfgNode | None, overrides: Overrides, num_classes: int | None
) -> tuple[nn.Module, CfgNode]:
    """The network with its weights, and the config of its input."""
    if isinstance(model, nn.Module):
        if weights is not None:
            load_weights(model, weights, allow={"interpolate"})
        return model, _input_config(model, held, overrides)
    if weights is None:
        raise InputError(f"no checkpoint for {_named(model)}: its weights would be random; name one")
    if not isinstance(model, CfgNode) and str(model) in list_models():
        network = _named_network(str(model), weights, held, num_classes)
        return network, _input_config(network, held, overrides)
    cfg = model if model is held else _config(model, overrides)
    if model is not held:
        warn_of_another_config(cfg, weights.extra.get("cfg"), weights.source)
    network = build.build_model(cfg)
    load_weights(network, weights, allow={"interpolate"})
    return network, cfg


def _config(model: CfgNode | str | os.PathLike, overrides: Overrides) -> CfgNode:
    if isinstance(model, CfgNode):
        return with_overrides(model, overrides)
    if not is_config(str(model)):
        raise InputError(
            f"{str(model)!r} is neither a model (`revvideo models` lists them) nor a config (a YAML file, or the name "
            "of a shipped one)"
        )
    return load_config(model, overrides)


def _named_network(name: str, weights: Weights, held: CfgNode | None, num_classes: int | None) -> nn.Module:
    """A model of the registry in the size and with the classes of its weights, as far as these tell."""
    try:
        options = infer_overrides(weights, name)
    except ValueError:  # a family that names and shapes do not tell: pytorchvideo's networks
        options = {}
    if held is not None:
        spec = input_spec(held)
        options["input_size"] = (spec.frames, *spec.size)
        options.setdefault("num_classes", held.MODEL.NUM_CLASSES)
    if num_classes is not None:
        options.setdefault("num_classes", num_classes)
    try:
        network = create_model(name, **options)
    except ValueError as error:
        raise InputError(f"{name} cannot be built for {weights.source}: {error}") from error
    load_weights(network, weights, allow={"interpolate"})
    return network


def _held_config(model: ModelOrName | None, weights: Weights, overrides: Overrides) -> CfgNode | None:
    """The config in the checkpoint, where nothing else decides: needed without a model, welcome beside its name."""
    if isinstance(model, CfgNode) or (isinstance(model, str | os.PathLike) and str(model) not in list_models()):
        return None
    try:
        return checkpoint_config(weights, overrides)
    except InputError as error:
        if model is None:
            raise
        logger.warning("%s: the config in it is not used: %s", weights.source, error)
        return None


def _input_config(network: nn.Module, held: CfgNode | None, overrides: Overrides) -> CfgNode:
    """The checkpoint's config, unless the network takes another shape; else that of what the network says."""
    spec = getattr(network, "input_spec", None)
    if held is not None:
        wanted = input_spec(held)
        if not isinstance(spec, InputSpec) or (spec.frames, spec.size) == (wanted.frames, wanted.size):
            return held
    if not isinstance(spec, InputSpec):
        raise InputError(
            f"the {type(network).__name__} says nothing about its input; give it an attribute input_spec "
            "(revvideo.models.input_spec.InputSpec): frames, stride, size, mean, std"
        )
    return spec_config(spec, overrides)


def _named(model: ModelOrName) -> str:
    return "this config" if isinstance(model, CfgNode) else repr(os.fspath(model))


# Class names


def _given_names(classes: Sequence[str] | str | os.PathLike | None) -> tuple[str, ...]:
    if classes is None:
        return ()
    if isinstance(classes, str | os.PathLike):
        return read_class_file(os.fspath(classes))
    return tuple(str(name) for name in classes)


def _held_names(weights: Weights | None) -> tuple[str, ...]:
    names = None if weights is None else weights.extra.get("class_names")
    return tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()


def _check_names(names: tuple[str, ...], network: nn.Module, *, given: bool) -> None:
    """Refuse another number of names than the network has classes; a checkpoint may know fewer, of its own list."""
    count = getattr(network, "num_classes", None)
    if not names or not count or len(names) == count:
        return
    if given or len(names) > count:
        raise InputError(f"there are {len(names)} class names, but the model has {count} classes; expected one each")
    logger.warning("the checkpoint names %d of the %d classes", len(names), count)
