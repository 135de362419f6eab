"""The config of a model's input: from what a checkpoint carries, or from what a network says about itself."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from revvideo.config import KEYS, dump_config, load_config
from revvideo.config.loader import Overrides
from revvideo.config.unused_keys import is_unused
from revvideo.errors import InputError
from revvideo.models.checkpoint_formats import Weights
from revvideo.models.input_spec import InputSpec

logger = logging.getLogger(__name__)

# What network it is and how its input is read; the rest of a run's config is about training and about its machine.
_NETWORK = ("MODEL", "MVIT", "REV", "RESNET", "X3D", "NONLOCAL", "BN", "COMPILE", "AMP")
_SECTIONS = (*_NETWORK, "DATA", "AUG", "TEST", "EVAL", "LOADER")
_OF_THE_MACHINE = (
    "DATA.PATH_TO_DATA_DIR",
    "DATA.PATH_PREFIX",
    "LOADER.INDEX_CACHE",
    "LOADER.VIDEO_FOLDER",
    "LOADER.CLASS_FILE",
    "TEST.CHECKPOINT_FILE_PATH",
    "TEST.SAVE_RESULTS_PATH",
)
_ALONE = {"NUM_GPUS": 0, "TRAIN.ENABLE": False, "DATA_LOADER.NUM_WORKERS": 0, "LOADER.INDEX_CACHE": ""}
_SHORT_SIDE = 256 / 224  # of the picture, to the crop: the official Kinetics configs


def checkpoint_config(weights: Weights, overrides: Overrides = ()) -> CfgNode | None:
    """The config that a checkpoint of revvideo or PySlowFast carries, as far as prediction needs it.

    Args:
        weights: what `read_weights` returned.
        overrides: keys that win.

    Returns:
        a frozen config, or None where the file holds none.

    Raises:
        InputError: what it holds is no config that can be used.
    """
    text = weights.extra.get("cfg")
    if text is None:
        return None
    try:
        tree = yaml.safe_load(text) if isinstance(text, str) else text
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{weights.source}: the config in it cannot be read: {error}") from error
    if not isinstance(tree, Mapping):
        raise InputError(f"{weights.source}: the config in it is a {type(tree).__name__}; expected sections with keys")
    values = {name: value for name, value in _leaves(tree) if name.split(".")[0] in _SECTIONS}
    unknown = [name for name in values if name not in KEYS and not is_unused(name)]
    if unknown:
        logger.warning("%s: keys of its config that revvideo does not know: %s", weights.source, ", ".join(unknown))
    known = {name: value for name, value in values.items() if name in KEYS and name not in _OF_THE_MACHINE}
    return _load(known | _ALONE, overrides)


def spec_config(spec: InputSpec, overrides: Overrides = ()) -> CfgNode:
    """The config of the input of a network that has no config: official short sides and crops.

    Args:
        spec: of the network; square pictures of 3 channels.
        overrides: keys that win.

    Raises:
        InputError: another kind of picture.
    """
    height, width = spec.size
    if height != width or spec.channels != 3:
        raise InputError(
            f"the model takes {spec.channels} channels of {height}x{width} pixels (height x width); expected 3 "
            "channels, and a square as evaluation crops it"
        )
    short = round(_SHORT_SIDE * height)
    values = {
        "DATA.NUM_FRAMES": spec.frames,
        "DATA.SAMPLING_RATE": spec.stride,
        "DATA.TRAIN_CROP_SIZE": height,
        "DATA.TEST_CROP_SIZE": height,
        "DATA.TRAIN_JITTER_SCALES": [short, short],
        "DATA.MEAN": list(spec.mean),
        "DATA.STD": list(spec.std),
        "DATA.INPUT_CHANNEL_NUM": [3],
        "DATA.DECODING_BACKEND": "pyav",
        "MODEL.MODEL_NAME": "MViT",  # the default is a network that revvideo does not have
    }
    if spec.image:  # evaluated as PySlowFast does on ImageNet
        values |= {"TEST.DATASET": "imagenet", "AUG.ENABLE": True}
    return _load(values | _ALONE, overrides)


def with_overrides(cfg: CfgNode, overrides: Overrides) -> CfgNode:
    """A config with other values of some keys, as if it had been loaded with them."""
    if not overrides:
        return cfg
    return load_config(None, dict(_leaves(yaml.safe_load(dump_config(cfg)))) | dict(override_pairs(overrides)))


def override_pairs(overrides: Overrides) -> list[tuple[str, Any]]:
    """Overrides of any form as (dotted key, value)."""
    if isinstance(overrides, Mapping):
        return list(_leaves(overrides))
    words: Sequence[Any] = list(overrides)
    if len(words) % 2:
        raise InputError(f"{words[-1]} has no value; expected KEY VALUE pairs")
    return list(zip(map(str, words[0::2]), words[1::2], strict=True))


def _load(values: Mapping[str, Any], overrides: Overrides) -> CfgNode:
    return load_config(None, {**values, **dict(override_pairs(overrides))})


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for part, value in tree.items():
        name = f"{prefix}{part}"
        if isinstance(value, Mapping) and name not in KEYS:
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, value))
    return found
