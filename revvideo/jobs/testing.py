"""The job of evaluating: which weights, which videos, what is written."""

import contextlib
import logging
import os
import time
from collections.abc import Collection

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from revvideo import build
from revvideo.build.checkpoint_config import warn_of_another_config
from revvideo.data.loader import ClipLoader
from revvideo.data.manifest import Manifest
from revvideo.engine.accuracy import detailed, headline
from revvideo.engine.checkpoint import latest_checkpoint
from revvideo.engine.evaluation_parts import EvaluationParts
from revvideo.engine.evaluator import EditViews, evaluate
from revvideo.engine.metrics import VideoScores
from revvideo.engine.results import protocol, save_pyslowfast, write_results
from revvideo.engine.video_batches import VideoBatches
from revvideo.errors import CheckFailed, InputError, Stopped
from revvideo.jobs.evaluation_identity import evaluation_identity
from revvideo.jobs.running import Run
from revvideo.models.checkpoint_formats import Weights, load_weights, read_weights
from revvideo.paths import path_manager

logger = logging.getLogger(__name__)

PARTS_FOLDER = "evaluation"


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
    if cfg.TEST.SAVE_RESULTS_PATH and path_manager.isdir(_results_path(cfg)):
        raise InputError(f"TEST.SAVE_RESULTS_PATH is {cfg.TEST.SAVE_RESULTS_PATH!r}, a folder; expected a file name")


def _results_path(cfg: CfgNode) -> str:
    return os.path.join(cfg.OUTPUT_DIR, cfg.TEST.SAVE_RESULTS_PATH)


def test(run: Run) -> dict:
    """Evaluate with several views a video; writes results.json, metrics.json and predictions.npz, returns the results.

    The scores of finished videos are kept in the run folder meanwhile (`evaluation/`), so that the same command goes on
    after a kill. With TEST.NUM_TEMPORAL_CLIPS [a, b] each number of views is evaluated and written under a name of its
    own, the last one also under the plain names. With EMA.ENABLE the averaged weights of the checkpoint are evaluated,
    too, and written as results_ema.json and so on (results_ema_5views.json, ...).

    Raises:
        InputError: there is nothing to evaluate.
        CheckFailed: a video could not be read and EVAL.STRICT is on; the results are written.
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
    results, parts = _test_weights(run, model, checkpoint, "raw")
    if run.cfg.EMA.ENABLE and average is None:
        logger.warning("%s holds no average of the weights (EMA.ENABLE): only the weights are evaluated", checkpoint)
    elif run.cfg.EMA.ENABLE:
        source = f"{checkpoint}, averaged weights"
        load_weights(model, Weights(average, "revvideo", source, average), allow={"interpolate"})
        parts += _test_weights(run, model, checkpoint, "ema")[1]
    _remove_parts(run, parts)
    if run.cfg.EVAL.STRICT and results["failed"]:
        first = results["failed"][0]
        raise CheckFailed(
            f"{len(results['failed'])} of {results['num_expected']} videos could not be read (--strict, EVAL.STRICT), "
            f"the first is {first['path']}: {first['reason']}; results.json lists them"
        )
    return results


def _test_weights(run: Run, model: nn.Module, checkpoint: str, weights: str) -> tuple[dict, list[EvaluationParts]]:
    """The results of the last number of views, and what was written on the way."""
    cfg, views, parts = run.cfg, build.temporal_views(run.cfg), []
    manifest = build.build_manifest(cfg, "test", folder=run.folder if run.process.is_main else None)
    suffix = "" if weights == "raw" else f"_{weights}"
    for num_views in views:
        began = time.perf_counter()
        parts.append(_parts(run, model, manifest, num_views))
        scores = _evaluate_on(run, model, manifest, num_views, parts[-1], f"test{suffix}, {num_views} views")
        arrays, calibrated = scores.arrays(), cfg.MODEL.HEAD_ACT == "softmax"
        results = (
            scores.summary(len(manifest))
            | headline(arrays["scores"], arrays["label"], calibrated=calibrated)
            | {
                "num_views": num_views,
                "num_crops": cfg.TEST.NUM_SPATIAL_CROPS,
                "checkpoint": checkpoint,
                "protocol": _protocol(cfg, num_views),
                "wall_seconds": round(time.perf_counter() - began, 3),
            }
        )
        if run.process.is_main:
            metrics = detailed(
                arrays["scores"],
                arrays["label"],
                num_classes=cfg.MODEL.NUM_CLASSES,
                failed_labels=np.array([manifest.labels[index] for index in scores.failures], dtype=np.int64),
                class_names=manifest.class_names,
                calibrated=calibrated,
            )
            names = [f"{suffix}_{num_views}views"] if len(views) > 1 else []
            names += [suffix] * (num_views == views[-1])
            write_results(run.folder, scores, results, metrics, names=names)
            if cfg.TEST.SAVE_RESULTS_PATH and names[-1] == "":
                save_pyslowfast(_results_path(cfg), scores, manifest.labels)
        run.events.write("test", weights=weights, **results)
        _report(results, weights)
    return results, parts


def _parts(run: Run, model: nn.Module, manifest: Manifest, num_views: int) -> EvaluationParts:
    identity = None
    if run.process.is_main:
        identity = evaluation_identity(run.cfg, model, manifest, num_views, run.device)
    return EvaluationParts(
        run.folder / PARTS_FOLDER / run.group.broadcast(identity, "name of the evaluation"),
        flush_videos=run.cfg.EVAL.FLUSH_VIDEOS,
        videos_per_batch=_batches(run.cfg, manifest, num_views).videos_per_batch,
    )


def _evaluate_on(
    run: Run, model: nn.Module, manifest: Manifest, num_views: int, parts: EvaluationParts, description: str
) -> VideoScores:
    """Evaluate what earlier starts have not written."""
    cfg = run.cfg
    scores = VideoScores(
        num_views * cfg.TEST.NUM_SPATIAL_CROPS,
        method=cfg.DATA.ENSEMBLE_METHOD,
        activation=cfg.MODEL.HEAD_ACT,
        keep_views=cfg.EVAL.SAVE_VIEWS,
    )
    if run.process.is_main:
        parts.read(scores, manifest.paths, manifest.labels)
    done = run.group.broadcast(sorted(scores.indices), "videos that are evaluated")
    if done and run.process.is_main:
        logger.info("%s: %d of %d videos are there from an earlier start", description, len(done), len(manifest))
        run.events.write("evaluation_resumed", description=description, num_done=len(done), num_expected=len(manifest))
    loader = _loader(run, manifest, num_views, set(done))
    return evaluate_run(run, model, loader, num_views, description, scores=scores, parts=parts)


def _remove_parts(run: Run, parts: list[EvaluationParts]) -> None:
    """Once the results are written. Each process does it: machines need not share the folder."""
    run.group.barrier("results are written")
    for each in parts:
        each.remove()
    folder = run.folder / PARTS_FOLDER
    with contextlib.suppress(OSError):  # not there, or not empty
        folder.rmdir()
    if run.process.is_main and folder.exists():
        logger.warning(
            "%s holds scores of evaluations that were interrupted, of other weights, another list or protocol; they "
            "were not used here and can be deleted",
            folder,
        )


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
    loader = _loader(run, build.build_manifest(run.cfg, "test"), num_views)
    return evaluate_run(run, model, loader, num_views, description, edit_views=edit_views)


def _batches(cfg: CfgNode, manifest: Manifest, num_views: int) -> VideoBatches:
    return build.video_batches(cfg, len(manifest), num_views * cfg.TEST.NUM_SPATIAL_CROPS)


def _loader(run: Run, manifest: Manifest, num_views: int, done: Collection[int] = ()) -> ClipLoader:
    """This process's share of the videos that are not done."""
    videos = _batches(run.cfg, manifest, num_views).share(run.process.rank, run.process.world_size, done)
    return build.build_test_loader(run.cfg, num_views, manifest=manifest, videos=videos)


def evaluate_run(
    run: Run,
    model: nn.Module,
    loader,
    num_views: int,
    description: str,
    *,
    num_crops: int | None = None,
    edit_views: EditViews | None = None,
    scores: VideoScores | None = None,
    parts: EvaluationParts | None = None,
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
            clips_per_batch=build.clips_per_forward(cfg),
            amp_dtype=build.eval_amp_dtype(cfg),
            edit_views=edit_views,
            scores=scores,
            parts=parts,
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
