"""What `run_net` runs: train a config, evaluate a config, in a run folder (OUTPUT_DIR)."""

import json
import logging
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

import revvideo
from revvideo import build
from revvideo.build.checkpoint_config import warn_of_another_config
from revvideo.config import config_notes, dump_config
from revvideo.config.batch import batch_plan
from revvideo.distributed.env import current_process
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.engine.evaluator import EditViews, evaluate, protocol, write_results
from revvideo.engine.events import EventLog
from revvideo.engine.inversion import CheckInversion
from revvideo.engine.metrics import VideoScores
from revvideo.engine.trainer import Trainer
from revvideo.errors import InputError
from revvideo.models.checkpoint_formats import LoadReport, Weights, fit_weights, load_weights, read_weights
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)


def run(cfg: CfgNode) -> None:
    """Train (TRAIN.ENABLE), then evaluate (TEST.ENABLE).

    Raises:
        InputError: something that the user can mend, before anything is computed where that is possible.
        CheckFailed: see `Trainer.fit`.
    """
    with open_run(cfg) as events:
        if cfg.TRAIN.ENABLE:
            train(cfg, events)
        if cfg.TEST.ENABLE:
            test(cfg, events)


def open_run(cfg: CfgNode) -> EventLog:
    """Check that this process can run `cfg`; open its run folder and write down what runs."""
    process = current_process()
    if process.world_size > 1:
        raise InputError(
            f"WORLD_SIZE is {process.world_size}, but this version runs in one process; start it without a launcher"
        )
    build.choose_device(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if cfg.TRAIN.ENABLE or not (folder / "config.yaml").exists():  # evaluating does not change what was trained
            (folder / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(_environment(), indent=2) + "\n", encoding="utf-8")
        events = EventLog(folder / "events.jsonl")
    except OSError as error:
        raise InputError(f"the run folder {folder} cannot be written ({error}); choose another OUTPUT_DIR") from error
    events.write("start", command=sys.argv, notes=list(config_notes(cfg)))
    return events


def _environment() -> dict:
    """Versions and machine, for whoever wants to repeat the run."""
    import av
    import numpy as np

    root = Path(revvideo.__file__).parents[1]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if (root / ".git").exists() else ""
    return {
        "revvideo": revvideo.__version__,
        "commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": av.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
    }


def train(cfg: CfgNode, events: EventLog) -> None:
    """Train to the end of the schedule; with TRAIN.AUTO_RESUME, on from the last checkpoint of the run folder."""
    folder = Path(cfg.OUTPUT_DIR)
    loader = build.build_train_loader(cfg, batch_plan(cfg), folder=folder)
    validates = cfg.TRAIN.EVAL_PERIOD <= cfg.SOLVER.MAX_EPOCH
    validation = build.build_val_loader(cfg, folder=folder) if validates else None
    if cfg.TEST.ENABLE:
        check_test(cfg)
    trainer = build_trainer(cfg, events)
    _start_from(cfg, trainer)
    if trainer.next_epoch >= cfg.SOLVER.MAX_EPOCH:
        logger.info("training is complete (%d epochs)", cfg.SOLVER.MAX_EPOCH)
        return

    def validate() -> dict:
        scores = _evaluate(cfg, trainer.model, validation, 1, "validate", num_crops=1)
        return scores.summary(len(validation.dataset))

    with loader.failures_named():
        trainer.fit(loader, validate=None if validation is None else validate)


def build_trainer(cfg: CfgNode, events: EventLog) -> Trainer:
    """Model, optimizer and settings of a config, seeded by RNG_SEED; the model is on its device."""
    plan = batch_plan(cfg)
    logger.info("%s", plan.line)
    torch.manual_seed(cfg.RNG_SEED)
    torch.use_deterministic_algorithms(cfg.RUN.DETERMINISTIC)
    device = build.choose_device(cfg)
    build.check_pooling(cfg, device)
    model = build.build_model(cfg).to(device)
    if cfg.COMPILE.ENABLE:
        build.compile_model(model)
    if cfg.LOG_MODEL_INFO:
        kind = f"reversible, {cfg.REV.BACKPROP} backprop" if cfg.MVIT.REV.ENABLE else "plain"
        count = sum(p.numel() for p in model.parameters())
        logger.info("model: %s (%s), %.2f M parameters, on %s", type(model).__name__, kind, count / 1e6, device)
    return Trainer(
        model,
        build.build_optimizer(cfg, model, plan),
        build.build_loss(cfg),
        build.train_settings(cfg, plan),
        prepare=build.build_train_input(cfg, device),
        device=device,
        folder=Path(cfg.OUTPUT_DIR),
        config_text=dump_config(cfg),
        events=events,
        check_inversion=_check_inversion(cfg, model),
    )


def _check_inversion(cfg: CfgNode, model: torch.nn.Module) -> CheckInversion | None:
    return getattr(model, "check_inversion", None) if cfg.REV.BACKPROP == "reversible" else None


def _start_from(cfg: CfgNode, trainer: Trainer) -> None:
    last = latest_checkpoint(Path(cfg.OUTPUT_DIR) / "checkpoints") if cfg.TRAIN.AUTO_RESUME else None
    path = cfg.TRAIN.CHECKPOINT_FILE_PATH
    if last is not None:
        trainer.resume(last)
    elif path:
        start_from_weights(cfg, trainer, path)
        logger.info("weights from %s; training begins at epoch %d", path, trainer.next_epoch + 1)


def start_from_weights(cfg: CfgNode, trainer: Trainer, path: str) -> None:
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
        return
    report, state = fit_weights(trainer.model, weights)
    if "optimizer_state" in weights.extra:
        _check_unchanged(weights, report, state)
    logger.info("%s", report)
    trainer.load({**weights.extra, "model_state": state}, source=path)


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


def check_test(cfg: CfgNode) -> None:
    """Find what is wrong with the evaluation before the training that comes first.

    Raises:
        InputError: the list, the views or the checkpoint that TEST names cannot be used.
    """
    manifest = build.build_manifest(cfg, "test", folder=Path(cfg.OUTPUT_DIR))
    for num_views in build.temporal_views(cfg):
        build.build_test_loader(cfg, num_views, manifest=manifest)
    path = cfg.TEST.CHECKPOINT_FILE_PATH
    if path and not path_manager.isfile(path):
        raise InputError(f"TEST.CHECKPOINT_FILE_PATH is {path!r}, but there is no such file")


def test(cfg: CfgNode, events: EventLog) -> dict:
    """Evaluate with several views a video; writes results.json and predictions.npz, returns the results.

    With TEST.NUM_TEMPORAL_CLIPS [a, b] each number of views is evaluated and written under a name of its own, the last
    one also under the plain names.
    """
    model, checkpoint = load_tested_model(cfg)
    views = build.temporal_views(cfg)
    manifest = build.build_manifest(cfg, "test", folder=Path(cfg.OUTPUT_DIR))
    for num_views in views:
        began = time.perf_counter()
        loader = build.build_test_loader(cfg, num_views, manifest=manifest)
        scores = _evaluate(cfg, model, loader, num_views, f"test, {num_views} views")
        results = scores.summary(len(loader.dataset)) | {
            "num_views": num_views,
            "num_crops": cfg.TEST.NUM_SPATIAL_CROPS,
            "checkpoint": checkpoint,
            "protocol": _protocol(cfg, num_views),
            "wall_seconds": round(time.perf_counter() - began, 3),
        }
        names = [f"_{num_views}views"] if len(views) > 1 else []
        write_results(Path(cfg.OUTPUT_DIR), scores, results, names=names + [""] * (num_views == views[-1]))
        events.write("test", **results)
        _report(results)
    return results


def load_tested_model(cfg: CfgNode) -> tuple[torch.nn.Module, str]:
    """The model to evaluate, on its device, and the checkpoint that its weights are from.

    That is TEST.CHECKPOINT_FILE_PATH, else the last checkpoint of the run folder, else TRAIN.CHECKPOINT_FILE_PATH.

    Raises:
        InputError: there is none; random weights are never evaluated.
    """
    last = latest_checkpoint(Path(cfg.OUTPUT_DIR) / "checkpoints") if not cfg.TEST.CHECKPOINT_FILE_PATH else None
    path = str(cfg.TEST.CHECKPOINT_FILE_PATH or last or cfg.TRAIN.CHECKPOINT_FILE_PATH)
    if not path:
        raise InputError(
            f"nothing to evaluate: no checkpoint in {Path(cfg.OUTPUT_DIR) / 'checkpoints'}; train first (TRAIN.ENABLE "
            "True) or name one (TEST.CHECKPOINT_FILE_PATH)"
        )
    device = build.choose_device(cfg)
    build.check_pooling(cfg, device)
    model = build.build_model(cfg)
    weights = read_weights(path)
    warn_of_another_config(cfg, weights.extra.get("cfg"), path)
    load_weights(model, weights, allow={"interpolate"})
    logger.info("evaluating %s", path)
    return model.to(device), path


def evaluate_edited(cfg: CfgNode, model: torch.nn.Module, edit_views: EditViews, description: str) -> VideoScores:
    """The scores of the test videos when each video's views are changed by `edit_views` first (see `evaluate`)."""
    num_views = build.temporal_views(cfg)[-1]
    loader = build.build_test_loader(cfg, num_views)
    return _evaluate(cfg, model, loader, num_views, description, edit_views=edit_views)


def _evaluate(
    cfg: CfgNode,
    model: torch.nn.Module,
    loader,
    num_views: int,
    description: str,
    *,
    num_crops: int | None = None,
    edit_views: EditViews | None = None,
) -> VideoScores:
    device = build.choose_device(cfg)
    with loader.failures_named():
        return evaluate(
            model,
            loader,
            paths=loader.dataset.manifest.paths,
            num_views=num_views * (num_crops or cfg.TEST.NUM_SPATIAL_CROPS),
            method=cfg.DATA.ENSEMBLE_METHOD,
            activation=cfg.MODEL.HEAD_ACT,
            prepare=build.build_eval_input(cfg, device),
            device=device,
            clips_per_batch=cfg.TEST.BATCH_SIZE,
            amp_dtype=build.eval_amp_dtype(cfg),
            edit_views=edit_views,
            description=description,
            log_period=cfg.LOG_PERIOD,
        )


def _protocol(cfg: CfgNode, num_views: int) -> str:
    data = cfg.DATA
    line = protocol(
        num_views,
        cfg.TEST.NUM_SPATIAL_CROPS,
        data.NUM_FRAMES,
        data.SAMPLING_RATE,
        data.TEST_CROP_SIZE,
        data.ENSEMBLE_METHOD,
    )
    return line + "".join(f"; {words}" for words in build.sampling_notes(cfg))


def _report(results: dict) -> None:
    if results["top1_acc"] is not None:
        logger.info(
            "top-1 %.2f %%, top-5 %.2f %% of %d videos (%s)",
            *(results["top1_acc"], results["top5_acc"], results["num_videos"], results["protocol"]),
        )
    if results["failed"]:
        logger.warning(
            "%d of %d videos could not be read and count as wrong in top1_acc_all; results.json lists them",
            *(len(results["failed"]), results["num_expected"]),
        )
