"""Run folders for tests of the report, written without any training."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from videos import write_video

from revvideo.config import dump_config, load_config
from revvideo.engine.accuracy import detailed, headline
from revvideo.engine.events import EventLog

STEPS_PER_EPOCH = 10
EVIL = "</script><img src=x onerror=alert(1)>\"'&\u202e\u00e9\u4e2d"  # markup, quotes, reversed text, other scripts


def write_run(
    folder: Path,
    *,
    class_names: tuple[str, ...] = ("wave", "jump", "turn"),
    num_videos: int = 12,
    epochs: int = 4,
    restarts: int = 1,
    views: int = 0,
    reason: str = "moov atom not found",
    missing: tuple[str, ...] = (),
    seed: int = 0,
    overrides: tuple = (),
) -> Path:
    """A run folder with all files, of which `missing` are left out again.

    Args:
        num_videos: test videos; only the first four files are there.
        epochs, restarts: the diary has 10 steps an epoch, and so many starts after the first.
        views: of `view_scores` in predictions.npz; 0: none.
        reason: why one video failed.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names, count = list(class_names), len(class_names)
    cfg = load_config("demo/REV_MVIT_DEMO", ["OUTPUT_DIR", str(folder), "MODEL.NUM_CLASSES", count, *overrides])
    (folder / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
    labels = np.arange(num_videos) % count
    logits = rng.normal(size=(num_videos, max(views, 1), count)) + 1.5 * np.eye(count)[labels][:, None]
    view_scores = (np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)).astype(np.float32)
    scores = view_scores.sum(axis=1)
    paths = [str(folder / "videos" / f"{number}.mp4") for number in range(num_videos)]
    (folder / "videos").mkdir()
    for path in paths[:4]:
        write_video(Path(path), 16, size=(32, 48))
    arrays = {"path": np.array(paths), "label": labels, "scores": scores}
    np.savez(folder / "predictions.npz", **arrays, **({"view_scores": view_scores} if views else {}))
    metrics = detailed(
        scores, labels, num_classes=count, failed_labels=np.array([0]), class_names=class_names, calibrated=True
    )
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    right = 100.0 * float((scores.argmax(axis=1) == labels).mean())
    results = headline(scores, labels, calibrated=True) | {
        "top1_acc": right,
        "top5_acc": 100.0,
        "num_videos": num_videos,
        "top1_acc_all": right * num_videos / (num_videos + 1),
        "top5_acc_all": 100.0 * num_videos / (num_videos + 1),
        "num_expected": num_videos + 1,
        "failed": [{"path": f"videos/{names[0]}/broken.mp4", "reason": reason}],
        "num_views": max(views, 1),
        "num_crops": 1,
        "checkpoint": "checkpoint_epoch_00004.pyth",
        "protocol": "5 temporal views x 1 spatial crops",
        "wall_seconds": 1.0,
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    environment = {"torch": "2.6.0", "host": reason, "variables": {"OMP_NUM_THREADS": "1"}}
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    _write_events(folder / "events.jsonl", epochs, restarts, rng, reason)
    for name in missing:
        (folder / name).unlink()
    return folder


def _write_events(path: Path, epochs: int, restarts: int, rng: np.random.Generator, reason: str) -> None:
    steps = epochs * STEPS_PER_EPOCH
    bounds = [number * steps // (restarts + 1) for number in range(restarts + 2)]
    for number, (first, last) in enumerate(pairwise(bounds)):
        with EventLog(path, restart=number) as events:
            events.write("start", command=["revvideo", "run_net", "--cfg", "demo/REV_MVIT_DEMO"], world_size=1)
            for step in range(max(0, first - 2), last):  # the two steps before it are made twice
                _write_step(events, step, rng)
            events.write("bad_video", epoch=0, path="train/cut.mp4", reason=reason)
            if number < restarts:
                events.write("stop", reason="SIGTERM", step=last)


def _write_step(events: EventLog, step: int, rng: np.random.Generator) -> None:
    epoch = step // STEPS_PER_EPOCH
    events.write(
        "train_step",
        step=step,
        epoch=epoch,
        steps_per_epoch=STEPS_PER_EPOCH,
        loss=float(3 * np.exp(-step / 15) + 0.1 * rng.random()),
        lr=1e-3 * (1 - step / 1000),
        grad_norm=float(1 + rng.random()),
        top1=float(min(100, 20 + step)),
        clips_per_second=30.0,
        data_wait_share=0.02,
        peak_memory_mib=700.0,
    )
    if step % STEPS_PER_EPOCH == STEPS_PER_EPOCH - 1:
        figures = {"top1_acc": 30.0 + 10 * epoch, "top5_acc": 90.0, "num_videos": 12, "failed": []}
        events.write("validation", epoch=epoch, step=step + 1, weights="raw", **figures)
