"""The run folder: made, or entered again, and who runs here with what is written down."""

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

import revvideo
from revvideo.benchmark.machine import describe_machine
from revvideo.config import config_notes, dump_config
from revvideo.distributed.env import Process
from revvideo.engine.events import EventLog
from revvideo.engine.tensorboard import TensorBoardLog
from revvideo.errors import InputError
from revvideo.launch.snapshot import git_commit
from revvideo.paths import replace_file

logger = logging.getLogger(__name__)

DRIVER_FILE = Path("/proc/driver/nvidia/version")

# What decides how a run computes and talks. Not all of SLURM_: SLURM_JWT is a key.
VARIABLES = (
    *("CUDA_", "CUBLAS_", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "TORCH", "PYTORCH_"),
    *("NCCL_", "GLOO_", "UCX_", "FI_", "OMP_", "GOMP_", "MKL_", "KMP_"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_"),
    *("SLURM_JOB_", "SLURM_ARRAY_", "SLURM_STEP_", "SLURM_NTASKS", "SLURM_CPUS_", "SLURM_GPUS", "SLURM_RESTART_"),
)
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASS", "CREDENTIAL", "AUTH", "COOKIE", "JWT")


def open_run(cfg: CfgNode, process: Process, *, hosts: list[dict] | None = None) -> EventLog:
    """Open the run folder (OUTPUT_DIR) and write down what runs: config.yaml, environment.json, a `start` event.

    Only the main process writes; the diary of the others is disabled. Where a run goes on, a config or environment that
    cannot be written (a full disk) is a warning.

    Args:
        cfg: the loaded config.
        process: this one.
        hosts: facts about the processes of the run and their machines, for environment.json.

    Returns:
        The diary, with TensorBoard among its listeners where TENSORBOARD.ENABLE asks for it and there is training.

    Raises:
        InputError: the folder cannot be written, or the package tensorboard is missing.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if not process.is_main:
        return EventLog(folder / "events.jsonl", enabled=False)
    wants_curves = cfg.TENSORBOARD.ENABLE and cfg.TRAIN.ENABLE
    listeners = [TensorBoardLog(folder / (cfg.TENSORBOARD.LOG_DIR or "tensorboard"))] if wants_curves else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        events = EventLog(folder / "events.jsonl", listeners=listeners)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _write_down(cfg, folder, environment(cfg, process, hosts) | {"restart": events.restart})
    except OSError as error:
        if events.restart == 0:
            events.close()
            raise _unwritable(folder, error) from error
        logger.warning("config.yaml and environment.json of %s are of an earlier start: %s", folder, error)
    notes = list(config_notes(cfg))
    events.write("start", command=sys.argv, notes=notes, world_size=process.world_size, launcher=process.source)
    return events


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"the run folder {folder} cannot be written ({error}); choose another OUTPUT_DIR")


def _write_down(cfg: CfgNode, folder: Path, facts: dict) -> None:
    if cfg.TRAIN.ENABLE or not (folder / "config.yaml").exists():  # evaluating does not change what was trained
        _replace_text(folder / "config.yaml", dump_config(cfg))
    earlier = _read_environment(folder / "environment.json")
    if earlier:
        restarts = earlier.pop("restarts", [])
        facts = facts | {"restarts": [*restarts, earlier]}
    _replace_text(folder / "environment.json", json.dumps(facts, indent=2) + "\n")


def _replace_text(path: Path, text: str) -> None:
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read_environment(path: Path) -> dict:
    """What an earlier start wrote; empty if there was none."""
    if not path.exists():
        return {}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        logger.warning("%s is written anew, its content was unreadable: %s", path, error)
        return {}
    return earlier if isinstance(earlier, dict) else {}


def environment(cfg: CfgNode, process: Process, hosts: list[dict] | None = None) -> dict:
    """Versions, machine, launcher and variables, for whoever wants to repeat the run; ready for JSON."""
    import av
    import numpy as np

    on_gpu = cfg.NUM_GPUS > 0 and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return describe_machine(device) | {
        "commit": git_commit(),
        "av": av.__version__,
        "numpy": np.__version__,
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if on_gpu else [],
        "driver": _driver() if on_gpu else None,
        "host": socket.gethostname(),
        "launcher": process.source,
        "world_size": process.world_size,
        "num_machines": process.num_machines,
        "hosts": hosts or [],
        "variables": relevant_variables(os.environ),
        "command": sys.argv,
    }


def relevant_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of VARIABLES, in the order of their names, but none whose name looks like that of a secret."""
    return {
        name: environ[name]
        for name in sorted(environ)
        if name.startswith(VARIABLES) and not any(word in name.upper() for word in SECRET_WORDS)
    }


def code_version() -> str:
    """revvideo's version and, in a checkout or a job's copy of one, its commit: "0.1.0+04e6ff0-dirty"."""
    commit = git_commit()
    return revvideo.__version__ + (f"+{commit}" if commit else "")


def _driver() -> str | None:
    """Version of NVIDIA's kernel driver, as it tells it itself: "NVRM version: ... Kernel Module  550.54.15  ..."."""
    try:
        words = DRIVER_FILE.read_text(encoding="utf-8").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") in (1, 2) and word.replace(".", "").isdigit()), None)
