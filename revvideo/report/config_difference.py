"""What a run's config has that the config it started from, or PySlowFast's defaults, have not."""

import logging
from dataclasses import dataclass

from revvideo.config import load_config
from revvideo.config.defaults import KEYS, get_value
from revvideo.config.shipped import find_config, list_shipped_configs, shipped_configs_dir
from revvideo.config.values import ConfigError
from revvideo.report.run_record import RunRecord

MISSING = object()
# They say which model it is; a config that differs in one of them is not what a run started from.
MODEL_KEYS = ("MODEL.ARCH", "MODEL.MODEL_NAME", "MVIT.DEPTH", "MVIT.EMBED_DIM", "MVIT.REV.ENABLE", "DATA.NUM_FRAMES")


@dataclass(frozen=True)
class Base:
    """What a config is compared with.

    Attributes:
        name: of a shipped config; "" for the defaults.
        values: dotted key -> value.
        named: the command named it; else it is the shipped config that differs least.
    """

    name: str
    values: dict[str, object]
    named: bool = False


def defaults() -> dict[str, object]:
    """Every key's default."""
    return {name: plain(key.default) for name, key in KEYS.items()}


def plain(value: object) -> object:
    """Tuples as lists: YAML knows no others."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def differing(values: dict[str, object], base: dict[str, object]) -> list[str]:
    """The keys of `values` whose value is another one in `base`, in the order of `values`."""
    return [name for name, value in values.items() if plain(value) != base.get(name, MISSING)]


def base_of(run: RunRecord) -> Base:
    """The shipped config that the command names, else the nearest one of the same model, else the defaults."""
    named = _named_by_command(run)
    if named:
        return Base(named, _shipped(named), named=True)
    found = {}
    for name in list_shipped_configs():
        values = _shipped(name)
        if all(values[key] == plain(run.config.get(key)) for key in MODEL_KEYS):
            found[name] = values
    if not found:
        return Base("", defaults())
    nearest = min(found, key=lambda name: len(differing(run.config, found[name])))
    return Base(nearest, found[nearest])


def _named_by_command(run: RunRecord) -> str:
    """The only shipped config after --cfg in the command of the last start; "" where it was another file."""
    words = next((list(start.command) for start in reversed(run.starts) if start.command), [])
    if "--cfg" not in words:
        return ""
    rest = words[words.index("--cfg") + 1 :]
    files = rest[: next((place for place, word in enumerate(rest) if word.startswith("-") or word in KEYS), len(rest))]
    if len(files) != 1:
        return ""
    try:
        file = find_config(files[0])
    except ConfigError:
        return ""
    names = {str(shipped_configs_dir() / f"{name}.yaml"): name for name in list_shipped_configs()}
    return names.get(file, "")


def _shipped(name: str) -> dict[str, object]:
    """A shipped config as it loads, without the notes that loading logs: they are about another run."""
    logger = logging.getLogger("revvideo.config")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        cfg = load_config(name)
    finally:
        logger.setLevel(level)
    return {key: plain(get_value(cfg, key)) for key in KEYS}
