"""The command-line arguments that every command with a config shares: PySlowFast's, with the same meanings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from revvideo.config.defaults import KEYS
from revvideo.config.loader import COMMAND_LINE, Overrides, load_layers
from revvideo.config.shipped import is_config, list_shipped_configs
from revvideo.config.values import ConfigError

_KEY_LIKE = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)*")


class _ConfigFiles(argparse.Action):
    """`--cfg FILE [FILE ...] [KEY VALUE ...]`: files until the first thing that is none, then overrides."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        words = [values] if isinstance(values, str) else list(values or [])
        count = 1
        while count < len(words) and _is_file(words[count]):
            count += 1
        namespace.cfg = [*(namespace.cfg or []), *words[:count]]
        namespace.opts = [*(namespace.opts or []), *words[count:]]


def _is_file(word: str) -> bool:
    """Whether a word after `--cfg FILE` is a further file; a known key never is."""
    if word in KEYS:
        return False
    if word.endswith((".yaml", ".yml")) or is_config(word):
        return True
    return not _KEY_LIKE.fullmatch(word) and "/" in word


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --cfg, --opts, bare trailing KEY VALUE pairs, --num_shards, --shard_id and --init_method to `parser`."""
    group = parser.add_argument_group("config")
    group.add_argument(
        "--cfg",
        "--cfg_file",
        "--cfg_files",
        dest="cfg",
        nargs="+",
        action=_ConfigFiles,
        metavar="FILE",
        help="YAML file or name of a shipped config, such as demo/REV_MVIT_DEMO; several are merged in order",
    )
    group.add_argument(
        "--opts",
        nargs="*",
        action="extend",
        default=None,
        metavar="KEY VALUE",
        help="config keys and values (docs/config.md); they win over the files",
    )
    group.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="the same as --opts")
    group.add_argument("--num_shards", "--num-shards", type=int, help="machines (sets NUM_SHARDS)")
    group.add_argument("--shard_id", "--shard-id", type=int, help="number of this machine, from 0 (sets SHARD_ID)")
    group.add_argument(
        "--init_method",
        "--init-method",
        metavar="URL",
        help="meeting point of several machines, tcp://HOST:PORT (sets DIST.INIT_METHOD)",
    )


def config_from_arguments(args: argparse.Namespace, launcher_overrides: Overrides = ()) -> CfgNode:
    """Load the config that parsed arguments name.

    Precedence: launcher, --num_shards, --shard_id and --init_method, other overrides (a later one wins), files,
    defaults.

    Args:
        args: from a parser with `add_config_arguments`.
        launcher_overrides: keys that a launcher decides.

    Raises:
        ConfigError: no --cfg, or anything that `load_config` refuses.
    """
    if not args.cfg:
        names = ", ".join(list_shipped_configs())
        raise ConfigError(f"--cfg is missing; expected a YAML file or a shipped name: {names}")
    overrides: list[Any] = [*(args.opts or []), *args.overrides]
    options = {"NUM_SHARDS": args.num_shards, "SHARD_ID": args.shard_id, "DIST.INIT_METHOD": args.init_method}
    machines = {key: value for key, value in options.items() if value is not None}
    layers = [(COMMAND_LINE, overrides), (COMMAND_LINE, machines), ("launcher", launcher_overrides)]
    return load_layers(args.cfg, layers)
