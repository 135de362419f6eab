"""A data set, a config and a way to run commands, small enough for end-to-end tests: a step takes milliseconds."""

import io
import json
import logging
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from videos import write_video

NUM_CLASSES = 6
NUM_TRAIN, NUM_TEST = 8, 6
HEIGHT, WIDTH = 32, 48
TEST_LENGTHS = (10, 16, 25, 34, 47, 60)  # frames; a clip of the tiny config spans 16, so one video is too short for it
TEST_RATES = (30, 30, 25, 30, 15, 30)  # frames per second

# On top of the demo's config: two stages, three reversible blocks, 4 frames of 32 pixels.
TINY = {
    "DATA.NUM_FRAMES": 4,
    "DATA.SAMPLING_RATE": 4,
    "DATA.TRAIN_CROP_SIZE": 32,
    "DATA.TEST_CROP_SIZE": 32,
    "DATA.TRAIN_JITTER_SCALES": [32, 40],
    "MODEL.NUM_CLASSES": NUM_CLASSES,
    "MVIT.DEPTH": 4,
    "MVIT.EMBED_DIM": 16,
    "MVIT.DIM_MUL": [[1, 2.0]],
    "MVIT.HEAD_MUL": [[1, 2.0]],
    "MVIT.POOL_Q_STRIDE": [[1, 1, 2, 2]],
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": [1, 2, 2],
    "MVIT.REV.BUFFER_LAYERS": [1],
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.WARMUP_EPOCHS": 0.5,
    "SOLVER.BASE_LR": 1e-3,
    "TRAIN.BATCH_SIZE": 4,
    "TRAIN.EVAL_PERIOD": 1,
    "TRAIN.CHECKPOINT_PERIOD": 1,
    "TEST.NUM_ENSEMBLE_VIEWS": 2,
    "TEST.BATCH_SIZE": 5,
    "DATA_LOADER.NUM_WORKERS": 0,
    "RUN.REPORT": False,
}
# What makes training random beyond the choice of clips.
RANDOM = {"MVIT.DROPPATH_RATE": 0.3, "MIXUP.ENABLE": True, "MODEL.LOSS_FUNC": "soft_cross_entropy"}
TRAIN_ONLY = {"TEST.ENABLE": False, "TRAIN.EVAL_PERIOD": 1000}  # no validation either: the period is never reached


def write_list(path: Path, rows: Iterable[tuple[str, int]]) -> None:
    """A Kinetics list."""
    path.write_text("".join(f"{name} {label}\n" for name, label in rows), encoding="utf-8")


def write_dataset(root: Path) -> Path:
    """Videos of 32 x 48 pixels in Kinetics format: train.csv, and val.csv and test.csv with the same videos."""
    train, test = [], []
    for number in range(NUM_TRAIN):
        write_video(root / f"train{number}.mp4", 20 + number, size=(HEIGHT, WIDTH), seed=number)
        train.append((f"train{number}.mp4", number % NUM_CLASSES))
    for number, (length, rate) in enumerate(zip(TEST_LENGTHS, TEST_RATES)):
        write_video(root / f"test{number}.mp4", length, size=(HEIGHT, WIDTH), fps=rate, seed=100 + number)
        test.append((f"test{number}.mp4", (number + 1) % NUM_CLASSES))
    write_list(root / "train.csv", train)
    for split in ("val", "test"):
        write_list(root / f"{split}.csv", test)
    return root


def overrides(*layers: dict) -> list[str]:
    """TINY and further keys on top of it, as words of a command line."""
    merged = TINY.copy()
    for layer in layers:
        merged.update(layer)
    return [str(word) for pair in merged.items() for word in pair]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what a user has read."""

    code: int
    out: str
    err: str


def command(*words: object) -> Outcome:
    """Run `revvideo WORDS...` in this process, with its own logging to a standard error that is no terminal."""
    from revvideo.cli.main import main

    root, out, err = logging.getLogger(), io.StringIO(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # pytest's: they would keep the command from setting up its own
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([str(word) for word in words])
            except SystemExit as error:  # argparse
                code = error.code
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return Outcome(code, out.getvalue(), err.getvalue())


def run_net(data: Path, folder: Path, *layers: dict, words: Iterable[object] = ()) -> Outcome:
    """`revvideo run_net` with the tiny config on the data set `data` in the run folder `folder`."""
    own = {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder}
    return command("run_net", "--cfg", "demo/REV_MVIT_DEMO", *overrides(own, *layers), *words)


def done(outcome: Outcome) -> Outcome:
    """The outcome of a command that must have succeeded."""
    assert outcome.code == 0, outcome.err
    return outcome


def batches_of(cfg, num_steps: int) -> list[tuple]:
    """(epoch, step, steps of an epoch, batch) of a run of `num_steps` steps, read once: to train on them repeatedly."""
    from revvideo.build import build_train_loader
    from revvideo.config.batch import batch_plan

    loader = build_train_loader(cfg, batch_plan(cfg))
    found = []
    for epoch in range(cfg.SOLVER.MAX_EPOCH):
        loader.set_epoch(epoch)
        found += [(epoch, step, len(loader), batch) for step, batch in enumerate(loader)]
    assert len(found) == num_steps
    return found


def events(folder: Path, kind: str | None = None) -> list[dict]:
    """The lines of a run folder's events.jsonl, of one kind or all."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in lines if kind in (None, event["kind"])]


def losses(folder: Path) -> list[float]:
    """The loss of every training step; of a step that was trained twice the last one counts."""
    by_step = {event["step"]: event["loss"] for event in events(folder, "train_step")}
    assert list(range(len(by_step))) == sorted(by_step)
    return [float(by_step[step]) for step in range(len(by_step))]
