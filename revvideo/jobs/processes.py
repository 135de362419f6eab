"""How many processes a config asks for on this machine, and starting them: what `revvideo run_net` runs."""

import logging

from fvcore.common.config import CfgNode

from revvideo.config import ConfigError
from revvideo.config.batch import batch_plan
from revvideo.distributed.env import Process, current_process, machine_processes
from revvideo.distributed.rank_logging import line_prefix, set_up_logging
from revvideo.distributed.spawn import spawn
from revvideo.exit_codes import EXIT_DONE, run_guarded

logger = logging.getLogger(__name__)


def launch(cfg: CfgNode) -> int:
    """Run the jobs of `cfg` in this process, or start the processes that do.

    A process that torchrun, srun or submitit has started is one of those that run; the launcher has decided how many.
    A plain process that is asked for more starts them: a process for each of NUM_GPUS, or DIST.NUM_PROCESSES of them
    on the CPU; with NUM_SHARDS above 1, PySlowFast's way of several machines, each machine starts its own.

    Returns:
        The exit code.

    Raises:
        InputError: the environment is not a process's, the processes cannot be started here, or they cannot share the
            batch; errors of a job that runs in this process pass through too.
    """
    process = current_process()
    if is_launched(process):
        _check_launched(cfg, process)
        return _run_jobs(cfg)
    num_processes = processes_here(cfg)
    if num_processes == 1 and cfg.NUM_SHARDS == 1:
        return _run_jobs(cfg)
    _check_startable(cfg)
    if cfg.TRAIN.ENABLE:  # told once instead of by each process
        batch_plan(cfg, cfg.NUM_SHARDS, num_processes, parts=1 if cfg.RUN.AUTO_BATCH_SIZE else None)
    processes = machine_processes(
        num_processes=num_processes,
        num_machines=cfg.NUM_SHARDS,
        machine=cfg.SHARD_ID,
        init_method=cfg.DIST.INIT_METHOD if cfg.NUM_SHARDS > 1 else "",
    )
    logger.info(
        "starting %d processes here, %d in all; they meet at %s:%d",
        *(num_processes, processes[0].world_size, processes[0].master_addr, processes[0].master_port),
    )
    return spawn(run_rank, (cfg,), processes)


def is_launched(process: Process) -> bool:
    """Whether a launcher has decided over the processes. A step of srun with one task, such as an interactive shell on
    a compute node, is as good as a plain process."""
    return process.world_size > 1 or process.source not in ("plain", "srun")


def processes_here(cfg: CfgNode) -> int:
    """Processes that `cfg` asks for on each machine."""
    return cfg.NUM_GPUS or cfg.DIST.NUM_PROCESSES or 1


def run_rank(cfg: CfgNode) -> int:
    """What each started process does; returns its exit code."""
    process = current_process()
    set_up_logging(process)
    return run_guarded(lambda: _run_jobs(cfg), prefix=line_prefix(process))


def _run_jobs(cfg: CfgNode) -> int:
    from revvideo import jobs  # here: who only starts others need not wait for torch

    jobs.run(cfg)
    return EXIT_DONE


def _check_launched(cfg: CfgNode, process: Process) -> None:
    """Refuse two ways of starting at once; tell what a launcher overrules."""
    if cfg.NUM_SHARDS > 1 and cfg.DIST.INIT_METHOD:
        raise ConfigError(
            f"DIST.INIT_METHOD is {cfg.DIST.INIT_METHOD!r}, but {_who(process)} has started {process.world_size} "
            f"processes already, which meet at {process.master_addr}:{process.master_port}; leave out --init_method, "
            "--num_shards and --shard_id, or start without the launcher"
        )
    asked = processes_here(cfg)
    if asked > 1 and asked != process.local_world_size and process.is_main:
        key = "NUM_GPUS" if cfg.NUM_GPUS else "DIST.NUM_PROCESSES"
        logger.warning(
            "%s is %d, but %s has started %d on each machine, and that counts (--nproc-per-node of torchrun, "
            "--ntasks-per-node of srun)",
            *(key, asked, _who(process), process.local_world_size),
        )


def _who(process: Process) -> str:
    return "the launcher" if process.source == "environment" else process.source


def _check_startable(cfg: CfgNode) -> None:
    """Refuse, once and before any process is started, what none of them could run."""
    num_gpus = _count_gpus() if cfg.NUM_GPUS else 0
    here = f"NUM_SHARDS 1 NUM_GPUS {min(cfg.NUM_GPUS, num_gpus)}" + (" SHARD_ID 0" if cfg.SHARD_ID else "")
    if cfg.NUM_SHARDS > 1 and not cfg.DIST.INIT_METHOD:
        raise ConfigError(
            f"NUM_SHARDS is {cfg.NUM_SHARDS}, but this is a plain run on one machine; to run the config on this one "
            f"alone, add: {here} (and leave out --num_shards; the batch stays TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE}, "
            f"per machine). To run it on {cfg.NUM_SHARDS} machines, start on each of them, with its number as I: "
            f"--num_shards {cfg.NUM_SHARDS} --shard_id I --init_method tcp://HOST:PORT, or use torchrun or srun"
        )
    if num_gpus < cfg.NUM_GPUS:
        instead = here if cfg.NUM_SHARDS == 1 else f"NUM_GPUS {num_gpus}"
        found = f"{num_gpus} CUDA device{'s' * (num_gpus != 1)}" if num_gpus else "no CUDA device"
        raise ConfigError(
            f"NUM_GPUS is {cfg.NUM_GPUS}, but torch finds {found} on this machine; to run with what is there, add: "
            f"{instead} (the batch stays TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE}, per machine)"
        )


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
