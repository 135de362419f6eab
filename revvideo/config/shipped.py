"""Where configs are found: real paths first, then the names of the files that come with revvideo."""

from __future__ import annotations

import difflib
from pathlib import Path

from revvideo.config.values import ConfigError
from revvideo.paths import path_manager

_SUFFIXES = (".yaml", ".yml")


def shipped_configs_dir() -> Path:
    """Folder of the shipped YAML files: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_shipped_configs() -> tuple[str, ...]:
    """Names such as `demo/REV_MVIT_DEMO`, sorted. `launch/` holds cluster profiles, which are no configs."""
    folder = shipped_configs_dir()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return tuple(sorted(name for name in names if not name.startswith("launch/")))


def find_config(name: str | Path) -> str:
    """Path of a config file that is given as a path, a shipped name, or the bare unique stem of one.

    Raises:
        ConfigError: no such file; the name fits several shipped files; the path is a folder.
    """
    text = str(name)
    if path_manager.isfile(text):
        return text
    if text and path_manager.isdir(text):
        raise ConfigError(f"config {text}: this is a folder; expected a YAML file")
    wanted = text.removeprefix("./").removeprefix("configs/")
    for suffix in _SUFFIXES:
        wanted = wanted.removesuffix(suffix)
    shipped = list_shipped_configs()
    matches = [entry for entry in shipped if entry == wanted] or [
        entry for entry in shipped if "/" not in wanted and entry.rpartition("/")[2] == wanted
    ]
    if len(matches) == 1:
        return str(shipped_configs_dir() / f"{matches[0]}.yaml")
    if matches:
        raise ConfigError(f"config {text}: fits several shipped configs: {', '.join(matches)}; give the whole name")
    near = _nearest_names(wanted, shipped)
    hint = f"; near shipped names: {', '.join(near)}" if near else ""
    raise ConfigError(f"config {text}: no such file, and no shipped config of that name{hint}")


def is_config(name: str) -> bool:
    """True when `find_config` would find `name`."""
    try:
        find_config(name)
    except ConfigError:
        return False
    return True


def _nearest_names(wanted: str, shipped: tuple[str, ...], count: int = 3) -> list[str]:
    """The shipped names whose last part is most like the last part of `wanted`."""
    stem = wanted.rpartition("/")[2].lower()

    def likeness(entry: str) -> float:
        return difflib.SequenceMatcher(None, stem, entry.rpartition("/")[2].lower()).ratio()

    return sorted(shipped, key=likeness, reverse=True)[:count]
