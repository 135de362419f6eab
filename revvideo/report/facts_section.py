"""Summary, starts, epochs, unreadable videos, environment and config of runs, as tables."""

import json
import math
from datetime import datetime, timezone

from revvideo.report.config_difference import Base, defaults, differing, plain
from revvideo.report.evaluation import results_of
from revvideo.report.markup import Html, compact, details, join, table, tag
from revvideo.report.run_record import RunRecord, Start, finite
from revvideo.report.series import epochs

MAX_BAD_ROWS = 300
BAD_KINDS = {
    "bad_video": "training: replaced",
    "damaged_video": "training: damaged, used",
    "failed": "test: unreadable",
}


def percent(value: object) -> str:
    value = finite(value)
    return "–" if value is None else f"{value:.2f} %"


def moment(seconds: float) -> str:
    """Unix seconds as date and time, UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """A duration: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def state(run: RunRecord) -> str:
    """How far the run is, in words."""
    if run.results is not None:
        return "evaluated"
    return _ending(run.starts[-1]) if run.starts else "no start in events.jsonl"


def key_figures(run: RunRecord) -> list[tuple[str, str, str]]:
    """(title, figure, what belongs to it) of the summary; only what is known."""
    results = results_of(run) or {}
    found = []
    for name, title in (("top1", "top-1"), ("top5", "top-5")):
        if finite(results.get(f"{name}_acc")) is not None:
            interval = results.get(f"{name}_interval")
            known = (
                isinstance(interval, list) and len(interval) == 2 and all(finite(end) is not None for end in interval)
            )
            words = f"95 %: {interval[0]:.1f} to {interval[1]:.1f}" if known else ""
            found.append((title, percent(results[f"{name}_acc"]), words))
    if finite(results.get("mean_class_acc")) is not None:
        found.append(("mean class accuracy", percent(results["mean_class_acc"]), ""))
    if finite(results.get("ece")) is not None:
        found.append(("calibration error", percent(100 * results["ece"]), "ECE"))
    if finite(results.get("num_videos")) is not None:
        failed = len(results.get("failed") or ())
        words = f"{failed} of {results.get('num_expected')} unreadable" if failed else "all readable"
        found.append(("test videos", f"{results['num_videos']:,}".replace(",", "\u202f"), words))
    best = max((event for event in run.validations if _top1(event) is not None), key=_top1, default=None)
    if best is not None:
        found.append(("best validation", percent(best["top1_acc"]), f"top-1 after epoch {int(best['epoch']) + 1}"))
    if run.steps:
        last = run.steps[max(run.steps)]
        found.append(("training loss", compact(last["loss"]), f"step {max(run.steps) + 1}"))
    if run.starts:
        restarts = len(run.starts) - 1
        words = f"{restarts} restart{'s' * (restarts != 1)}" if restarts else "one start"
        found.append(("time", span(sum(start.ended - start.began for start in run.starts)), words))
    return found


def _top1(event: dict) -> float | None:
    return finite(event.get("top1_acc"))


def summary(runs: list[RunRecord]) -> Html:
    """The key figures: tiles for one run, a table for several."""
    if len(runs) == 1:
        run = runs[0]
        tiles = (
            tag("div", tag("dt", title), tag("dd", tag("b", figure), tag("small", words) if words else None))
            for title, figure, words in key_figures(run)
        )
        return join(tag("dl", *tiles, class_="tiles"), _protocol(run), _problems(run))
    columns = [{title: (figure, words) for title, figure, words in key_figures(run)} for run in runs]
    titles = list(dict.fromkeys(title for column in columns for title in column))
    rows = [["state", *(state(run) for run in runs)]]
    for title in titles:
        cells = (column.get(title, ("–", "")) for column in columns)
        rows.append([title, *(join(figure, tag("small", f" {words}") if words else None) for figure, words in cells)])
    rows.append(["protocol", *((run.results or {}).get("protocol") or "–" for run in runs)])
    rows.append(["folder", *(str(run.folder) for run in runs)])
    return join(table(["", *(run.name for run in runs)], rows, class_="summary"), *map(_problems, runs))


def _protocol(run: RunRecord) -> Html:
    results = run.results or {}
    rows = [("state", state(run)), ("protocol", results.get("protocol")), ("checkpoint", results.get("checkpoint"))]
    if results.get("failed"):
        both = f"{percent(results.get('top1_acc_all'))} top-1, {percent(results.get('top5_acc_all'))} top-5"
        rows.append(("unreadable counted as wrong", both))
    rows.append(("run folder", str(run.folder)))
    pairs = (join(tag("dt", title), tag("dd", value)) for title, value in rows if value)
    return join(tag("dl", *pairs, class_="facts"), _variants(run), _figures_of_demo(run))


def _problems(run: RunRecord) -> Html | None:
    if not run.problems:
        return None
    return tag("div", tag("b", f"{run.name}: "), *(tag("p", words) for words in run.problems), class_="warning")


def _variants(run: RunRecord) -> Html | None:
    """All results files of a run that has several."""
    if not run.variants:
        return None
    rows = []
    for suffix, content in ({"": run.results or {}} | run.variants).items():
        views = f"{content.get('num_views', '–')} x {content.get('num_crops', '–')}"
        rows.append(
            [f"results{suffix}.json", views, percent(content.get("top1_acc")), percent(content.get("top5_acc"))]
        )
    return table(
        ["results", "views x crops", ("top-1", "number"), ("top-5", "number")], rows, caption="All evaluations"
    )


def _figures_of_demo(run: RunRecord) -> Html | None:
    """What `revvideo demo` has probed."""
    events = run.of_kind("demo")
    if not events:
        return None
    rows = [[name, (percent(value), value)] for name, value in events[-1].items() if name.startswith("(")]
    return table(["probe of the demo", ("percent", "number")], rows)


def starts_table(run: RunRecord) -> Html | None:
    """Every start of the run: when, which steps, how it ended."""
    if not run.starts:
        return None
    rows = [
        [
            str(start.number),
            moment(start.began),
            span(start.ended - start.began),
            "–" if start.first_step is None else f"{start.first_step} to {start.last_step}",
            str(start.world_size or "–"),
            _ending(start),
            tag("code", " ".join(start.command), class_="command"),
        ]
        for start in run.starts
    ]
    head = ["start", ("began (UTC)", "word"), "time", ("steps", "word"), ("processes", "number"), "end", "command"]
    return table(head, rows, caption="Starts")


def _ending(start: Start) -> str:
    if start.reason:
        return f"stopped by {start.reason}"
    return "evaluated" if start.evaluated else "no end told: it goes on, had nothing to test, or was killed"


def epochs_table(run: RunRecord) -> Html | None:
    """The values behind the curves, epoch by epoch."""
    found = epochs(run)
    if not found:
        return None
    rows = []
    for epoch in found:
        validation = epoch.validation or {}
        figures = [
            (epoch.number, str(epoch.number)),
            (epoch.steps, str(epoch.steps)),
            *((value, compact(value)) for value in (epoch.loss, epoch.train_top1)),
            *((finite(validation.get(name)), percent(validation.get(name))) for name in ("top1_acc", "top5_acc")),
            (epoch.lr, compact(epoch.lr)),
            (epoch.seconds, span(epoch.seconds)),
        ]
        rows.append([(text, -math.inf if value is None else value) for value, text in figures])
    titles = (
        "epoch",
        "steps",
        "mean loss",
        "training top-1, %",
        "validation top-1",
        "validation top-5",
        "last lr",
        "time",
    )
    return details("Values of each epoch", table([(title, "number") for title in titles], rows, sortable=True))


def bad_videos(run: RunRecord) -> Html:
    """Videos that could not be read, or not wholly: each path and reason once, with how often."""
    counts: dict[tuple[str, str, str], int] = {}
    failed = [
        {"kind": "failed", **entry} for entry in (run.results or {}).get("failed") or () if isinstance(entry, dict)
    ]
    for event in (*failed, *run.of_kind("bad_video", "damaged_video")):
        entry = (str(event.get("path")), BAD_KINDS[event["kind"]], str(event.get("reason")))
        counts[entry] = counts.get(entry, 0) + 1
    if not counts:
        return tag("p", "No video was unreadable or damaged.")
    rows = [
        [(tag("span", path, class_="path"), path), *words, (count, count)] for (path, *words), count in counts.items()
    ]
    head = ["path", "where", "reason", ("times", "number")]
    more = (
        f"{len(rows) - MAX_BAD_ROWS} more stand in results.json and events.jsonl." if len(rows) > MAX_BAD_ROWS else ""
    )
    shown = table(head, rows[:MAX_BAD_ROWS], caption=f"{len(rows)} unreadable or damaged videos", sortable=True)
    return join(shown, tag("p", more, class_="note") if more else None)


def environment_table(run: RunRecord) -> Html:
    """environment.json: versions and machine, the variables folded."""
    if not run.environment:
        return tag("p", "No environment.json.")
    rows, folded = [], []
    for name, value in run.environment.items():
        if name == "restarts":
            continue
        if name == "variables" and isinstance(value, dict):
            folded.append(details("Environment variables", table(["variable", "value"], [*map(list, value.items())])))
        elif value not in (None, [], {}):
            rows.append([name, tag("code", written(value))])
    return join(table(["", "last start"], rows), *folded)


def written(value: object) -> str:
    """A value of a config or an environment as it is typed."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def config_part(runs: list[RunRecord], bases: list[Base]) -> Html:
    """The config of each run as difference from the shipped config it started from, and from the defaults."""
    if not any(run.config for run in runs):
        return tag("p", "No config.yaml.")
    base = bases[0]
    names = [base.name or "defaults", *(run.name for run in runs)]
    shown = dict.fromkeys(key for run in runs if run.config for key in differing(run.config, base.values))
    how = "named in the command" if base.named else "the nearest shipped one"
    words = f"Compared with the shipped config {base.name} ({how})" if base.name else "Compared with the defaults"
    intro = tag("p", f"{words}: {len(shown)} keys differ.", class_="note")
    rows = [_config_row(key, [base.values, *(run.config for run in runs)]) for key in shown]
    parts = [intro, table(["key", *names], rows, class_="config", caption="Config") if rows else None]
    if base.name:
        plain_defaults = defaults()
        keys = dict.fromkeys(key for run in runs if run.config for key in differing(run.config, plain_defaults))
        rows = [_config_row(key, [plain_defaults, *(run.config for run in runs)]) for key in keys]
        title = f"All {len(rows)} keys that differ from PySlowFast's and revvideo's defaults"
        parts.append(details(title, table(["key", "default", *names[1:]], rows, class_="config")))
    return join(*parts)


def _config_row(key: str, configs: list[dict]) -> list:
    values = [written(plain(config[key])) if key in config else "–" for config in configs]
    differs = len(set(values[1:])) > 1
    return [key, *(tag("code", value, class_="differs" if differs else None) for value in values)]
