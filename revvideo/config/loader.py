"""`load_config`: defaults, then files in order, then overrides; checked, normalised once, frozen.

Nothing is dropped silently: what is accepted and ignored, changed, or written twice is logged once and kept with the
config (`config_notes`). No environment variable is read.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from revvideo.config.defaults import IGNORED_KEYS, KEYS, SECTIONS, default_config, get_value, set_value
from revvideo.config.normalise import batch_note, check_config, normalise_config
from revvideo.config.shipped import find_config
from revvideo.config.unused_keys import UNUSED_KEYS, UNUSED_SECTIONS, is_unused
from revvideo.config.values import ConfigError, decode_value
from revvideo.config.without_effect import keys_without_effect
from revvideo.config.yaml_file import read_yaml

_logger = logging.getLogger("revvideo.config")

COMMAND_LINE = "command line"
_NOTES = "_revvideo_notes"  # in CfgNode.__dict__, where clone, deepcopy and pickle carry it along
_UNUSED_REASON = "a key of PySlowFast that revvideo has no use for"
_ALL_SECTIONS = SECTIONS.union(
    UNUSED_SECTIONS,
    (name[:dot] for name in UNUSED_KEYS for dot, character in enumerate(name) if character == "."),
)

Overrides = Sequence[Any] | Mapping[str, Any]


def load_config(path: str | Path | Sequence[str | Path] | None = None, overrides: Overrides = ()) -> CfgNode:
    """Load a config.

    Args:
        path: a YAML file, or several (a later one wins). Each is a path, or the name of a shipped config such as
            `demo/REV_MVIT_DEMO`, or its bare stem. None: defaults and overrides only.
        overrides: `[KEY, VALUE, KEY, VALUE, ...]`, or a dict with dotted or nested keys; they win over files.

    Returns:
        a frozen CfgNode with PySlowFast's names (docs/config.md), normalised; `config_notes` lists what was changed
        and what was ignored.

    Raises:
        ConfigError: a missing or malformed file, an unknown key, a value of the wrong type, a combination that cannot
            work. It is an InputError: exit code 2.
    """
    return load_layers(path, [(COMMAND_LINE, overrides)])


def load_layers(
    path: str | Path | Sequence[str | Path] | None, override_layers: Sequence[tuple[str, Overrides]]
) -> CfgNode:
    """`load_config` with several named groups of overrides, such as the command line's and then the launcher's."""
    merge = _Merge()
    paths = [] if path is None else [path] if isinstance(path, (str, Path)) else list(path)
    for one_path in paths:
        for file, tree, duplicate_notes in read_yaml(find_config(one_path)):
            merge.warnings += duplicate_notes
            merge.add(file, _flatten(tree, file))
    for origin, overrides in override_layers:
        merge.add(origin, _override_pairs(overrides, origin, merge.warnings))
    cfg = merge.cfg
    check_config(cfg, merge.origin_of)
    notes = [(logging.WARNING, note) for note in (*merge.warnings, batch_note(cfg)) if note]
    notes += [*normalise_config(cfg), *merge.ignored_notes()]
    notes += [(logging.INFO, note) for note in keys_without_effect(cfg)]
    for level, note in notes:
        _logger.log(level, "config: %s", note)
    cfg.__dict__[_NOTES] = tuple(note for _, note in notes)
    cfg.freeze()
    return cfg


def config_notes(cfg: CfgNode) -> tuple[str, ...]:
    """What `load_config` changed in this config or found without effect, one readable line each."""
    return cfg.__dict__.get(_NOTES, ())


def dump_config(cfg: CfgNode) -> str:
    """The resolved config as YAML, with its notes as comments; loading it gives an equal config.

    Keys without effect are written only where they differ from the default, so that a reload does not list them all.
    """
    tree: dict[str, Any] = {}
    for name, key in KEYS.items():
        value = get_value(cfg, name)
        if key.ignored and value == key.default:
            continue
        *sections, leaf = name.split(".")
        node = tree
        for part in sections:
            node = node.setdefault(part, {})
        node[leaf] = value
    comments = [f"# {line}" for note in config_notes(cfg) for line in note.splitlines()]
    header = ["# Resolved config of revvideo.", *(["# Notes of the load:", *comments] if comments else [])]
    return "\n".join(header) + "\n" + yaml.safe_dump(tree, default_flow_style=None, sort_keys=False, width=120)


def nearest_key(name: str) -> str:
    """The known key most like `name`: the same last part in another section counts most."""
    known = [*KEYS, *sorted(UNUSED_KEYS)]
    leaf = name.rpartition(".")[2].upper()
    same_leaf = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    likeness = {key: difflib.SequenceMatcher(None, name.upper(), key).ratio() for key in known}
    nearest = max(known, key=likeness.__getitem__)
    if same_leaf and likeness[nearest] < 0.85:
        return max(same_leaf, key=likeness.__getitem__)
    return nearest


class _Merge:
    """The tree while layers are merged into it, and where each value came from."""

    def __init__(self) -> None:
        self.cfg = default_config()
        self.warnings: list[str] = []
        self._origins: dict[str, str] = {}
        self._ignored: dict[str, tuple[str, str, int]] = {}  # key -> origin, reason, logging level

    def add(self, origin: str, pairs: Iterator[tuple[str, Any]]) -> None:
        for name, raw in pairs:
            if name in KEYS:
                value = decode_value(KEYS[name], raw, origin)
                set_value(self.cfg, name, value)
                self._origins[name] = origin
                if name in IGNORED_KEYS:
                    is_asked_for = KEYS[name].is_missing and value != KEYS[name].default
                    level = logging.WARNING if is_asked_for else logging.INFO
                    self._ignored[name] = (origin, IGNORED_KEYS[name], level)
            elif is_unused(name):
                self._ignored[name] = (origin, _UNUSED_REASON, logging.INFO)
            elif name in _ALL_SECTIONS:
                raise ConfigError(f"{origin}: {name} is {raw!r}; {name} is a section: expected KEY: value lines in it")
            else:
                raise ConfigError(f"{origin}: unknown key {name}; the nearest known key is {nearest_key(name)}")

    def origin_of(self, name: str) -> str:
        return self._origins.get(name, "defaults")

    def ignored_notes(self) -> list[tuple[int, str]]:
        """(logging level, note) on keys without effect, one for each file, reason and level; warnings first."""
        groups: dict[tuple[int, str, str], list[str]] = {}
        for name, (origin, reason, level) in self._ignored.items():
            groups.setdefault((level, origin, reason), []).append(name)
        notes = [
            (level, f"{origin}: ignored: {', '.join(names)} ({reason})")
            for (level, origin, reason), names in groups.items()
        ]
        return sorted(notes, key=lambda note: -note[0])


def _flatten(tree: Mapping[Any, Any], origin: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dict -> (dotted key, raw value) pairs; a section without lines gives nothing."""
    for part, value in tree.items():
        if "." in str(part):
            raise ConfigError(f"{origin}: {prefix}{part}: dotted keys are for the command line; in a file, nest them")
        name = f"{prefix}{part}"
        if isinstance(value, Mapping) and value and name not in KEYS:
            yield from _flatten(value, origin, f"{name}.")
        elif value in (None, {}) and name in _ALL_SECTIONS and name not in KEYS:
            continue
        else:
            yield name, value


def _override_pairs(overrides: Overrides, origin: str, notes: list[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        for name, value in overrides.items():
            if isinstance(value, Mapping) and name not in KEYS:
                yield from _flatten(value, origin, f"{name}.")
            else:
                yield str(name), value
        return
    if isinstance(overrides, str):
        raise ConfigError(f"{origin}: overrides are {overrides!r}; expected a list [KEY, VALUE, ...] or a dict")
    pairs = list(overrides)
    if len(pairs) % 2:
        raise ConfigError(f"{origin}: {pairs[-1]} has no value; expected KEY VALUE pairs")
    seen: dict[str, Any] = {}
    for name, value in zip(map(str, pairs[0::2]), pairs[1::2], strict=True):
        if name in seen:
            notes.append(f"{origin}: {name} stands twice: {value} counts, {seen[name]} does not")
        seen[name] = value
        yield name, value
