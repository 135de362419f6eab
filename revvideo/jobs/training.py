"""The job of training: from a config to a trainer, from where it starts, with what it validates."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from revvideo import build
from revvideo.build.auto_batch import auto_accumulation
from revvideo.build.checkpoint_config import warn_of_another_config
from revvideo.config import dump_config
from revvideo.engine.bad_videos import BadVideos
from revvideo.engine.checkpoint import list_checkpoints
from revvideo.engine.checkpoint_folder import CheckpointFolder
from revvideo.engine.data_wait import DataWait
from revvideo.engine.ema import ModelEma
from revvideo.engine.freezing import freeze
from revvideo.engine.inversion import CheckInversion
from revvideo.engine.saving import Saver
from revvideo.engine.train_step import TrainStep
from revvideo.engine.trainer import Trainer
from revvideo.engine.training_state import TrainingState
from revvideo.errors import InputError
from revvideo.jobs.run_folder import code_version
from revvideo.jobs.running import Run
from revvideo.jobs.testing import check_test, evaluate_run
from revvideo.models.checkpoint_formats import LoadReport, Weights, fit_weights, load_weights, read_weights
from revvideo.torch_file import local_file

logger = logging.getLogger(__name__)

MIN_VIDEOS_JUDGED = 100  # by LOADER.MAX_BAD_FRACTION: a few bad ones at the start say little


def train(run: Run) -> None:
    """Train to the end of the schedule; with TRAIN.AUTO_RESUME, on from the last checkpoint of the run folder."""
    cfg = run.cfg
    check_start(run)
    notes_folder = run.folder if run.process.is_main else None
    loader = build.build_train_loader(cfg, run.batch_plan(), process=run.process, folder=notes_folder)
    validation = None
    if cfg.TRAIN.EVAL_PERIOD <= cfg.SOLVER.MAX_EPOCH:
        validation = build.build_val_loader(cfg, process=run.process, folder=notes_folder)
    if cfg.TEST.ENABLE:
        check_test(cfg)
    trainer = build_trainer(run, class_names=loader.dataset.manifest.class_names)
    _start_from(run, trainer)
    if trainer.position.epoch >= cfg.SOLVER.MAX_EPOCH:
        logger.info("training is complete: %d of %d epochs", trainer.position.epoch, cfg.SOLVER.MAX_EPOCH)
        return

    def validate(model: nn.Module) -> dict:
        scores = evaluate_run(run, model, validation, 1, "validate", num_crops=1)
        return scores.summary(len(validation.dataset))

    with loader.failures_named():
        trainer.fit(loader, validate=None if validation is None else validate)


def build_trainer(run: Run, *, class_names: tuple[str, ...] = ()) -> Trainer:
    """Model, optimizer and settings of a config, seeded by RNG_SEED; the model is on its device.

    Args:
        run: the run; `Run(cfg, events)` is one process without others.
        class_names: kept in the checkpoints, where they are known.
    """
    cfg, process, device, plan = run.cfg, run.process, run.device, run.batch_plan()
    torch.manual_seed(cfg.RNG_SEED)
    build.check_pooling(cfg, device)
    model = build.build_model(cfg).to(device).train()
    frozen = freeze(model, cfg.FINETUNE.FREEZE) if cfg.FINETUNE.FREEZE else None
    if frozen is not None:
        frozen.keep_in_eval()
        logger.info("%s", frozen)
    if cfg.COMPILE.ENABLE:
        build.compile_model(model)
    if cfg.LOG_MODEL_INFO:
        kind = f"reversible, {cfg.REV.BACKPROP} backprop" if cfg.MVIT.REV.ENABLE else "plain"
        count = sum(p.numel() for p in model.parameters())
        logger.info("model: %s (%s), %.2f M parameters, on %s", type(model).__name__, kind, count / 1e6, device)
    if not process.is_main:  # equal weights, other drop paths
        torch.manual_seed(int(np.random.SeedSequence([cfg.RNG_SEED, process.rank]).generate_state(1)[0]))
    optimizer, loss = build.build_optimizer(cfg, model, plan), build.build_loss(cfg)
    if cfg.RUN.AUTO_BATCH_SIZE:
        num_parts = auto_accumulation(
            cfg, plan, model, optimizer, loss, device, lambda fails: run.group.any(fails, "largest batch")
        )
        plan = run.batch_plan(num_parts)
    logger.info("%s", plan.line)
    step = TrainStep(
        model,
        optimizer,
        loss,
        build.step_settings(cfg, plan.parts),
        device=device,
        replica=run.group.replicate(model, deterministic=cfg.RUN.DETERMINISTIC),
        events=run.events,
        check_inversion=_check_inversion(run, model),
    )
    state = TrainingState(
        step,
        group=run.group,
        bad_videos=BadVideos(run.events, max_fraction=cfg.LOADER.MAX_BAD_FRACTION, min_judged=MIN_VIDEOS_JUDGED),
        ema=ModelEma(model, cfg.EMA.DECAY) if cfg.EMA.ENABLE else None,
        seed=cfg.RNG_SEED,
        config_text=dump_config(cfg),
        notes={"code_version": code_version()} | ({"class_names": list(class_names)} if class_names else {}),
    )
    checkpoints = CheckpointFolder(run.folder / "checkpoints", keep=cfg.RUN.KEEP_CHECKPOINTS, events=run.events)
    return Trainer(
        state,
        Saver(state, checkpoints, run.events, minutes=cfg.RUN.CHECKPOINT_MINUTES),
        build.train_settings(cfg, plan),
        prepare=build.build_train_input(cfg, device, num_parts=plan.parts, rank=process.rank),
        events=run.events,
        frozen=frozen,
        data_wait=DataWait(logger, num_workers=cfg.DATA_LOADER.NUM_WORKERS, num_processes=process.local_world_size),
        stop_reason=run.stop_reason,
        on_stop=run.on_stop,
    )


def _check_inversion(run: Run, model: nn.Module) -> CheckInversion | None:
    return getattr(model, "check_inversion", None) if run.cfg.REV.BACKPROP == "reversible" else None


def _start_from(run: Run, trainer: Trainer) -> None:
    last = None
    if run.cfg.TRAIN.AUTO_RESUME and run.process.is_main:
        last = _latest_checkpoint(trainer.saver.checkpoints)
    last = run.group.broadcast(last, "checkpoint to resume from")
    path = run.cfg.TRAIN.CHECKPOINT_FILE_PATH
    if last is not None:
        trainer.saver.resume(last)
    elif path:
        start_from_weights(run.cfg, trainer, path)
        logger.info("weights from %s; training begins at epoch %d", path, trainer.position.epoch + 1)


def check_start(run: Run) -> None:
    """Find what is wrong with where training starts from, before anything is built.

    Raises:
        InputError: there is no such checkpoint, or parts are frozen that no checkpoint gives weights to.
    """
    train, freeze_names = run.cfg.TRAIN, run.cfg.FINETUNE.FREEZE
    if train.AUTO_RESUME and list_checkpoints(run.folder / "checkpoints"):
        return
    if train.CHECKPOINT_FILE_PATH:
        local_file(train.CHECKPOINT_FILE_PATH)
    elif freeze_names:
        raise InputError(
            f"FINETUNE.FREEZE is {freeze_names}, but there are no weights to keep: set TRAIN.CHECKPOINT_FILE_PATH "
            "(with TRAIN.CHECKPOINT_EPOCH_RESET True for weights of other classes)"
        )


def _latest_checkpoint(checkpoints: CheckpointFolder) -> Path | None:
    """The checkpoint to go on from; None where there is none yet.

    Raises:
        InputError: there are some, but all are damaged: beginning anew would soon delete them.
    """
    last = checkpoints.latest()
    if last is None and (damaged := list_checkpoints(checkpoints.folder)):
        raise InputError(
            f"{checkpoints.folder} holds {len(damaged)} checkpoints, the newest {damaged[0].name}, but not one that is "
            "whole; to begin anew, move them away or choose another OUTPUT_DIR"
        )
    return last


def start_from_weights(cfg, trainer: Trainer, path: str) -> None:
    """Load TRAIN.CHECKPOINT_FILE_PATH as the config permits; go on with its optimizer and epoch unless it says not to.

    TRAIN.CHECKPOINT_INFLATE and CHECKPOINT_IN_INIT take an image checkpoint, CHECKPOINT_EPOCH_RESET only the weights,
    so that the classifier may be another one.

    Raises:
        InputError: the weights do not fit, or would have to be converted although their optimizer goes with them; the
            model is as it was.
    """
    train = cfg.TRAIN
    if train.CHECKPOINT_INFLATE and train.CHECKPOINT_IN_INIT:
        raise InputError(
            "TRAIN.CHECKPOINT_INFLATE and TRAIN.CHECKPOINT_IN_INIT are both True; keep one: INFLATE divides the "
            "repeated kernels by their number, IN_INIT does not"
        )
    inflate = train.CHECKPOINT_INFLATE or train.CHECKPOINT_IN_INIT
    allow = {"inflate", "interpolate"} if inflate else set()
    if train.CHECKPOINT_EPOCH_RESET:
        allow |= {"head", "interpolate"}
    weights = read_weights(path, clear_patterns=train.CHECKPOINT_CLEAR_NAME_PATTERN)
    warn_of_another_config(cfg, weights.extra.get("cfg"), path)
    if train.CHECKPOINT_EPOCH_RESET or inflate:
        load_weights(trainer.model, weights, allow=allow, inflation="repeat" if train.CHECKPOINT_IN_INIT else "mean")
        trainer.state.restart_average()
        return
    report, state = fit_weights(trainer.model, weights)
    if "optimizer_state" in weights.extra:
        _check_unchanged(weights, report, state)
    logger.info("%s", report)
    trainer.state.load({**weights.extra, "model_state": state}, source=path)


def _check_unchanged(weights: Weights, report: LoadReport, state: dict[str, torch.Tensor]) -> None:
    """Refuse an optimizer whose moments are of other tensors than the model's, `state`."""
    file = weights.file_tensors
    names = [name for name in state if name not in file or file[name].shape != state[name].shape]
    names += [entry for entry in report.converted if "fixed positions" in entry]  # these have no moments
    if names or len(file) != len(state):
        listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise InputError(
            f"{weights.source}: its optimizer state is of other tensors than the model has, because the weights are "
            f"converted while loading ({listed}); take the weights alone (TRAIN.CHECKPOINT_EPOCH_RESET True)"
        )
