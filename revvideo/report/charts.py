"""Charts as SVG: drawn here, so that they are there without any script; the page's script only adds the read-out."""

import math

from revvideo.report.markup import Html, compact, join, tag
from revvideo.report.series import Axis, Chart, Line

WIDTH, HEIGHT = 380, 200
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 24  # of the drawing area
NUM_COLOURS = 8  # in report.css
MAX_LEGEND = 12


class Scale:
    """Values to places along one axis.

    Args:
        low, high: values at the ends.
        start, end: their places.
        log: by the logarithm.
    """

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False):
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        low, high, value = (map(math.log10, (self.low, self.high, value))) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values from at most `low` to at least `high` (1, 2 or 5 times a power of ten apart)."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from at most `low` to at least `high`; over less than two decades 2 and 5 times them, too."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = [10.0**power for power in range(first, last + 1)]
    if last - first > 6:
        decades = decades[:: math.ceil((last - first) / 6)] + decades[-1:]
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = sorted({factor * decade for decade in decades for factor in factors})
    below = max((tick for tick in ticks if tick <= low * 1.0001), default=ticks[0])
    above = min((tick for tick in ticks if tick >= high * 0.9999), default=ticks[-1])
    return [tick for tick in ticks if below <= tick <= above]


def draw_chart(chart: Chart, number: int, axis: Axis) -> tuple[Html, dict]:
    """A chart as a figure, and what the script needs for its read-out.

    Args:
        chart: with at least one point.
        number: of the chart in the page.
        axis: what x means.
    """
    xs = [x for line in chart.lines for x in line.x]
    ys = [y for line in chart.lines for y in line.y]
    x_ticks = nice_ticks(0.0, max(xs) or 1.0, 6)
    x_scale = Scale(0.0, max(xs) or 1.0, LEFT, WIDTH - RIGHT)
    low, high = (min(0.0, *ys) if chart.from_zero else min(ys)), max(ys)
    if high - low < 1e-9 * max(abs(high), 1e-30):
        low, high = low - (abs(low) or 1.0) * 0.1 * (not chart.from_zero), high + (abs(high) or 1.0) * 0.1
    most = max(chart.most, max(ys))
    ticks = [tick for tick in nice_ticks(low, min(high, most)) if tick <= most or most > chart.most]
    scales = {"linear": (Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP), ticks)}
    positive = [y for y in ys if y > 0]
    if chart.has_log and positive and max(positive) > min(positive):
        ticks = log_ticks(min(positive), max(positive))
        scales["log"] = (Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP, log=True), ticks)
    bodies = [
        tag("g", _grid(y_scale, y_ticks), *(_line(line, x_scale, y_scale) for line in chart.lines), class_=name)
        for name, (y_scale, y_ticks) in scales.items()
    ]
    drawing = tag(
        "svg",
        tag("title", f"{chart.title} over {axis.title}s: {_in_words(chart)}"),
        _x_axis(x_scale, x_ticks, axis.title),
        *(_restart(mark, x_scale) for mark in chart.restarts),
        *bodies,
        tag("g", class_="cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0,
        data_chart=number,
    )
    switch = (
        join(
            tag("input", type="checkbox", id=f"log{number}", class_="scale"),
            tag("label", "log", for_=f"log{number}", class_="switch"),
        )
        if "log" in scales
        else None
    )
    figure = tag(
        "figure",
        switch,
        tag("figcaption", tag("h3", chart.title), tag("output", _last_values(chart), data_output=number)),
        drawing,
        class_="chart",
    )
    return figure, _for_script(chart, x_scale, scales)


def _for_script(chart: Chart, x_scale: Scale, scales: dict) -> dict:
    return {
        "x": [x_scale.low, x_scale.high, x_scale.start, x_scale.end],
        "y": {name: [scale.low, scale.high, scale.start, scale.end] for name, (scale, _) in scales.items()},
        "lines": [
            {
                "name": line.name,
                "colour": line.colour % NUM_COLOURS,
                "x": [_rounded(x) for x in line.x],
                "y": [_rounded(y) for y in line.y],
            }
            for line in chart.lines
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _in_words(chart: Chart) -> str:
    return "; ".join(f"{line.name} from {compact(line.y[0])} to {compact(line.y[-1])}" for line in chart.lines[:6])


def _last_values(chart: Chart) -> Html:
    """What stands above the chart until the pointer is in it."""
    shown = [line for line in chart.lines if line.style != "raw"][:MAX_LEGEND]
    return join(
        *(
            tag(
                "span",
                tag("i", class_=f"key c{line.colour % NUM_COLOURS}"),
                f"{line.name} ",
                tag("b", compact(line.y[-1])),
            )
            for line in shown
        )
    )


def _grid(scale: Scale, ticks: list[float]) -> Html:
    return join(
        *(
            join(
                tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{scale(tick):.1f}", y2=f"{scale(tick):.1f}", class_="grid"),
                tag("text", compact(tick), x=LEFT - 6, y=f"{scale(tick) + 3.5:.1f}", class_="tick end"),
            )
            for tick in ticks
        )
    )


def _x_axis(scale: Scale, ticks: list[float], title: str) -> Html:
    inside = [tick for tick in ticks if tick <= scale.high * 1.0001]
    return join(
        *(
            tag("text", compact(tick), x=f"{scale(tick):.1f}", y=HEIGHT - BOTTOM + 14, class_="tick mid")
            for tick in inside
        ),
        tag("text", title, x=WIDTH - RIGHT, y=HEIGHT - 1, class_="tick end"),
    )


def _restart(mark: tuple[int, float, str], scale: Scale) -> Html:
    colour, x, words = mark
    place = f"{scale(min(x, scale.high)):.1f}"
    return tag(
        "g",
        tag("title", words),
        tag("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM),
        tag("path", d=f"M{place} {TOP + 6}l-4 -7h8z"),
        class_=f"restart c{colour % NUM_COLOURS}",
    )


def _line(line: Line, x_scale: Scale, y_scale: Scale) -> Html:
    points = [
        (x_scale(x), y_scale(max(y, y_scale.low) if y_scale.log else y)) for x, y in zip(line.x, line.y)
    ]  # fmt: skip
    path = "".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(points))
    dots = line.style == "dots" or len(points) == 1
    # Beyond the palette a dash tells runs apart.
    dashed = f" d{line.colour // NUM_COLOURS}" if line.colour >= NUM_COLOURS else ""
    return tag(
        "g",
        tag("path", d=path),
        *(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.5) for x, y in points if dots and len(points) <= 120),
        class_=f"line {line.style} c{line.colour % NUM_COLOURS}{dashed}",
    )


def legend(names: list[str]) -> Html | None:
    """Which colour is which run; None for one."""
    if len(names) < 2:
        return None
    items = (tag("li", tag("i", class_=f"key c{number % NUM_COLOURS}"), name) for number, name in enumerate(names))
    return tag("ul", *items, class_="legend")


def calibration_chart(bins: list[dict]) -> Html:
    """Accuracy of each bin over its confidence, as bars beside the diagonal.

    Args:
        bins: of metrics.json: `low`, `high`, `num_videos`, `confidence`, `accuracy`.
    """
    size, margin = 220, 30
    scale = Scale(0.0, 1.0, margin, size - 12)
    down = Scale(0.0, 1.0, size - margin, 6)
    bars = []
    for entry in bins:
        if entry.get("accuracy") is None:
            continue
        left, right, top = scale(entry["low"]), scale(entry["high"]), down(entry["accuracy"])
        words = (
            f"confidence {100 * entry['low']:.0f} to {100 * entry['high']:.0f} %: {entry['num_videos']} videos, "
            f"mean confidence {100 * entry['confidence']:.1f} %, accuracy {100 * entry['accuracy']:.1f} %"
        )
        bars.append(
            tag(
                "rect",
                tag("title", words),
                x=f"{left + 1:.1f}",
                y=f"{min(top, down(0) - 1):.1f}",
                width=f"{right - left - 2:.1f}",
                height=f"{max(1.0, down(0) - top):.1f}",
                class_="bar",
                data_tip=words,
            )
        )
    ticks = [
        join(
            tag("text", f"{100 * tick:.0f}", x=f"{scale(tick):.1f}", y=size - margin + 14, class_="tick mid"),
            tag("text", f"{100 * tick:.0f}", x=margin - 5, y=f"{down(tick) + 3.5:.1f}", class_="tick end"),
        )
        for tick in (0, 0.5, 1)
    ]
    return tag(
        "svg",
        tag("title", "Accuracy over confidence, both in percent"),
        *ticks,
        *bars,
        tag("line", x1=scale(0), y1=down(0), x2=scale(1), y2=down(1), class_="diagonal"),
        tag("text", "confidence, %", x=size - 6, y=size - 3, class_="tick end"),
        viewBox=f"0 0 {size} {size}",
        role="img",
        class_="calibration",
    )
