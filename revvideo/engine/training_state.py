"""How far training is, and everything that its next step depends on: what a checkpoint holds, and how it comes back."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from revvideo.distributed.group import Group
from revvideo.engine.bad_videos import BadVideos
from revvideo.engine.checkpoint import checkpoint_state, load_model_state
from revvideo.engine.ema import ModelEma
from revvideo.engine.optimizer import load_optimizer_state
from revvideo.engine.random_state import random_state, set_random_state
from revvideo.engine.train_step import TrainStep
from revvideo.errors import InputError

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Position:
    """How far training is.

    Attributes:
        epoch: the epoch in progress, from 0.
        samples: videos of it that were trained on, in all processes.
        steps: steps of it that were made.
        step: steps since the start of training.
    """

    epoch: int = 0
    samples: int = 0
    steps: int = 0
    step: int = 0

    def advance(self, samples: int) -> None:
        """After a step on so many videos in all processes."""
        self.samples += samples
        self.steps += 1
        self.step += 1


class TrainingState:
    """Model, optimizer, loss scaler and average, with the position, the counts, and the random state of every process.

    Args:
        step: model, optimizer and loss scaler.
        group: the processes of the run.
        bad_videos: its counts.
        ema: average of the weights, or None.
        seed: RNG_SEED, for what a checkpoint of another number of processes does not hold.
        config_text: the resolved config.
        notes: further plain values, such as class names and the version of the code.

    Attributes:
        position: how far training is.
        best_top1: highest validation accuracy so far in percent, -1 before the first.
        rollbacks: how often training went back because of a loss that was not finite.
        skipped_steps: steps that loss scaling left out.
        left_out: [epoch, samples before it] of the batches that a rollback left out.
        loader: state of the loader whose samples `position` counts; {} where nothing was trained on yet.
    """

    def __init__(
        self,
        step: TrainStep,
        *,
        group: Group,
        bad_videos: BadVideos,
        ema: ModelEma | None = None,
        seed: int = 0,
        config_text: str = "",
        notes: dict | None = None,
    ):
        self.step, self.group, self.bad_videos, self.ema = step, group, bad_videos, ema
        self.seed, self.config_text, self.notes = seed, config_text, dict(notes or {})
        self.position, self.best_top1 = Position(), -1.0
        self.rollbacks = self.skipped_steps = 0
        self.left_out: list[list[int]] = []
        self.loader: dict = {}

    def content(self, *, is_best: bool = False) -> dict | None:
        """What to write, in the first process; None in the others, which have to call it too.

        Args:
            is_best: kept with it: whether the validation right before was the best so far.
        """
        position, scaler = self.position, self.step.scaler
        states = self.group.gather(random_state(), f"random states of step {position.step}")
        if not self.group.is_main:
            return None
        return checkpoint_state(
            epoch=position.epoch - 1,
            model=self.step.model,
            optimizer=self.step.optimizer,
            cfg=self.config_text,
            scaler=scaler if scaler.is_enabled() else None,
            position=dataclasses.asdict(position),
            loader=self.loader | {"epoch": position.epoch, "samples": position.samples},
            random_states=states,
            best_top1=self.best_top1,
            is_best=is_best,
            counters={
                "rollbacks": self.rollbacks,
                "skipped_steps": self.skipped_steps,
                "left_out": self.left_out,
                "bad_videos": self.bad_videos.state_dict(),
            },
            **({"ema_state": self.ema.state_dict()} if self.ema is not None else {}),
            **self.notes,
        )

    def restore(self, content: dict, *, source: Path) -> None:
        """Be as when `content` was made by this run; in all processes.

        Raises:
            InputError: it is of another model or optimizer.
        """
        self.load(content, source=str(source))
        self.best_top1 = content.get("best_top1", -1.0)
        counters = content.get("counters", {})
        self.rollbacks = counters.get("rollbacks", 0)
        self.skipped_steps = counters.get("skipped_steps", 0)
        self.left_out = [list(each) for each in counters.get("left_out", [])]
        if "bad_videos" in counters:
            self.bad_videos.load_state_dict(counters["bad_videos"])
        self._set_random_state(content.get("random_states"), source)

    def load(self, content: dict, *, source: str) -> None:
        """Take weights, average, optimizer, scaler and position of a checkpoint, also of PySlowFast or another run.

        Raises:
            InputError: it is of another model or optimizer, or no checkpoint of a training.
        """
        if "model_state" not in content:
            found = ", ".join(map(str, list(content)[:4])) or "nothing"
            raise InputError(f"{source}: holds no model_state, but {found}")
        load_model_state(self.step.model, content["model_state"], source=source)
        self.restart_average()
        if self.ema is not None and "ema_state" in content:
            load_model_state(self.ema.module, content["ema_state"], source=f"{source}, averaged weights")
        elif self.ema is not None:
            logger.warning("%s holds no average of the weights (EMA.ENABLE): it starts from these", source)
        if "optimizer_state" not in content:
            logger.warning("%s holds no optimizer state: only its weights are taken", source)
            return
        load_optimizer_state(self.step.optimizer, content["optimizer_state"], source=source)
        if self.step.scaler.is_enabled() and content.get("scaler_state"):  # {} of a scaler that was off (PySlowFast)
            self.step.scaler.load_state_dict(content["scaler_state"])
        self.loader = dict(content.get("loader", {}))
        position = content.get("position", {"epoch": content.get("epoch", -1) + 1})
        self.position = Position(**position)

    def restart_average(self) -> None:
        """Begin the average of the weights (EMA) anew, with the weights as they are."""
        if self.ema is not None:
            load_model_state(self.ema.module, self.step.model.state_dict(), source="the model")

    def _set_random_state(self, states: Sequence[dict] | None, source: Path) -> None:
        rank, world_size = self.group.rank, self.group.world_size
        if states is not None and len(states) == world_size:
            set_random_state(states[rank])
            return
        key = np.random.SeedSequence([self.seed, self.position.step, rank])
        torch.manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        saved = "no process" if states is None else f"{len(states)} process{'es' if len(states) > 1 else ''}"
        logger.warning(
            "%s holds the random state of %s, and this run has %d: it goes on at the same sample, but is not bit-equal",
            *(source, saved, world_size),
        )
