"""Drawings of a result of `ModelBenchmark`: step times as bars, peak memory against batch and depth as lines.

matplotlib (the extra "plot") is imported when something is drawn.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from revvideo.errors import InputError
from revvideo.paths import replace_file

SUFFIXES = (".svg", ".png")


def check_plot_path(path: Path) -> None:
    """Raise an InputError unless a drawing can be made and its name has a known suffix."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--plot is {str(path)!r}; expected a name that ends in {' or '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib, which is not installed: pip install 'revvideo[plot]'")


def plot_result(result: Mapping, path: Path) -> None:
    """Draw what the result has, side by side, into an SVG or PNG file."""
    from matplotlib.figure import Figure

    rows = [row for row in [*result["rows"], *result["peers"]] if row.get("seconds")]  # the others ran out of memory
    against_batch = _lines([row for row in rows if row not in result["peers"]], "batch_size")
    against_depth = _lines(result["depths"], "depth")
    lines = [
        (name, series)
        for name, series in (("batch size (clips)", against_batch), ("depth (blocks)", against_depth))
        if any(len(points) > 1 for points in series.values())
    ]
    figure = Figure(figsize=(6.4 * (1 + len(lines)), max(3.6, 0.4 * len(rows) + 1.5)), layout="constrained")
    axes = figure.subplots(1, 1 + len(lines), squeeze=False)[0]
    _draw_times(axes[0], rows, result["peers"])
    for ax, (name, series) in zip(axes[1:], lines, strict=True):
        for label, points in series.items():
            ax.plot(*zip(*sorted(points.items())), marker="o", label=label)
        ax.set(xlabel=name, ylabel="peak memory of a step (MiB)", ylim=(0, None))
        ax.legend(fontsize="small")
    form = path.suffix[1:]
    metadata = {"Date": None} if form == "svg" else None  # the same figures give the same file
    replace_file(path, lambda temporary: figure.savefig(temporary, format=form, metadata=metadata))


def _draw_times(ax, rows: Sequence[Mapping], peers: Sequence[Mapping]) -> None:
    """A bar for each row: the median, with a line from the fastest to the slowest step."""
    labels = [f"{_label(row)}{' (peer)' if row in peers else ''}, batch {row['batch_size']}" for row in rows]
    medians = [row["median_seconds"] for row in rows]
    below = [row["median_seconds"] - min(row["seconds"]) for row in rows]
    above = [max(row["seconds"]) - row["median_seconds"] for row in rows]
    colours = ["tab:grey" if row in peers else "tab:blue" for row in rows]
    ax.barh(range(len(rows)), medians, xerr=(below, above), color=colours, ecolor="black", capsize=3)
    ax.set_yticks(range(len(rows)), labels, fontsize="small")
    ax.invert_yaxis()
    ax.set(xlabel="training step (s), median; fastest to slowest", xlim=(0, None))


def _lines(figures: Sequence[Mapping], axis: str) -> dict[str, dict[int, float]]:
    """Peak MiB of each network by `axis`."""
    series: dict[str, dict[int, float]] = {}
    for one in figures:
        series.setdefault(_label(one), {})[one[axis]] = one["peak_mib"]
    return series


def _label(figures: Mapping) -> str:
    more = [figures["pooling"]] if figures["pooling"] else []
    more += ["compiled"] if figures["compiled"] else []
    return " ".join([figures["model"], figures["mode"], figures["precision"], *more])
