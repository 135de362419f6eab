"""What the config knows about one key: the row of the tables in defaults_*.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Intervals that a number may be held to; the text stands in the tables, in docs/config.md and in the error message.
RANGES: dict[str, Callable[[float], bool]] = {
    "> 0": lambda value: value > 0,
    ">= -1": lambda value: value >= -1,
    ">= 0": lambda value: value >= 0,
    "0 to 4294967295": lambda value: 0 <= value < 2**32,
    ">= 1": lambda value: value >= 1,
    "0 to 1": lambda value: 0 <= value <= 1,
    "1 to 31536000": lambda value: 1 <= value <= 31536000,  # seconds: a year, so that it is a duration and never inf
    "above 0 to 1": lambda value: 0 < value <= 1,
    "0 to below 1": lambda value: 0 <= value < 1,
    "1 to 3": lambda value: 1 <= value <= 3,
}


@dataclass(frozen=True)
class Key:
    """One key of the config tree.

    Attributes:
        name: full dotted name, such as `MVIT.REV.ENABLE`.
        default: the value that a file or override need not give.
        meaning: one sentence for docs/config.md, with units.
        kind: type as written in docs/config.md; where the default cannot say it (None, empty lists), the type that a
            value is held to. See `values.py` for what each kind accepts.
        ours: True for keys that PySlowFast does not have.
        choices: the only values, if they are few.
        limits: an entry of RANGES.
        ignored: why nothing acts on the key; empty for a key that does something. An ignored key is accepted, and
            listed in the notes of every config that sets it.
    """

    name: str
    default: Any
    meaning: str
    kind: str
    ours: bool = False
    choices: tuple[Any, ...] = ()
    limits: str = ""
    ignored: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether the key is ignored because what it asks for does not exist yet: setting it is worth a warning.

        By the wording of `ignored`, which ends in "yet" then; else the key has no meaning here, or no effect.
        """
        return self.ignored.endswith(" yet")

    @property
    def source(self) -> str:
        """Whose key it is, for docs/config.md."""
        return "ours" if self.ours else "PySlowFast"


def kind_of_default(default: Any) -> str:
    """The kind that follows from a default: `bool`, `int`, `float`, `str`, `list[int]`, `tuple[float]`, ...

    An empty list says nothing about its elements and None nothing at all: those keys state their kind in the table.
    """
    if isinstance(default, (list, tuple)):
        container = type(default).__name__
        element_types = {type(element).__name__ for element in default}
        return f"{container}[{element_types.pop()}]" if len(element_types) == 1 else container
    return "any" if default is None else type(default).__name__


def section(name: str, *rows: tuple[Any, ...], ours: bool = False, ignored: str = "") -> list[Key]:
    """Make the keys of one section from rows `(key, default, meaning[, {kind, choices, limits, ignored}])`.

    `ignored` is the reason for rows that do not give their own; name "" is the top level of the tree.
    """
    keys = []
    for key_name, default, meaning, *rest in rows:
        options = dict(rest[0]) if rest else {}
        options.setdefault("kind", kind_of_default(default))
        options.setdefault("ignored", ignored)
        keys.append(Key(f"{name}.{key_name}" if name else key_name, default, meaning, ours=ours, **options))
    return keys
