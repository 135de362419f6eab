"""One value of a file or command line -> the declared type of its key, or a readable error.

PySlowFast (yacs) evaluates every string as a Python literal, because YAML 1.1 reads `1e-6`, `(3, 7, 7)` and `None` as
strings. We do the same, and then hold the value to the kind that its key declares:

    bool, int, float, str      that type; an int is a float; `true`/`false` in any case are bools
    list[X], tuple[X]          a list or tuple of X (also inside strings); list[list]: [block, number, ...] rows
    X or None                  X, or None
    any                        whatever a YAML file can hold, but mappings
"""

from __future__ import annotations

from ast import literal_eval
from typing import Any

from revvideo.config.key import RANGES, Key
from revvideo.errors import InputError


class ConfigError(InputError):
    """A config that cannot be used: the message names the file, the key, the value and what was expected."""


class _Mismatch(Exception):
    """The value is not of the kind (inside this file only)."""


_DESCRIPTION = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "a string (quote it in YAML)",
    "list": "a list",
    "tuple": "a list",
    "list[list]": "a list of [block, number, ...] lists",
    "any": "a value, not a section",
}


def describe_kind(kind: str) -> str:
    """A kind in words, for error messages."""
    if kind.endswith(" or None"):
        return f"{describe_kind(kind[: -len(' or None')])} or None"
    if kind in _DESCRIPTION:
        return _DESCRIPTION[kind]
    element = kind[kind.index("[") + 1 : -1]
    return "a list of " + {"int": "whole numbers", "float": "numbers", "str": "strings", "bool": "bools"}[element]


def decode_value(key: Key, raw: Any, origin: str) -> Any:
    """Turn `raw` (from YAML, a dict or the command line) into the type that `key` declares.

    Args:
        key: the row of the table.
        raw: the value as it was written.
        origin: file or "command line", for the message.

    Raises:
        ConfigError: wrong type, not among the choices, outside the limits.
    """
    try:
        value = _as_kind(key.kind, raw)
    except _Mismatch:
        raise ConfigError(f"{origin}: {key.name} is {raw!r}; expected {describe_kind(key.kind)}") from None
    return value


def check_value(key: Key, value: Any, origin: str) -> None:
    """Hold a decoded value to the key's choices and limits.

    Raises:
        ConfigError: the value is not allowed.
    """
    if key.choices and value not in key.choices:
        allowed = ", ".join(str(choice) or "''" for choice in key.choices)
        expected = f"one of: {allowed}" if len(key.choices) > 1 else f"{allowed} (the only one that exists)"
        raise ConfigError(f"{origin}: {key.name} is {value!r}; expected {expected}")
    if key.limits and value is not None and not RANGES[key.limits](value):
        raise ConfigError(f"{origin}: {key.name} is {value!r}; expected a number {key.limits}")


def _literal(raw: str) -> Any:
    """`raw` as a Python literal, or unchanged where it is none."""
    try:
        return literal_eval(raw)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return raw


def _as_kind(kind: str, raw: Any) -> Any:
    if kind.endswith(" or None"):
        value = _literal(raw) if isinstance(raw, str) else raw
        # PySlowFast tests these keys for truth, so that False means None there.
        return None if value is None or value is False else _as_kind(kind[: -len(" or None")], raw)
    if kind == "str":
        return _as_string(raw)
    value = _literal(raw) if isinstance(raw, str) else raw
    if kind == "any":
        return _as_anything(value)
    if kind == "bool":
        return _as_bool(value)
    if kind in ("int", "float"):
        return _as_number(kind, value)
    if not isinstance(value, (list, tuple)):
        raise _Mismatch
    container = tuple if kind.startswith("tuple") else list
    if kind == "list[list]":
        return [_as_row(row) for row in value]
    if "[" not in kind:
        return container(value)
    element_kind = kind[kind.index("[") + 1 : -1]
    return container(_as_kind(element_kind, element) for element in value)


def _as_string(raw: Any) -> str:
    if not isinstance(raw, str):
        raise _Mismatch
    value = _literal(raw)
    return value if isinstance(value, str) else raw  # the folder "123" stays a string


def _as_bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _Mismatch
    return value


def _as_number(kind: str, value: Any) -> int | float:
    if kind == "float" and isinstance(value, str) and value.lower().lstrip("+-.") == "inf":
        return float(value.replace(".", ""))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Mismatch
    if value != value:  # NaN: no key means anything by it
        raise _Mismatch
    if kind == "float":
        return float(value)
    if not isinstance(value, int):
        raise _Mismatch
    return value


def _as_row(row: Any) -> list[int | float]:
    """[block, number, ...]: ints and floats stay what they are (PySlowFast writes [1, 2.0])."""
    row = _literal(row) if isinstance(row, str) else row
    if not isinstance(row, (list, tuple)):
        raise _Mismatch
    numbers = [_literal(number) if isinstance(number, str) else number for number in row]
    return [number if isinstance(number, int) else _as_number("float", number) for number in numbers]


def _as_anything(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_as_anything(element) for element in value)
    raise _Mismatch
