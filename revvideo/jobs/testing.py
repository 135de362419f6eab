"""The job of evaluating: which weights, which videos, what is written."""

import logging
import time

import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo import build
from revvideo.build.checkpoint_config import warn_of_another_config
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.engine.evaluator import EditViews, evaluate, protocol, write_results
from revvideo.engine.metrics import VideoScores
from revvideo.errors import InputError, Stopped
from revvideo.jobs.running import Run
from revvideo.models.checkpoint_formats import Weights, load_weights, read_weights
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)


def check_test(cfg: CfgNode) -> None:
    """Find what is wrong with the evaluation before the training that comes first.

    Raises:
        InputError: the list, the views or the checkpoint that TEST names cannot be used.
    """
    manifest = build.build_manifest(cfg, "test")
    for num_views in build.temporal_views(cfg):
        build.build_test_loader(cfg, num_views, manifest=manifest)
    path = cfg.TEST.CHECKPOINT_FILE_PATH
    if path and not path_manager.isfile(path):
        raise InputError(f"TEST.CHECKPOINT_FILE_PATH is {path!r}, but there is no such file")


def test(run: Run) -> dict:
    """Evaluate with several views a video; writes results.json and predictions.npz, returns the results.

    With TEST.NUM_TEMPORAL_CLIPS [a, b] each number of views is evaluated and written under a name of its own, the last
    one also under the plain names. With EMA.ENABLE the averaged weights of the checkpoint are evaluated, too, and
    written as results_ema.json and predictions_ema.npz (results_ema_5views.json, ...).

    Raises:
        InputError: there is nothing to evaluate.
        Stopped: a signal asked for it; `on_stop` is called.
    """
    try:
        return _test(run)
    except Stopped as stopped:
        run.events.write("stop", reason=stopped.reason)
        run.group.barrier("stop")
        if run.on_stop is not None:
            run.on_stop()
        raise


def _test(run: Run) -> dict:
    model, checkpoint, average = load_tested_model(run)
    results = _test_weights(run, model, checkpoint, "raw")
    if run.cfg.EMA.ENABLE and average is None:
        logger.warning("%s holds no average of the weights (EMA.ENABLE): only the weights are evaluated", checkpoint)
    elif run.cfg.EMA.ENABLE:
        source = f"{checkpoint}, averaged weights"
        load_weights(model, Weights(average, "revvideo", source, average), allow={"interpolate"})
        _test_weights(run, model, checkpoint, "ema")
    return results


def _test_weights(run: Run, model: nn.Module, checkpoint: str, weights: str) -> dict:
    cfg, views = run.cfg, build.temporal_views(run.cfg)
    manifest = build.build_manifest(cfg, "test", folder=run.folder if run.process.is_main else None)
    suffix = "" if weights == "raw" else f"_{weights}"
    for num_views in views:
        began = time.perf_counter()
        loader = build.build_test_loader(cfg, num_views, manifest=manifest, process=run.process)
        scores = evaluate_run(run, model, loader, num_views, f"test{suffix}, {num_views} views")
        results = scores.summary(len(loader.dataset)) | {
            "num_views": num_views,
            "num_crops": cfg.TEST.NUM_SPATIAL_CROPS,
            "checkpoint": checkpoint,
            "protocol": _protocol(cfg, num_views),
            "wall_seconds": round(time.perf_counter() - began, 3),
        }
        if run.process.is_main:
            names = [f"{suffix}_{num_views}views"] if len(views) > 1 else []
            write_results(run.folder, scores, results, names=names + [suffix] * (num_views == views[-1]))
        run.events.write("test", weights=weights, **results)
        _report(results, weights)
    return results


def load_tested_model(run: Run) -> tuple[nn.Module, str, dict[str, torch.Tensor] | None]:
    """The model to evaluate, on its device, the checkpoint that its weights are from, and their average in it, if any.

    That is TEST.CHECKPOINT_FILE_PATH, else the last checkpoint of the run folder, else TRAIN.CHECKPOINT_FILE_PATH.

    Raises:
        InputError: there is none; random weights are never evaluated.
    """
    cfg, folder, last = run.cfg, run.folder / "checkpoints", None
    if run.process.is_main and not cfg.TEST.CHECKPOINT_FILE_PATH:
        last = latest_checkpoint(folder)
    last = run.group.broadcast(last, "checkpoint to evaluate")
    path = str(cfg.TEST.CHECKPOINT_FILE_PATH or last or cfg.TRAIN.CHECKPOINT_FILE_PATH)
    if not path:
        raise InputError(
            f"nothing to evaluate: no whole checkpoint in {folder}; train first (TRAIN.ENABLE True) or name one "
            "(TEST.CHECKPOINT_FILE_PATH)"
        )
    build.check_pooling(cfg, run.device)
    model = build.build_model(cfg)
    weights = read_weights(path)
    warn_of_another_config(cfg, weights.extra.get("cfg"), path)
    load_weights(model, weights, allow={"interpolate"})
    logger.info("evaluating %s", path)
    return model.to(run.device), path, weights.extra.get("ema_state")


def evaluate_edited(run: Run, model: nn.Module, edit_views: EditViews, description: str) -> VideoScores:
    """The scores of the test videos when each video's views are changed by `edit_views` first (see `evaluate`)."""
    num_views = build.temporal_views(run.cfg)[-1]
    loader = build.build_test_loader(run.cfg, num_views, process=run.process)
    return evaluate_run(run, model, loader, num_views, description, edit_views=edit_views)


def evaluate_run(
    run: Run,
    model: nn.Module,
    loader,
    num_views: int,
    description: str,
    *,
    num_crops: int | None = None,
    edit_views: EditViews | None = None,
) -> VideoScores:
    """`evaluate` with what a run has; in all of its processes together.

    Raises:
        Stopped: a signal asked for it.
    """
    cfg = run.cfg
    with loader.failures_named():
        return evaluate(
            model,
            loader,
            paths=loader.dataset.manifest.paths,
            num_views=num_views * (num_crops or cfg.TEST.NUM_SPATIAL_CROPS),
            method=cfg.DATA.ENSEMBLE_METHOD,
            activation=cfg.MODEL.HEAD_ACT,
            prepare=build.build_eval_input(cfg, run.device),
            device=run.device,
            clips_per_batch=max(1, cfg.TEST.BATCH_SIZE // run.process.local_world_size),
            amp_dtype=build.eval_amp_dtype(cfg),
            edit_views=edit_views,
            description=description,
            log_period=cfg.LOG_PERIOD,
            group=run.group,
            stop_reason=run.stop_reason,
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


def _report(results: dict, weights: str) -> None:
    if results["top1_acc"] is not None:
        logger.info(
            "%stop-1 %.2f %%, top-5 %.2f %% of %d videos (%s)",
            "averaged weights: " if weights == "ema" else "",
            *(results["top1_acc"], results["top5_acc"], results["num_videos"], results["protocol"]),
        )
    if results["failed"]:
        logger.warning(
            "%d of %d videos could not be read and count as wrong in top1_acc_all; results.json lists them",
            *(len(results["failed"]), results["num_expected"]),
        )
