"""What a training step of a config takes, planned by `revvideo plan_memory` in a process of its own.

The planner needs torch, which a login node may not have: then a line says that nothing was planned, and why.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fvcore.common.config import CfgNode

from revvideo.config import dump_config
from revvideo.config.batch import batch_plan
from revvideo.errors import InputError
from revvideo.exit_codes import EXIT_WRONG_INPUT
from revvideo.launch.clean_environment import outer_variables
from revvideo.launch.resources import Resources

SECONDS = 300  # more than the largest shipped config takes on a busy login node
_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}  # AMP.DTYPE -> the planner's name


def memory_line(cfg: CfgNode, resources: Resources) -> str:
    """One line: the memory of a training step in each process, or why it was not planned.

    Args:
        cfg: the config of the job.
        resources: of the job.

    Raises:
        InputError: the planner refuses the config: its model cannot be built.
    """
    if not cfg.TRAIN.ENABLE:
        return "memory: not planned, as nothing is trained (TRAIN.ENABLE False)"
    if cfg.RUN.AUTO_BATCH_SIZE:
        return "memory: not planned here, the job finds what fits (RUN.AUTO_BATCH_SIZE)"
    mode, precision = _mode(cfg), _precision(cfg)
    clips = batch_plan(cfg, resources.nodes, resources.tasks_per_node).clips_per_part
    plan, reason = _planned(cfg, mode, precision, clips)
    if plan is None:
        return f"memory: not planned ({reason})"
    gib = _total_bytes(plan) / 2**30
    size = f"{gib:.2f} GiB" if gib >= 1 else f"{gib * 1024:.1f} MiB"
    at_a_time = f"{clips} clip{'s' * (clips > 1)} at a time"
    line = f"memory: {size} of tensors in each process, {at_a_time} ({mode}, {precision})"
    if resources.gpus_per_node:
        return f"{line}; CUDA's own needs come on top (docs/planner.md)"
    if resources.mem_gib is not None and gib * resources.tasks_per_node > resources.mem_gib:
        line += (
            f"; WARNING: the {resources.tasks_per_node} processes of a node have {resources.mem_gib:g} GiB together: "
            "give more --mem, or raise RUN.ACCUMULATION_STEPS"
        )
    return line


def _mode(cfg: CfgNode) -> str:
    if cfg.MODEL.MODEL_NAME == "MViT" and cfg.MVIT.REV.ENABLE:
        return cfg.REV.BACKPROP
    return "checkpointed" if cfg.MODEL.ACT_CHECKPOINT else "plain"


def _precision(cfg: CfgNode) -> str:
    return _PRECISIONS[cfg.AMP.DTYPE] if cfg.TRAIN.MIXED_PRECISION else "float32"


def _total_bytes(plan: dict) -> int:
    lasting = sum(plan[name] for name in ("parameters", "gradients", "optimizer_state", "inputs"))
    return lasting + max(plan["peak"], plan["optimizer_temporaries"])


def _planned(cfg: CfgNode, mode: str, precision: str, clips: int) -> tuple[dict | None, str]:
    """The planner's numbers; or None, and why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump_config(cfg), encoding="utf-8")
        options = ["--json", "--mode", mode, "--precision", precision, "--batch-size", str(clips)]
        command = [sys.executable, "-m", "revvideo.cli.main", "plan_memory", *options, "--cfg", str(file)]
        try:
            done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return None, f"the planner took more than {SECONDS} s"
        except OSError as error:
            return None, f"the planner could not be started: {error}"
    if done.returncode == EXIT_WRONG_INPUT:
        raise InputError(
            f"{_last_line(done.stderr).removeprefix('revvideo: error: ')} (found while planning the memory)"
        )
    if done.returncode:
        return None, _last_line(done.stderr) or f"the planner ended with code {done.returncode}"
    try:
        return json.loads(done.stdout)["plans"][0], ""
    except (ValueError, LookupError):
        return None, "the planner's answer could not be read"


def _environment() -> dict[str, str]:
    outer = outer_variables(os.environ)
    environ = {name: value for name, value in os.environ.items() if name not in outer}
    package = str(Path(__file__).parents[2])
    paths = [package, *environ.get("PYTHONPATH", "").split(os.pathsep)]
    environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environ["CUDA_VISIBLE_DEVICES"] = ""  # a plan needs no GPU: leave that of a shared login node alone
    return environ


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
