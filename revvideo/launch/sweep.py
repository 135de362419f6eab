"""A sweep: keys of the config with several values each; every combination is a run with a folder of its own."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from revvideo.config.defaults import KEYS
from revvideo.config.loader import nearest_key
from revvideo.errors import InputError

# What the launcher decides is the same in all runs of a sweep.
_NOT_SWEPT = {
    "OUTPUT_DIR": "each point has a folder of its own in it",
    "NUM_GPUS": "all points have the same nodes; give --gpus-per-node",
    "NUM_SHARDS": "all points have the same nodes; give --nodes",
    "DIST.NUM_PROCESSES": "all points have the same nodes; give --tasks-per-node",
    "SHARD_ID": "the launcher numbers the machines",
    "DIST.INIT_METHOD": "the launcher says where the machines meet",
    "TRAIN.AUTO_RESUME": "a job that comes back goes on from its checkpoint",
}
_LONGEST_NAME = 120  # of a folder: file systems allow 255
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        values: key -> value, as they were written.
        folder: its name in the run folder.
    """

    values: dict[str, str]
    folder: str


def sweep_points(options: Sequence[str]) -> list[Point]:
    """All combinations of the values, those of the last key varying fastest.

    A point's folder is named by its values alone, so that a sweep that is submitted again with more values goes on in
    the folders that it has.

    Args:
        options: `KEY=v1,v2`; commas in brackets or quotes belong to a value. Without any there is no point.

    Raises:
        InputError: no such key, one that the launcher sets, a key or value that stands twice, an empty value.
    """
    choices: dict[str, list[str]] = {}
    for option in options:
        key, values = _parse(option)
        if key in choices:
            raise InputError(f"--sweep names {key} twice; put all of its values into one: --sweep {key}=v1,v2,v3")
        choices[key] = values
    combinations = [dict(zip(choices, values)) for values in itertools.product(*choices.values()) if values]
    labels = _labels(list(choices))
    names = [_folder_name(labels, values) for values in combinations]
    return [
        Point(values, name if names.count(name) == 1 else f"{name}-{_digest(values)}")
        for values, name in zip(combinations, names)
    ]


def _parse(option: str) -> tuple[str, list[str]]:
    key, equals, text = option.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--sweep is {option!r}; expected KEY=v1,v2, such as SOLVER.BASE_LR=1e-3,3e-4")
    if key not in KEYS:
        raise InputError(f"--sweep names the unknown key {key}; the nearest known key is {nearest_key(key)}")
    if key in _NOT_SWEPT:
        raise InputError(f"--sweep names {key}, which cannot be swept: {_NOT_SWEPT[key]}")
    values = [value.strip() for value in _split(text)]
    if not all(values):
        raise InputError(f"--sweep is {option!r}, with an empty value; expected KEY=v1,v2")
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise InputError(f"--sweep gives {key} the value {twice[0]} twice; keep one")
    return key, values


def _split(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in _OPENING) - (character in _CLOSING)
        parts[-1] += character
    return parts


def _labels(keys: list[str]) -> dict[str, str]:
    """Key -> what names it in a folder: its last part where that is enough."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves)}


def _folder_name(labels: dict[str, str], values: dict[str, str]) -> str:
    """LABEL=VALUE, of several keys with `_` between them, in characters that need no quotes anywhere."""
    parts = (f"{labels[key]}={_plain(value)}" for key, value in values.items())
    name = "_".join(parts)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{_digest(values)}"


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", re.sub(r"[\[\](){}'\"\s]+", "", value))


def _digest(values: dict[str, str]) -> str:
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]
