"""What a run folder tells, read as far as it is there: a run may have been killed, or may be going on."""

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from revvideo.config.defaults import KEYS
from revvideo.data.lists.class_names import read_class_file
from revvideo.data.lists.pyslowfast import OWN_CLASS_FILE
from revvideo.engine.events import read_events
from revvideo.errors import InputError

FILES = ("events.jsonl", "results.json", "metrics.json", "predictions.npz", "config.yaml", "environment.json")
STEP_FIELDS = (
    *("loss", "lr", "top1", "grad_norm", "clips_per_second", "data_wait_share", "peak_memory_mib"),
    "steps_per_epoch",
)


@dataclass
class Start:
    """One start of a run.

    Attributes:
        number: 0 for the first.
        began, ended: unix seconds of its first and last event.
        first_step, last_step: training steps that it made; None without any.
        reason: of a stop by a signal; "" otherwise.
        evaluated: it came to the end of a test.
        command: words of the command line.
        world_size: processes.
    """

    number: int
    began: float
    ended: float
    first_step: int | None = None
    last_step: int | None = None
    reason: str = ""
    evaluated: bool = False
    command: tuple[str, ...] = ()
    world_size: int | None = None


@dataclass
class RunRecord:
    """A run, as its folder tells it.

    Attributes:
        folder: the run folder.
        name: what the report calls it.
        steps: of each training step that counts: step -> {epoch, time, one of STEP_FIELDS: number or None}.
        events: all events but training steps, in the order of writing.
        starts: the starts of the run.
        results: content of results.json; None where there is none.
        variants: suffix -> content of the other results files (`_ema`, `_5views`).
        metrics: content of metrics.json; None where there is none.
        predictions: arrays of predictions.npz; empty where there is none.
        config: dotted key -> value of config.yaml.
        environment: content of environment.json.
        class_names: name of each class number, as far as they are known.
        problems: files that are there and cannot be read, one line each.
    """

    folder: Path
    name: str
    steps: dict[int, dict] = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    results: dict | None = None
    variants: dict[str, dict] = field(default_factory=dict)
    metrics: dict | None = None
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)

    def class_name(self, label: int) -> str:
        """Name of a class number, or the number."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"

    def of_kind(self, *kinds: str) -> list[dict]:
        """The events of some kinds."""
        return [event for event in self.events if event.get("kind") in kinds]

    @property
    def validations(self) -> list[dict]:
        """The last validation of each epoch and kind of weights, in order."""
        found = (event for event in self.of_kind("validation") if finite(event.get("epoch")) is not None)
        last = {(event.get("weights", "raw"), event["epoch"]): event for event in found}
        return sorted(last.values(), key=lambda event: event["epoch"])


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        InputError: there is no such folder, or nothing of a run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected a run folder (OUTPUT_DIR of the run)")
    if not any((folder / name).is_file() for name in FILES):
        raise InputError(f"{folder} is no run folder: it has none of {', '.join(FILES)}; expected OUTPUT_DIR of a run")
    run = RunRecord(folder, folder.resolve().name)
    run.results = _mapping(run, "results.json")
    run.metrics = _mapping(run, "metrics.json")
    run.environment = _mapping(run, "environment.json") or {}
    for path in sorted(folder.glob("results_*.json")):
        content = _mapping(run, path.name)
        if content is not None:
            run.variants[path.stem.removeprefix("results")] = content
    run.config = flatten(_read(run, "config.yaml", lambda path: yaml.safe_load(path.read_text(encoding="utf-8"))) or {})
    run.predictions = _read(run, "predictions.npz", _read_predictions) or {}
    _read(run, "events.jsonl", lambda path: _take_events(run, read_events(path)))
    run.class_names = _class_names(run)
    return run


def _read(run: RunRecord, name: str, reader):
    path = run.folder / name
    if not path.is_file():
        return None
    try:
        return reader(path)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RuntimeError,
        zipfile.BadZipFile,
        yaml.YAMLError,
    ) as error:
        run.problems.append(f"{name} cannot be read: {error}")
        return None


def _mapping(run: RunRecord, name: str) -> dict | None:
    content = _read(run, name, lambda path: json.loads(path.read_text(encoding="utf-8")))
    if content is None or isinstance(content, dict):
        return content
    run.problems.append(f"{name} cannot be read: it holds a {type(content).__name__}, expected an object")
    return None


def _read_predictions(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    shapes = {name: arrays[name].shape for name in ("path", "label", "scores")}
    count = len(arrays["label"])
    if shapes["path"] != (count,) or shapes["scores"][:1] != (count,) or len(shapes["scores"]) != 2:
        raise ValueError(f"shapes do not fit: {shapes}")
    return arrays


def flatten(tree: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings of a config as dotted key -> value; a key whose value is a mapping stays whole."""
    found: dict[str, object] = {}
    for part, value in tree.items() if isinstance(tree, dict) else ():
        name = f"{prefix}{part}"
        if isinstance(value, dict) and name not in KEYS:
            found |= flatten(value, f"{name}.")
        else:
            found[name] = value
    return found


def finite(value: object) -> float | None:
    """A finite number of the diary or of a results file; None for all else ("nan" stands for what JSON cannot hold)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < float("inf") else None


def _take_events(run: RunRecord, events: Iterable[dict]) -> None:
    starts: dict[int, Start] = {}
    for event in events:
        kind, when, number = event.get("kind"), finite(event.get("time")), event.get("restart")
        if when is None or not isinstance(number, int):
            continue
        start = starts.setdefault(number, Start(number, when, when))
        start.ended = when
        if kind == "train_step" and isinstance(event.get("step"), int):
            step = event["step"]
            start.first_step = step if start.first_step is None else start.first_step
            start.last_step = step
            fields = {name: finite(event.get(name)) for name in STEP_FIELDS}
            run.steps[step] = fields | {"epoch": event.get("epoch"), "time": when, "restart": number}
            continue
        if kind == "start":
            start.command = tuple(map(str, event.get("command") or ()))
            start.world_size = event.get("world_size")
        elif kind == "test":
            start.evaluated = True
        elif kind == "stop":
            start.reason = str(event.get("reason") or "a signal")
        run.events.append(event)
    run.steps = dict(sorted(run.steps.items()))
    run.starts = [starts[number] for number in sorted(starts)]


def _class_names(run: RunRecord) -> tuple[str, ...]:
    """From metrics.json, the class file, or folders that hold one class each."""
    written = (run.metrics or {}).get("class_names")
    if isinstance(written, list) and written:
        return tuple(map(str, written))
    data = Path(str(run.config.get("DATA.PATH_TO_DATA_DIR", "")))
    beside = [str(data / OWN_CLASS_FILE)] if (data / OWN_CLASS_FILE).is_file() else []
    files = [str(run.config.get("LOADER.CLASS_FILE") or ""), *beside]
    if any(files):
        try:
            return read_class_file(next(filter(None, files)))
        except InputError as error:
            run.problems.append(str(error))
    return _folder_names(run.predictions)


def _folder_names(predictions: dict[str, np.ndarray]) -> tuple[str, ...]:
    if not predictions:
        return ()
    of_label: dict[int, set[str]] = {}
    for path, label in zip(predictions["path"].tolist(), predictions["label"].tolist()):
        of_label.setdefault(label, set()).add(Path(path).parent.name)
    names = {label: next(iter(found)) for label, found in of_label.items() if len(found) == 1}
    if len(names) != len(of_label) or len(set(names.values())) != len(names) or "" in names.values():
        return ()
    return tuple(names.get(label, f"class {label}") for label in range(predictions["scores"].shape[1]))
