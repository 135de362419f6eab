"""Batch arithmetic: clips per process and step, and the learning rate that follows. No torch: the launcher prints it.

PySlowFast's meaning: TRAIN.BATCH_SIZE counts the videos of one machine. Its processes share them, every further machine
adds as many, and AUG.NUM_SAMPLE clips are cut from each video. SOLVER.BASE_LR_SCALE_NUM_SHARDS multiplies the three
learning rates by the number of machines; we use the machines that take part, not what NUM_SHARDS says.

RUN.ACCUMULATION_STEPS is ours: a process works through its clips in that many equal parts. It changes what a step takes
in memory, never the clips of a step or the learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode

from revvideo.config.values import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """What one training step processes, and at which learning rates.

    Attributes:
        num_machines: machines that take part.
        processes_per_machine: processes on each, one a GPU.
        videos_per_process: videos of a step in one process.
        clips_per_process: clips of a step in one process, AUG.NUM_SAMPLE of each video.
        parts: what a process divides its clips of a step into, one part after the other.
        clips_per_part: clips that a process has in memory at once.
        clips_per_step: clips of a step in all processes.
        base_lr, warmup_start_lr, cosine_end_lr: SOLVER's rates after scaling.
        lr_factor: what they were multiplied by.
        line: all of it in one readable line.
    """

    num_machines: int
    processes_per_machine: int
    videos_per_process: int
    clips_per_process: int
    parts: int
    clips_per_part: int
    clips_per_step: int
    base_lr: float
    warmup_start_lr: float
    cosine_end_lr: float
    lr_factor: int
    line: str

    @property
    def world_size(self) -> int:
        """Processes on all machines."""
        return self.num_machines * self.processes_per_machine


def planned_processes(cfg: CfgNode) -> int:
    """Processes that a config asks for on each machine: one a GPU, or DIST.NUM_PROCESSES on the CPU."""
    return cfg.NUM_GPUS or max(1, cfg.DIST.NUM_PROCESSES)


def possible_parts(cfg: CfgNode, clips_per_process: int) -> list[int]:
    """The numbers of parts, ascending from 1, that the clips of a process can be divided into.

    Parts are equal, so that the mean of their losses is that of all clips. Where MIXUP mixes, clips of a part are mixed
    with each other, in pairs: each part has an even number then. All clips at once, in one part, are always possible.
    """
    mixup = cfg.MIXUP
    mixes = mixup.ENABLE and mixup.PROB > 0 and max(mixup.ALPHA, mixup.CUTMIX_ALPHA) > 0
    unit = 2 if mixes else 1
    divisors = (parts for parts in range(2, clips_per_process + 1) if clips_per_process % parts == 0)
    return [1, *(parts for parts in divisors if clips_per_process // parts % unit == 0)]


def batch_plan(
    cfg: CfgNode, num_machines: int = 1, processes_per_machine: int = 1, parts: int | None = None
) -> BatchPlan:
    """The batch arithmetic of a config on the machines that really take part. `cfg` is not changed.

    Args:
        cfg: a loaded config.
        num_machines: machines of the job.
        processes_per_machine: training processes on each machine.
        parts: of a process's clips, as RUN.AUTO_BATCH_SIZE has found them; None: RUN.ACCUMULATION_STEPS.

    Raises:
        ConfigError: TRAIN.BATCH_SIZE cannot be divided among the processes of a machine, or a process's clips cannot
            be divided into the parts.
    """
    assert num_machines >= 1, num_machines
    assert processes_per_machine >= 1, processes_per_machine
    batch_size = cfg.TRAIN.BATCH_SIZE
    if batch_size % processes_per_machine:
        raise ConfigError(
            f"TRAIN.BATCH_SIZE is {batch_size}; expected a multiple of the {processes_per_machine} processes of a "
            f"machine ({_reason_of_processes(cfg)}), which share it"
        )
    solver = cfg.SOLVER
    lr_factor = num_machines if solver.BASE_LR_SCALE_NUM_SHARDS else 1
    samples = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
    videos_per_process = batch_size // processes_per_machine
    clips_per_process = videos_per_process * samples
    clips_per_step = batch_size * samples * num_machines
    wanted_parts = cfg.RUN.ACCUMULATION_STEPS if parts is None else parts
    _check_parts(cfg, wanted_parts, clips_per_process)
    base_lr = solver.BASE_LR * lr_factor
    return BatchPlan(
        num_machines=num_machines,
        processes_per_machine=processes_per_machine,
        videos_per_process=videos_per_process,
        clips_per_process=clips_per_process,
        parts=wanted_parts,
        clips_per_part=clips_per_process // wanted_parts,
        clips_per_step=clips_per_step,
        base_lr=base_lr,
        warmup_start_lr=solver.WARMUP_START_LR * lr_factor,
        cosine_end_lr=solver.COSINE_END_LR * lr_factor,
        lr_factor=lr_factor,
        line=(
            f"batch: {clips_per_step} clips a step = {batch_size} videos a machine (TRAIN.BATCH_SIZE) x "
            f"{_count(samples, 'clip')} (AUG.NUM_SAMPLE) x {_count(num_machines, 'machine')}; "
            f"{clips_per_process} in each of {_count(num_machines * processes_per_machine, 'process')}"
            f"{' (one a GPU)' if cfg.NUM_GPUS else ''}{_describe_parts(cfg, parts, clips_per_process)}; "
            f"{_describe_lr(cfg, base_lr, num_machines)}"
        ),
    )


def _reason_of_processes(cfg: CfgNode) -> str:
    return f"NUM_GPUS {cfg.NUM_GPUS}" if cfg.NUM_GPUS else f"DIST.NUM_PROCESSES {cfg.DIST.NUM_PROCESSES}"


def _check_parts(cfg: CfgNode, parts: int, clips_per_process: int) -> None:
    possible = possible_parts(cfg, clips_per_process)
    if parts in possible:
        return
    even = " with an even number of clips in each, because MIXUP mixes the clips of a part in pairs" * cfg.MIXUP.ENABLE
    *others, last = map(str, possible)
    expected = f"{', '.join(others)} or {last}" if others else last
    raise ConfigError(
        f"RUN.ACCUMULATION_STEPS is {parts}; expected {expected}: parts of equal size of the "
        f"{_count(clips_per_process, 'clip')} of a process (TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE}){even}"
    )


def _describe_parts(cfg: CfgNode, parts: int | None, clips_per_process: int) -> str:
    """`parts` as given to `batch_plan`."""
    if cfg.RUN.AUTO_BATCH_SIZE and parts is None:
        return ", in as few parts as memory allows (RUN.AUTO_BATCH_SIZE)"
    key = "RUN.ACCUMULATION_STEPS" if parts is None else "RUN.AUTO_BATCH_SIZE"
    number = cfg.RUN.ACCUMULATION_STEPS if parts is None else parts
    if number == 1:
        return "" if parts is None else f", at once ({key})"
    return f", in {number} parts of {_count(clips_per_process // number, 'clip')} ({key})"


def _describe_lr(cfg: CfgNode, base_lr: float, num_machines: int) -> str:
    if not cfg.SOLVER.BASE_LR_SCALE_NUM_SHARDS:
        text = f"learning rate {base_lr:g} = SOLVER.BASE_LR, not scaled (SOLVER.BASE_LR_SCALE_NUM_SHARDS False)"
    else:
        text = (
            f"learning rate {base_lr:g} = SOLVER.BASE_LR {cfg.SOLVER.BASE_LR:g} x {_count(num_machines, 'machine')} "
            "(SOLVER.BASE_LR_SCALE_NUM_SHARDS True; warm-up start and cosine end likewise)"
        )
    if num_machines != cfg.NUM_SHARDS:
        text += f"; NUM_SHARDS {cfg.NUM_SHARDS} is not what runs"
    return text


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
