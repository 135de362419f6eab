"""What can be found out before anything is submitted: better now than after a day in the queue.

Each check gives lines to print; what cannot work is an InputError. Warnings begin with WARNING.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fvcore.common.config import CfgNode

from revvideo.config.batch import batch_plan
from revvideo.errors import InputError
from revvideo.launch.listed_videos import list_lines
from revvideo.launch.planned_memory import memory_line
from revvideo.launch.resources import Resources
from revvideo.launch.signal_delay import signal_delay_warning
from revvideo.paths import path_manager


def preflight(
    cfgs: list[CfgNode], resources: Resources, run_folder: Path, *, look: bool = True, waits: bool = False
) -> Iterator[str]:
    """Check a submission; lines come as they are found.

    Args:
        cfgs: of the run, or of all points of a sweep.
        resources: of each job.
        run_folder: where the submission will lie.
        look: look for checkpoints, lists and videos and plan the memory, too; what follows from the config alone is
            always checked.
        waits: the job starts after another one, which may still write the checkpoint that it needs.

    Raises:
        InputError: the submission cannot work.
    """
    for folder in dict.fromkeys([run_folder, *(Path(cfg.OUTPUT_DIR) for cfg in cfgs)]):
        check_run_folder(folder)
    yield from batch_lines(cfgs, resources)
    yield from time_lines(cfgs, resources)
    yield from _core_lines(cfgs, resources)
    if not look:
        yield "not looked for: checkpoints, lists, videos; memory not planned (--no-check)"
        return
    yield from _once(line for cfg in cfgs for line in checkpoint_lines(cfg, waits=waits))
    yield from list_lines(cfgs)
    line = memory_line(cfgs[0], resources)
    yield line if len(cfgs) == 1 else f"{line}, in the first point of the sweep"


def check_run_folder(folder: Path) -> None:
    """Refuse a run folder that cannot be made or written; it is not made.

    Raises:
        InputError: a file is in its path, or the permission is missing.
    """
    for existing in (folder, *folder.parents):
        if not os.path.lexists(existing):
            continue
        if not existing.is_dir():
            state = "a file" if existing.exists() else "a link that leads nowhere"
            raise InputError(
                f"the run folder {folder} cannot be made: {existing} is {state}; choose another OUTPUT_DIR, or move it "
                "away"
            )
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(
                f"the run folder {folder} cannot be written: no permission in {existing}; choose another OUTPUT_DIR"
            )
        return


def batch_lines(cfgs: list[CfgNode], resources: Resources) -> list[str]:
    """The batch arithmetic; where it differs between the points of a sweep, that of each.

    Raises:
        InputError: the processes cannot share the batch.
    """
    lines = [batch_line(cfg, resources) for cfg in cfgs]
    if len(set(lines)) == 1:
        return lines[:1]
    return [f"{Path(cfg.OUTPUT_DIR).name}: {line}" for cfg, line in zip(cfgs, lines)]


def batch_line(cfg: CfgNode, resources: Resources) -> str:
    """The batch arithmetic of a config on the nodes and tasks of the job.

    Raises:
        InputError: the processes cannot share the batch.
    """
    if not cfg.TRAIN.ENABLE:
        number = resources.num_tasks
        return f"batch: nothing is trained; {number} process{'es' * (number > 1)} for the videos of the test set"
    parts = 1 if cfg.RUN.AUTO_BATCH_SIZE else None
    return batch_plan(cfg, resources.nodes, resources.tasks_per_node, parts=parts).line


def time_lines(cfgs: list[CfgNode], resources: Resources) -> Iterator[str]:
    """Warnings where a hang is noticed too late, or the time between the signal and the end is too short."""
    wait, limit = max(cfg.DIST.TIMEOUT_SECONDS for cfg in cfgs), resources.minutes * 60
    if resources.num_tasks > 1 and wait >= limit:
        yield (
            f"WARNING: a process that hangs is noticed after {wait:g} s (DIST.TIMEOUT_SECONDS), not before the time "
            f"limit of {limit} s (--time), which would end the job for good; set DIST.TIMEOUT_SECONDS "
            f"{max(1, limit // 4)} or less"
        )
    signal = resources.signal_seconds
    warnings = (signal_delay_warning(Path(cfg.OUTPUT_DIR) / "events.jsonl", signal) for cfg in cfgs)
    yield from _once(f"WARNING: {warning}" for warning in warnings if warning)


def _core_lines(cfgs: list[CfgNode], resources: Resources) -> Iterator[str]:
    workers = max(cfg.DATA_LOADER.NUM_WORKERS for cfg in cfgs)
    if resources.cpus_per_task < workers + 1:
        yield (
            f"WARNING: {resources.cpus_per_task} core{'s' * (resources.cpus_per_task > 1)} for each process and its "
            f"{workers} loader workers (DATA_LOADER.NUM_WORKERS); give --cpus-per-task {workers + 1}, or fewer workers"
        )


def checkpoint_lines(cfg: CfgNode, *, waits: bool) -> Iterator[str]:
    """The checkpoints that a job starts from or evaluates.

    Raises:
        InputError: one is missing.
    """
    own = sorted((Path(cfg.OUTPUT_DIR) / "checkpoints").glob("checkpoint_epoch_*.pyth"))
    if cfg.TRAIN.ENABLE and own:
        yield f"training goes on from the checkpoints in {own[0].parent}, the newest is {own[-1].name}"
    elif cfg.TRAIN.CHECKPOINT_FILE_PATH and (cfg.TRAIN.ENABLE or not (own or cfg.TEST.CHECKPOINT_FILE_PATH)):
        yield from _checkpoint("TRAIN.CHECKPOINT_FILE_PATH", cfg.TRAIN.CHECKPOINT_FILE_PATH, waits)
    if cfg.TEST.ENABLE and cfg.TEST.CHECKPOINT_FILE_PATH:
        yield from _checkpoint("TEST.CHECKPOINT_FILE_PATH", cfg.TEST.CHECKPOINT_FILE_PATH, waits)
    elif not (cfg.TRAIN.ENABLE or own or cfg.TRAIN.CHECKPOINT_FILE_PATH or waits):
        raise InputError(
            f"nothing to evaluate: no checkpoint in {Path(cfg.OUTPUT_DIR) / 'checkpoints'}; name one "
            "(TEST.CHECKPOINT_FILE_PATH), or the OUTPUT_DIR of a run that has been trained"
        )


def _checkpoint(key: str, path: str, waits: bool) -> Iterator[str]:
    if path_manager.isfile(path):
        return
    if not waits:
        raise InputError(f"{key} is {path!r}, but there is no such file; expected a checkpoint that the nodes can read")
    yield f"{key} {path} is not there yet: the job before this one has to write it"


def _once(lines: Iterable[str]) -> list[str]:
    """Each line once, in their order: most points of a sweep say the same."""
    return list(dict.fromkeys(lines))
