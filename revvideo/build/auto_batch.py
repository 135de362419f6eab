"""RUN.AUTO_BATCH_SIZE: the fewest parts of a step that fit into memory. The batch stays what TRAIN.BATCH_SIZE says."""

import functools
import logging
import math
import time
from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo.benchmark.memory import peak_bytes
from revvideo.build.memory_budget import usable_bytes
from revvideo.build.solver import step_settings
from revvideo.config.batch import BatchPlan, possible_parts
from revvideo.engine.batch_probe import probe_step
from revvideo.engine.losses import Loss
from revvideo.errors import InputError
from revvideo.planner import plan_training

logger = logging.getLogger(__name__)

MIB = 2**20
SCALAR_BYTES = 2 * 512  # the loss and the count of right clips that each part leaves, as CUDA's allocator rounds them
_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}  # AMP.DTYPE -> the planner's name

GroupAny = Callable[[bool], bool]


def auto_accumulation(
    cfg: CfgNode,
    plan: BatchPlan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    device: torch.device,
    group_any: GroupAny,
) -> int:
    """The fewest parts of a process's clips whose training step fits into RUN.MEMORY_LIMIT_MIB, or into the device.

    The planner says where to look; a step on synthetic clips decides, and leaves everything as it was. Every process of
    the run has to call this at the same place: parts that do not fit on one of them are taken by none.

    Args:
        cfg: the config.
        plan: its batch arithmetic.
        model: on `device`, in the modes in which it trains; before DistributedDataParallel wraps it and before its
            average (EMA) is made.
        optimizer: over its parameters.
        loss: of the config.
        device: of this process.
        group_any: a flag of this process -> whether it is set in any of the run.

    Raises:
        InputError: not even the smallest parts fit.
    """
    began = time.perf_counter()
    search = _Search(cfg, plan, model, optimizer, loss, device, group_any)
    parts = search.fewest_parts()
    clips = plan.clips_per_process // parts
    logger.info(
        "batch: %d part%s of %d clip%s in each process, the fewest that fit (RUN.AUTO_BATCH_SIZE; %.1f s): %s",
        *(parts, "s" * (parts != 1), clips, "s" * (clips != 1), time.perf_counter() - began),
        search.describe(parts),
    )
    return parts


class _Search:
    """What is known of each number of parts. Every decision is agreed, so that all processes try the same ones."""

    def __init__(
        self,
        cfg: CfgNode,
        plan: BatchPlan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        device: torch.device,
        group_any: GroupAny,
    ):
        self.cfg, self.plan, self.model, self.optimizer, self.loss = cfg, plan, model, optimizer, loss
        self.device, self.group_any = device, group_any
        self.candidates = possible_parts(cfg, plan.clips_per_process)
        self.extra = self._extra_bytes()
        self.budget, self.budget_source = self._budget()
        self.lasting = 0
        self.planned: dict[int, int] = {}  # parts -> bytes
        self.measured: dict[int, int | None] = {}  # None: the memory ran out

    def _extra_bytes(self) -> int:
        """What training has beside the probed step: the loader's uint8 clips, the weight average, DDP's buckets."""
        clips = self.plan.clips_per_process * math.prod(self.model.input_spec.shape)
        average = _bytes_of_model(self.model) if self.cfg.EMA.ENABLE else 0
        trained = sum(parameter.nbytes for parameter in self.model.parameters() if parameter.requires_grad)
        # Buckets are the gradients; while DDP orders them anew after the first step, both orders are there.
        return clips + average + (trained if self.plan.world_size > 1 else 0)

    def _budget(self) -> tuple[int, str]:
        limit = int(self.cfg.RUN.MEMORY_LIMIT_MIB * MIB)
        if limit and self.device.type == "cpu":
            return limit, "RUN.MEMORY_LIMIT_MIB"
        own = _bytes_of_model(self.model) + sum(
            value.nbytes
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        usable = usable_bytes(self.device, own, processes=self.plan.processes_per_machine)
        if limit and limit <= usable:
            return limit, "RUN.MEMORY_LIMIT_MIB"
        return (
            usable,
            "what the GPU has" if self.device.type == "cuda" else "what the machine has left, for each process",
        )

    def fewest_parts(self) -> int:
        """Raises InputError where none fit."""
        index = self._first_to_try()
        if not self._fits(index):
            more = range(index + 1, len(self.candidates))
            found = next((other for other in more if self._fits(other)), None)
            if found is None:
                raise InputError(self._refusal(self.measured[self.candidates[-1]]))
            return self.candidates[found]
        while index > 0 and self._may_fit(index - 1) and self._fits(index - 1):
            index -= 1
        return self.candidates[index]

    def _first_to_try(self) -> int:
        """Index of the fewest parts that fit by plan.

        Without a plan, of all clips at once on a GPU, which says that its memory ran out; of the smallest parts on the
        CPU, where the system would kill the process.
        """
        last = len(self.candidates) - 1
        low, high = 0, last + 1
        while low < high:
            middle = (low + high) // 2
            parts = self.candidates[middle]
            reason = self._plan(parts)
            if self.group_any(bool(reason)):
                logger.info(
                    "RUN.AUTO_BATCH_SIZE: no plan of the memory (%s): it is found by trial", reason or "elsewhere"
                )
                return 0 if self.device.type == "cuda" else last
            if self.group_any(self.planned[parts] > self.budget):
                low = middle + 1
            else:
                high = middle
        if low > last and self.device.type == "cpu":  # where plans are exact, and a trial would end the process
            raise InputError(self._refusal(self.planned[self.candidates[last]]))
        return min(low, last)

    def _plan(self, parts: int) -> str:
        """Plan a step in so many parts; returns why it cannot be planned, or ""."""
        if self.cfg.FINETUNE.FREEZE:
            return "FINETUNE.FREEZE: frozen parts are not planned"
        if self.cfg.COMPILE.ENABLE:
            return "COMPILE.ENABLE: compiled branches are not planned"
        precision = _PRECISIONS[self.cfg.AMP.DTYPE] if self.cfg.TRAIN.MIXED_PRECISION else "float32"
        clips = self.plan.clips_per_process // parts
        try:
            plan = plan_training(self.cfg, clips, precision, device=self.device.type)
        except Exception as error:  # a model may do anything that tensors without memory do not allow
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        # All clips at once meet no gradients of a part before; the trial says what that saves.
        self.planned[parts] = plan.total - (plan.gradients if parts == 1 else 0) + self.extra
        return ""

    def _fits(self, index: int) -> bool:
        """Make a step."""
        parts, rev = self.candidates[index], self.cfg.REV
        checks = rev.CHECK_INVERSION_PERIOD > 0 and rev.BACKPROP == "reversible"
        probed = probe_step(
            self.model,
            self.optimizer,
            self.loss,
            step_settings(self.cfg, parts),
            clips_per_part=self.plan.clips_per_process // parts,
            soft_targets=self.cfg.MIXUP.ENABLE,
            device=self.device,
            measure_peak=functools.partial(peak_bytes, device=self.device),
            check_inversion=getattr(self.model, "check_inversion", None) if checks else None,
        )
        self.measured[parts] = total = None if probed is None else probed.total + self.extra + SCALAR_BYTES * parts
        if probed is not None:
            self.lasting = probed.lasting + self.extra
        return not self.group_any(total is None or total > self.budget)

    def _may_fit(self, index: int) -> bool:
        """Whether it is safe to try fewer parts than those that were measured: by the line through the last two."""
        known = sorted((self.plan.clips_per_process // parts, total) for parts, total in self.measured.items())
        (before, low), (clips, high) = known[-2:] if len(known) > 1 else [(0, self.lasting), known[0]]
        wanted = self.plan.clips_per_process // self.candidates[index]
        expected = high + (high - low) / (clips - before) * (wanted - clips)
        return not self.group_any(expected > self.budget)

    def _refusal(self, total: int | None) -> str:
        """`total`: of the smallest parts."""
        clips = self.plan.clips_per_process // self.candidates[-1]
        takes = "takes more than there is" if total is None else f"takes {total / MIB:.1f} MiB"
        if total is not None and total <= self.budget:
            takes += " here and does not fit in another process"
        pairs = "; MIXUP.ENABLE False allows parts of 1 clip" if clips == 2 and self.cfg.MIXUP.ENABLE else ""
        return (
            f"RUN.AUTO_BATCH_SIZE finds no part of a step that fits: the smallest, of {clips} clip{'s' * (clips > 1)}, "
            f"{takes}, and there are {self.budget / MIB:.1f} MiB ({self.budget_source}); allow more "
            "(RUN.MEMORY_LIMIT_MIB), train reversibly (REV.BACKPROP) or with MODEL.ACT_CHECKPOINT or "
            f"TRAIN.MIXED_PRECISION, or take a smaller model{pairs}"
        )

    def describe(self, parts: int) -> str:
        """Why `parts`, in figures."""
        text = f"they take {self.measured[parts] / MIB:.1f} of {self.budget / MIB:.1f} MiB ({self.budget_source})"
        index = self.candidates.index(parts)
        fewer = self.candidates[index - 1] if index else None
        if fewer in self.measured:
            total = self.measured[fewer]
            found = "more than there is" if total is None else f"{total / MIB:.1f} MiB"
        elif fewer in self.planned:
            found = f"{self.planned[fewer] / MIB:.1f} MiB by plan"
        else:
            return text
        return f"{text}, {fewer} part{'s' * (fewer > 1)} would take {found}"


def _bytes_of_model(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
