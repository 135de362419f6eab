"""The config that a checkpoint carries against the run's: what changes the numbers of a network, but not its shapes."""

import logging
from collections.abc import Mapping

import yaml
from fvcore.common.config import CfgNode

logger = logging.getLogger(__name__)

_MODEL = ("MODEL.MODEL_NAME", "MODEL.NUM_CLASSES")
_MVIT = (
    "NUM_HEADS",
    "HEAD_MUL",
    "MODE",
    "POOL_FIRST",
    "POOL_KVQ_KERNEL",
    "POOL_Q_STRIDE",
    "POOL_KV_STRIDE",
    "POOL_KV_STRIDE_ADAPTIVE",
    "USE_MEAN_POOLING",
    "RESIDUAL_POOLING",
    "USE_ABS_POS",
    "USE_FIXED_SINCOS_POS",
    "SEP_POS_EMBED",
    "REL_POS_SPATIAL",
    "REL_POS_TEMPORAL",
    "DIM_MUL_IN_ATT",
    "NORM_STEM",
    "LAYER_SCALE_INIT_VALUE",
    "REV.ENABLE",
)
_REVERSIBLE = ("REV.RESPATH_FUSE", "REV.RES_PATH", "REV.PRE_Q_FUSION")
# Reversible networks have no class token and always widen in the attention, whatever these say.
_PLAIN_ONLY = ("MVIT.CLS_EMBED_ON", "MVIT.DIM_MUL_IN_ATT")

_MISSING = object()


def warn_of_another_config(cfg: CfgNode, text: object, source: str) -> None:
    """Log one warning with the keys that make another network of the same weights, if there are any.

    Args:
        cfg: the run's config.
        text: what the checkpoint holds as ``cfg``: YAML text of PySlowFast or revvideo; None: nothing to compare.
        source: the checkpoint, for the message.
    """
    if text is None:
        return
    try:
        tree = yaml.safe_load(text) if isinstance(text, str) else text
    except (yaml.YAMLError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, Mapping):
        logger.warning("%s: the config in it cannot be read, so it is not compared with that of the run", source)
        return
    differences = [f"{name} {theirs!r} (here {ours!r})" for name, theirs, ours in config_differences(cfg, tree)]
    if differences:
        logger.warning("%s was made with another config: %s", source, ", ".join(differences))


def config_differences(cfg: CfgNode, tree: Mapping) -> list[tuple[str, object, object]]:
    """(key, value in ``tree``, value in ``cfg``) of the keys that differ; keys that ``tree`` lacks are left out."""
    reversible = bool(cfg.MVIT.REV.ENABLE)
    names = list(_MODEL)
    if cfg.MODEL.MODEL_NAME in ("MViT", "PTVMViT"):
        names += [f"MVIT.{name}" for name in (*_MVIT, "CLS_EMBED_ON", *(_REVERSIBLE if reversible else ()))]
    if reversible:
        names = [name for name in names if name not in _PLAIN_ONLY]
    if cfg.MVIT.POOL_KV_STRIDE_ADAPTIVE and _value(tree, "MVIT.POOL_KV_STRIDE_ADAPTIVE"):
        # PySlowFast fills POOL_KV_STRIDE in from the adaptive one.
        names = [name for name in names if name != "MVIT.POOL_KV_STRIDE"]
    found = [(name, _value(tree, name, missing=_MISSING), _value(cfg, name)) for name in names]
    return [
        (name, theirs, ours)
        for name, theirs, ours in found
        if theirs is not _MISSING and _comparable(name, theirs) != _comparable(name, ours)
    ]


def _value(tree: Mapping, name: str, missing: object = None) -> object:
    for part in name.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return missing
        tree = tree[part]
    return tree


def _comparable(name: str, value: object) -> object:
    """One form for what means the same: lists and tuples, no list and an empty one, any layer scale above 0."""
    if name == "MVIT.LAYER_SCALE_INIT_VALUE":
        return bool(value)
    if isinstance(value, list | tuple):
        return [_comparable("", item) for item in value] or None
    return value
