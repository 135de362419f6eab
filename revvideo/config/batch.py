"""Batch arithmetic: clips per process and step, and the learning rate that follows. No torch: the launcher prints it.

PySlowFast's meaning: TRAIN.BATCH_SIZE counts the videos of one machine. Its processes share them, every further machine
adds as many, and AUG.NUM_SAMPLE clips are cut from each video. SOLVER.BASE_LR_SCALE_NUM_SHARDS multiplies the three
learning rates by the number of machines; we use the machines that take part, not what NUM_SHARDS says.
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
        clips_per_step: clips of a step in all processes.
        base_lr, warmup_start_lr, cosine_end_lr: SOLVER's rates after scaling.
        lr_factor: what they were multiplied by.
        line: all of it in one readable line.
    """

    num_machines: int
    processes_per_machine: int
    videos_per_process: int
    clips_per_process: int
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


def batch_plan(cfg: CfgNode, num_machines: int = 1, processes_per_machine: int = 1) -> BatchPlan:
    """The batch arithmetic of a config on the machines that really take part. `cfg` is not changed.

    Args:
        cfg: a loaded config.
        num_machines: machines of the job.
        processes_per_machine: training processes on each machine.

    Raises:
        ConfigError: TRAIN.BATCH_SIZE cannot be divided among the processes of a machine.
    """
    assert num_machines >= 1, num_machines
    assert processes_per_machine >= 1, processes_per_machine
    batch_size = cfg.TRAIN.BATCH_SIZE
    if batch_size % processes_per_machine:
        raise ConfigError(
            f"TRAIN.BATCH_SIZE is {batch_size}; expected a multiple of the {processes_per_machine} processes of a "
            f"machine (NUM_GPUS {cfg.NUM_GPUS}), which share it"
        )
    solver = cfg.SOLVER
    lr_factor = num_machines if solver.BASE_LR_SCALE_NUM_SHARDS else 1
    samples = cfg.AUG.NUM_SAMPLE if cfg.AUG.ENABLE else 1
    videos_per_process = batch_size // processes_per_machine
    clips_per_process = videos_per_process * samples
    clips_per_step = batch_size * samples * num_machines
    base_lr = solver.BASE_LR * lr_factor
    return BatchPlan(
        num_machines=num_machines,
        processes_per_machine=processes_per_machine,
        videos_per_process=videos_per_process,
        clips_per_process=clips_per_process,
        clips_per_step=clips_per_step,
        base_lr=base_lr,
        warmup_start_lr=solver.WARMUP_START_LR * lr_factor,
        cosine_end_lr=solver.COSINE_END_LR * lr_factor,
        lr_factor=lr_factor,
        line=(
            f"batch: {clips_per_step} clips a step = {batch_size} videos a machine (TRAIN.BATCH_SIZE) x "
            f"{_count(samples, 'clip')} (AUG.NUM_SAMPLE) x {_count(num_machines, 'machine')}; "
            f"{clips_per_process} in each of {_count(num_machines * processes_per_machine, 'process')}; "
            f"{_describe_lr(cfg, base_lr, num_machines)}"
        ),
    )


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
