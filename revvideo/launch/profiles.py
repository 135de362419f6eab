"""Cluster profiles: YAML files with the fields of `Resources`, so that what a cluster wants is written down once.

Values are written as on the command line: `minutes: 72:00:00`, `mem_gib: 480G`. They are read as text, because YAML 1.1
would take 72:00:00 for a number to base 60.
"""

import dataclasses
import difflib
from typing import Any

import yaml

from revvideo.config.shipped import shipped_configs_dir
from revvideo.errors import InputError
from revvideo.launch.arguments import OPTIONS, parse_profile
from revvideo.launch.resources import Resources
from revvideo.paths import path_manager

KEYS = tuple(field.name for field in dataclasses.fields(Resources))
_FOLDER = "launch"  # in the folder of the shipped configs
_OPTION_NAMES = {option.flag.removeprefix("--").replace("-", "_"): option.field for option in OPTIONS}


def list_profiles() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    return tuple(sorted(path.stem for path in (shipped_configs_dir() / _FOLDER).glob("*.yaml")))


def load_profile(name: str) -> dict[str, Any]:
    """The fields of `Resources` that a profile sets.

    Args:
        name: a YAML file, or the name of a shipped profile: configs/launch/NAME.yaml.

    Raises:
        InputError: no such file, no YAML, an unknown key, a value that cannot be.
    """
    file = _find(name)
    return parse_profile(_read(file), file)


def _find(name: str) -> str:
    if path_manager.isfile(name):
        return name
    stem = name.removeprefix("./").removeprefix("configs/").removeprefix(f"{_FOLDER}/")
    stem = stem.removesuffix(".yaml").removesuffix(".yml")
    known = list_profiles()
    if stem in known:
        return str(shipped_configs_dir() / _FOLDER / f"{stem}.yaml")
    state = "is a folder" if path_manager.isdir(name) else "is no file"
    raise InputError(
        f"--profile is {name!r}, which {state} and no shipped profile; expected a YAML file or one of: "
        f"{', '.join(known)}"
    )


def _read(file: str) -> dict[str, Any]:
    """Key -> text, list of texts or dict of texts."""
    try:
        with path_manager.open(file, "r") as stream:
            node = yaml.compose(stream.read(), Loader=yaml.BaseLoader)
        content = _content(node, file)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"profile {file}: cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"profile {file}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"profile {file}: expected KEY: value lines; the keys are {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise InputError(f"profile {file}: unknown key {key}; {_nearest(key)}")
    return content


def _content(node: yaml.Node | None, file: str) -> Any:
    """Plain text, lists and dicts; a key that stands twice is an error."""
    if node is None:
        return {}
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_content(item, file) for item in node.value]
    content: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in content:
            raise InputError(f"profile {file}, line {line}: {key} stands twice; keep one")
        content[key] = _content(value_node, file)
    return content


def _nearest(key: str) -> str:
    spelling = key.lower().replace("-", "_")
    found = _OPTION_NAMES.get(spelling) or next(iter(difflib.get_close_matches(spelling, KEYS, n=1)), None)
    return f"did you mean {found}?" if found else f"the keys are {', '.join(KEYS)}"
