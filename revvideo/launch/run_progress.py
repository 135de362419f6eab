"""How far a run is, from its diary (events.jsonl) and its config."""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import yaml

STEP_LINE = b'{"kind": "train_step"'
WINDOW = 1000  # steps that the speed is taken from


@dataclass(frozen=True)
class RunProgress:
    """What the diary of a run tells.

    Attributes:
        epoch: epochs begun, from 1; None before the first step.
        max_epoch: epochs asked for; None if the config cannot be read.
        step: steps done.
        num_steps: steps of the whole run; None if the diary does not tell.
        seconds_left: of training at the speed of the last 1000 steps; None if it cannot be told.
        train: the last training step: loss, top1, lr, clips_per_second, ...
        validation: the last one: epoch (from 1), top1_acc, top5_acc.
        best: the best one, as `validation`.
        test: the last evaluation: top1_acc, top5_acc, num_views, ...
        event_time: unix seconds of the last event.
        stops: (unix seconds, signal) of each stop by a signal.
    """

    epoch: int | None = None
    max_epoch: int | None = None
    step: int = 0
    num_steps: int | None = None
    seconds_left: float | None = None
    train: dict | None = None
    validation: dict | None = None
    best: dict | None = None
    test: dict | None = None
    event_time: float | None = None
    stops: tuple[tuple[float, str], ...] = ()


def read_progress(run_folder: Path, config_file: Path | None = None) -> RunProgress:
    """What is known about a run; empty for one that has not begun.

    Args:
        run_folder: its OUTPUT_DIR.
        config_file: what it runs; None: config.yaml of the run folder.
    """
    steps, others = _read(run_folder / "events.jsonl")
    max_epoch = _max_epoch(config_file or run_folder / "config.yaml")
    validations = [_plain(event) for event in _counting(others, "validation")]
    tests = _counting(others, "test")
    known = {
        "max_epoch": max_epoch,
        "validation": validations[-1] if validations else None,
        "best": max(validations, key=lambda each: number(each.get("top1_acc"), -1.0), default=None),
        "test": _plain(tests[-1]) if tests else None,
        "event_time": max((event["time"] for event in (*steps[-1:], *others[-1:])), default=None),
        "stops": tuple((event["time"], str(event.get("reason"))) for event in others if event["kind"] == "stop"),
    }
    if not steps:
        return RunProgress(**known)
    last = steps[-1]
    done = last["step"] + 1
    per_epoch = last.get("steps_per_epoch")
    num_steps = per_epoch * max_epoch if per_epoch and max_epoch else None
    rate = _seconds_per_step([step for step in steps if step["restart"] == last["restart"]])
    left = max(0, num_steps - done) * rate if num_steps is not None and rate is not None else None
    return RunProgress(
        epoch=last["epoch"] + 1, step=done, num_steps=num_steps, seconds_left=left, train=_plain(last), **known
    )


def number(value: object, default: float | None = None) -> float | None:
    """A number of the diary, which has "nan" and "inf" for what JSON cannot write; `default` if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _read(path: Path) -> tuple[list[dict], list[dict]]:
    """The last training steps, and all other events. A long run has millions of steps: only the last are parsed."""
    steps: deque[bytes] = deque(maxlen=WINDOW)
    others = []
    try:
        with open(path, "rb") as file:
            for line in file:
                (steps if line.startswith(STEP_LINE) else others).append(line)
    except OSError:
        return [], []
    return list(filter(None, map(_parse, steps))), list(filter(None, map(_parse, others)))


def _counting(events: list[dict], kind: str) -> list[dict]:
    """Those of the averaged weights where there are some, as for the best checkpoint."""
    found = [event for event in events if event["kind"] == kind]
    return [event for event in found if event.get("weights") == "ema"] or found


def _parse(line: bytes) -> dict | None:
    try:
        event = json.loads(line)
    except ValueError:  # half a line: being written, or left by a kill
        return None
    return event if isinstance(event, dict) and {"kind", "time", "restart"} <= event.keys() else None


def _plain(event: dict) -> dict:
    """Without lists (names of videos); epochs count from 1 for humans."""
    fields = {name: value for name, value in event.items() if not isinstance(value, list | dict) and name != "kind"}
    return fields | ({"epoch": event["epoch"] + 1} if "epoch" in event else {})


def _seconds_per_step(steps: list[dict]) -> float | None:
    """Validation and checkpoints between them included; the first step, which warms up, left out."""
    timed = steps[1:] if len(steps) > 2 else steps
    return (timed[-1]["time"] - timed[0]["time"]) / (len(timed) - 1) if len(timed) > 1 else None


def _max_epoch(config_file: Path) -> int | None:
    try:
        return yaml.safe_load(config_file.read_text(encoding="utf-8"))["SOLVER"]["MAX_EPOCH"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
