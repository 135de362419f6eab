"""From the diary's events to what is drawn: points of a run over its epochs or steps, few enough to draw."""

from bisect import bisect_left
from dataclasses import dataclass, field

from revvideo.report.run_record import RunRecord, finite

MAX_POINTS = 600  # of one line; several runs share them
SMOOTHED_SHARE = 0.03  # of a line's points, for the moving average


@dataclass
class Line:
    """One line of a chart.

    Attributes:
        name: for legend and read-out.
        colour: number of its run, which all its lines share; in a report of one run what it shows.
        style: "raw" (thin and pale), "main" or "dots" (a line with a dot at each point).
        x, y: its points, x ascending.
    """

    name: str
    colour: int
    style: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)


@dataclass
class Chart:
    """One chart.

    Attributes:
        title: with the unit.
        lines: in the order of drawing.
        restarts: (colour, x, words) where a run was started again.
        has_log: offer a logarithmic axis.
        from_zero: the linear axis starts at 0.
        most: no value can be above this one.
    """

    title: str
    lines: list[Line]
    restarts: list[tuple[int, float, str]] = field(default_factory=list)
    has_log: bool = False
    from_zero: bool = False
    most: float = float("inf")


@dataclass(frozen=True)
class Axis:
    """What x means: epochs where all runs tell how many steps one has, else steps."""

    in_epochs: bool
    steps_per_epoch: tuple[float, ...]  # of each run; 1 in steps

    @property
    def title(self) -> str:
        return "epoch" if self.in_epochs else "step"

    def x(self, run: int, num_steps: float) -> float:
        """Place of the moment when `num_steps` steps are done."""
        return num_steps / self.steps_per_epoch[run]


def common_axis(runs: list[RunRecord]) -> Axis:
    """The x axis of all curves of these runs."""
    sizes = [_steps_per_epoch(run) for run in runs]
    if all(sizes) and any(run.steps for run in runs):
        return Axis(True, tuple(sizes))
    return Axis(False, (1.0,) * len(runs))


def _steps_per_epoch(run: RunRecord) -> float | None:
    """What the last step says, in older diaries the steps of the first whole epoch; 1 for a run without steps."""
    if not run.steps:
        return 1.0
    told = run.steps[max(run.steps)]["steps_per_epoch"]
    if told:
        return told
    first_of_epoch: dict[int, int] = {}
    for step, event in run.steps.items():
        if isinstance(event["epoch"], int):
            first_of_epoch.setdefault(event["epoch"], step)
    sizes = (
        first_of_epoch[epoch + 1] - first for epoch, first in first_of_epoch.items() if epoch + 1 in first_of_epoch
    )
    return float(next(sizes, 0)) or None


def curve_charts(runs: list[RunRecord], axis: Axis) -> list[Chart]:
    """The charts of the section "curves"; those without a point are left out."""
    limit = max(120, MAX_POINTS // len(runs))

    def steps(name: str, field_name: str, *, factor: float = 1.0, smooth: bool = False) -> list[Line]:
        lines = []
        for number, run in enumerate(runs):
            points = [
                (axis.x(number, step + 1), event[field_name] * factor)
                for step, event in run.steps.items()
                if event[field_name] is not None
            ]
            x, y = thinned(points, limit)
            title = _named(runs, number, name)
            if smooth and len(y) >= 20:
                lines += [Line(title, number, "raw", x, y), Line(f"{title}, average", number, "main", x, smoothed(y))]
            else:
                lines.append(Line(title, number, "main", x, y))
        return lines

    def validations(name: str, field_name: str) -> list[Line]:
        lines = []
        for number, run in enumerate(runs):
            for weights in ("raw", "ema"):
                x, y = [], []
                for event in run.validations:
                    value = finite(event.get(field_name))
                    if value is not None and event.get("weights", "raw") == weights:
                        x.append(axis.x(number, _steps_done(event, axis, number)))
                        y.append(value)
                title = f"{name} (averaged weights)" if weights == "ema" else name
                colour = number if len(runs) > 1 else 2 if weights == "ema" else 1
                lines.append(Line(_named(runs, number, title), colour, "dots", x, y))
        return lines

    restarts = [mark for number, run in enumerate(runs) for mark in _restarts(run, number, axis, _named(runs, number))]
    charts = [
        Chart("Training loss", steps("loss", "loss", smooth=True), has_log=True),
        Chart(
            "Top-1 accuracy, %",
            steps("training", "top1", smooth=True) + validations("validation", "top1_acc"),
            most=100.0,
        ),
        Chart("Top-5 accuracy, %", validations("validation", "top5_acc"), most=100.0),
        Chart("Learning rate", steps("lr", "lr"), has_log=True, from_zero=True),
        Chart("Gradient norm", steps("norm", "grad_norm", smooth=True), has_log=True),
        Chart("Throughput, clips/s", steps("clips/s", "clips_per_second", smooth=True), from_zero=True),
        Chart(
            "Waiting for data, %",
            steps("waiting", "data_wait_share", factor=100.0, smooth=True),
            from_zero=True,
            most=100.0,
        ),
        Chart("Peak memory, MiB", steps("MiB", "peak_memory_mib"), from_zero=True),
    ]
    for chart in charts:
        chart.lines = [line for line in chart.lines if line.x]
        chart.restarts = restarts
    return [chart for chart in charts if chart.lines]


def _named(runs: list[RunRecord], number: int, name: str = "") -> str:
    return ": ".join(filter(None, (runs[number].name if len(runs) > 1 else "", name)))


def _steps_done(event: dict, axis: Axis, number: int) -> float:
    """Older diaries have no step in a validation; it stands at the end of its epoch."""
    step = finite(event.get("step"))
    return step if step is not None else (event["epoch"] + 1) * axis.steps_per_epoch[number]


def _restarts(run: RunRecord, number: int, axis: Axis, name: str) -> list[tuple[int, float, str]]:
    marks, before = [], None
    for start in run.starts:
        if before is not None and start.first_step is not None:
            why = f"stopped by {before.reason}" if before.reason else "without a stop before it"
            words = ", ".join(filter(None, (name, f"restart {start.number} at step {start.first_step}", why)))
            marks.append((number, axis.x(number, start.first_step), words))
        before = start
    return marks


def thinned(points: list[tuple[float, float]], limit: int) -> tuple[list[float], list[float]]:
    """At most `limit` points: means of as many neighbours each, so that no outlier is left out or stands for others."""
    if len(points) <= limit:
        return [x for x, _ in points], [y for _, y in points]
    x, y = [], []
    for part in range(limit):
        group = points[part * len(points) // limit : (part + 1) * len(points) // limit]
        x.append(group[-1][0])
        y.append(sum(value for _, value in group) / len(group))
    return x, y


def smoothed(values: list[float]) -> list[float]:
    """Centred moving average; its window shrinks at both ends."""
    reach = max(2, round(len(values) * SMOOTHED_SHARE))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    found = []
    for place in range(len(values)):
        near = min(reach, place, len(values) - 1 - place)
        low, high = place - near, place + near + 1
        found.append((sums[high] - sums[low]) / (high - low))
    return found


@dataclass(frozen=True)
class Epoch:
    """Figures of one epoch: means over its steps, and its validation."""

    number: int
    steps: int
    loss: float | None
    train_top1: float | None
    lr: float | None
    seconds: float
    validation: dict | None


def epochs(run: RunRecord) -> list[Epoch]:
    """The epochs of a run, from 1."""
    groups: dict[int, list[dict]] = {}
    for event in run.steps.values():
        if isinstance(event["epoch"], int):
            groups.setdefault(event["epoch"], []).append(event)
    validated = {event.get("epoch"): event for event in run.validations}
    numbers = sorted(groups)
    ends = [groups[number][-1]["time"] for number in numbers]
    found = []
    for number, group in sorted(groups.items()):
        place = bisect_left(numbers, number)
        began = ends[place - 1] if place else group[0]["time"]
        found.append(
            Epoch(
                number + 1,
                len(group),
                _mean(group, "loss"),
                _mean(group, "top1"),
                group[-1]["lr"],
                max(0.0, ends[place] - began),
                validated.get(number),
            )
        )
    return found


def _mean(group: list[dict], name: str) -> float | None:
    values = [event[name] for event in group if event[name] is not None]
    return sum(values) / len(values) if values else None
