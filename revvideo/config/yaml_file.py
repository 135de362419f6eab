"""Read one YAML file into nested dicts: safe tags only, line numbers in every error, duplicate keys reported."""

from __future__ import annotations

import os
from typing import Any

import yaml

from revvideo.config.values import ConfigError
from revvideo.paths import path_manager

_BASE_KEY = "_BASE_"  # fvcore's: files that this one starts from, relative to it


class _Loader(yaml.SafeLoader):
    """SafeLoader that remembers keys which stand twice in one mapping (YAML keeps the last, silently)."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[tuple[str, int, int]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            name = str(key_node.value)
            line = key_node.start_mark.line + 1
            if name in lines and name != "<<":
                self.duplicates.append((name, lines[name], line))
            lines[name] = line
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str) -> list[tuple[str, dict[str, Any], list[str]]]:
    """Read `path` and the files that its `_BASE_` names.

    Returns:
        layers in the order in which they are merged, bases first: (file, nested dict, notes on duplicate keys).

    Raises:
        ConfigError: unreadable, not YAML (with line and reason), not a mapping, bases that form a circle.
    """
    return _read_with_bases(path, ())


def _read_with_bases(path: str, parents: tuple[str, ...]) -> list[tuple[str, dict[str, Any], list[str]]]:
    if path in parents:
        raise ConfigError(f"{path}: {_BASE_KEY} leads back to the file itself: {' -> '.join([*parents, path])}")
    tree, notes = _read_one(path)
    bases = tree.pop(_BASE_KEY, [])
    layers = []
    for base in [bases] if isinstance(bases, str) else bases:
        base_path = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(str(base))))
        if not path_manager.isfile(base_path):
            raise ConfigError(f"{path}: {_BASE_KEY} names {base}, which is no file ({base_path})")
        layers += _read_with_bases(base_path, (*parents, path))
    return [*layers, (path, tree, notes)]


def _read_one(path: str) -> tuple[dict[str, Any], list[str]]:
    try:
        with path_manager.open(path, "r") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        loader = _Loader(text)
        try:
            tree = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_describe_yaml_error(path, error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}; expected sections of KEY: value lines")
    notes = [
        f"{path}: {name} stands twice, in line {first} and in line {last}: line {last} counts"
        for name, first, last in loader.duplicates
    ]
    return tree, notes


def _describe_yaml_error(path: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    reason = " ".join(part for part in (error.problem, error.context) if part)
    started = ""
    if error.problem and error.context and error.context_mark and mark and error.context_mark.line != mark.line:
        started = f" that starts in line {error.context_mark.line + 1}"
    hint = "; check the indentation of this line" if "block" in reason or "mapping values" in reason else ""
    return f"{path}{line}: is not YAML: {reason}{started}{hint}"
