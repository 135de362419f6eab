"""The config tree: every key of the tables, and the CfgNode that is built from them."""

from __future__ import annotations

import copy

from fvcore.common.config import CfgNode

from revvideo.config.defaults_baselines import BASELINE_KEYS
from revvideo.config.defaults_data import DATA_KEYS
from revvideo.config.defaults_model import MODEL_KEYS
from revvideo.config.defaults_run import RUN_KEYS
from revvideo.config.key import Key

KEYS: dict[str, Key] = {key.name: key for key in [*RUN_KEYS, *MODEL_KEYS, *BASELINE_KEYS, *DATA_KEYS]}

# Sections in the tree, "MVIT.REV" included: a name here takes a mapping, a name in KEYS a value.
SECTIONS: frozenset[str] = frozenset(
    ".".join(parts[:depth]) for parts in (name.split(".") for name in KEYS) for depth in range(1, len(parts))
)

# Keys of the tree that nothing acts on (accepted, and listed when set): name -> why.
IGNORED_KEYS: dict[str, str] = {key.name: key.ignored for key in KEYS.values() if key.ignored}


def default_config() -> CfgNode:
    """A fresh tree with every default; not frozen, not checked (PySlowFast's defaults name a model we do not have)."""
    cfg = CfgNode()
    for key in KEYS.values():
        *sections, leaf = key.name.split(".")
        node = cfg
        for name in sections:
            if name not in node:
                node[name] = CfgNode()
            node = node[name]
        node[leaf] = copy.deepcopy(key.default)
    return cfg


def get_value(cfg: CfgNode, name: str) -> object:
    """The value of the dotted key `name` in `cfg`."""
    node = cfg
    for part in name.split("."):
        node = node[part]
    return node


def set_value(cfg: CfgNode, name: str, value: object) -> None:
    """Set the dotted key `name` of an unfrozen `cfg`; the section must exist."""
    *sections, leaf = name.split(".")
    node = cfg
    for part in sections:
        node = node[part]
    node[leaf] = value
