"""The config that a job runs: the files and the command line, and over them what the launcher decides."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from revvideo.config.arguments import config_from_arguments
from revvideo.config.loader import COMMAND_LINE, load_layers
from revvideo.errors import InputError
from revvideo.launch.resources import Resources

_UNSET_FOLDER = "."  # OUTPUT_DIR's default: the working folder, where nobody wants a submission
_BAD_CHARACTERS = ":%\\\n"  # PYTHONPATH's separator, placeholders of sbatch's --output


def base_config(args: argparse.Namespace) -> CfgNode:
    """The config of the files and the command line alone, without its notes: the job's own load gives them.

    Raises:
        InputError: no --cfg, options that the launcher has others for, anything that `load_config` refuses.
    """
    for option, value in {"--num_shards": args.num_shards, "--shard_id": args.shard_id}.items():
        if value is not None:
            raise InputError(f"{option} {value}: the launcher numbers the machines; say how many by --nodes")
    if args.init_method is not None:
        raise InputError(f"--init_method {args.init_method}: the launcher says where the machines meet; leave it out")
    with _quiet():
        return config_from_arguments(args)


def run_folder_of(args: argparse.Namespace, cfg: CfgNode) -> Path:
    """OUTPUT_DIR, absolute; where nothing sets it, runs/NAME with the name of the (last) config file.

    Raises:
        InputError: its path has characters that job scripts give a meaning to.
    """
    words = [str(word) for word in (*(args.opts or []), *args.overrides)]
    folder = cfg.OUTPUT_DIR
    if folder in ("", _UNSET_FOLDER) and "OUTPUT_DIR" not in words[0::2]:
        folder = os.path.join("runs", Path(args.cfg[-1]).stem)
    absolute = Path(os.path.abspath(folder))
    bad = next((character for character in _BAD_CHARACTERS if character in str(absolute)), None)
    if bad is not None:
        raise InputError(
            f"OUTPUT_DIR is {str(absolute)!r}; expected a path without {bad!r}, which has a meaning in job scripts"
        )
    return absolute


def job_config(
    args: argparse.Namespace,
    resources: Resources,
    folder: Path,
    *,
    test_only: bool = False,
    values: Mapping[str, str] | None = None,
    is_quiet: bool = False,
) -> CfgNode:
    """The config of one run of a submission.

    Args:
        args: of the command line.
        resources: decide NUM_SHARDS, NUM_GPUS and DIST.NUM_PROCESSES.
        folder: OUTPUT_DIR, absolute.
        test_only: evaluate, do not train.
        values: keys of a sweep; they win over the command line.
        is_quiet: do not log the notes of the load (again).

    Raises:
        InputError: as `load_config`; or there is nothing to do.
    """
    decided: dict[str, Any] = {
        "NUM_SHARDS": resources.nodes,
        "SHARD_ID": 0,
        "NUM_GPUS": resources.gpus_per_node,
        "DIST.NUM_PROCESSES": 0 if resources.gpus_per_node else resources.tasks_per_node,
        "DIST.INIT_METHOD": "",
        "TRAIN.AUTO_RESUME": True,
        "OUTPUT_DIR": str(folder),
    }
    if test_only:
        decided |= {"TRAIN.ENABLE": False, "TEST.ENABLE": True}
    overrides = [*(args.opts or []), *args.overrides]
    layers = [(COMMAND_LINE, overrides), ("--sweep", values or {}), ("launcher", decided)]
    with _quiet() if is_quiet else contextlib.nullcontext():
        cfg = load_layers(args.cfg, layers)
    if not cfg.TRAIN.ENABLE and not cfg.TEST.ENABLE:
        raise InputError("TRAIN.ENABLE and TEST.ENABLE are both False: the job would do nothing; set one to True")
    return cfg


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("revvideo.config")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
