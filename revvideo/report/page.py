"""The page: its parts in order, with style sheet and script inside, and a policy that lets it load nothing."""

import base64
import hashlib
from datetime import datetime, timezone
from importlib.resources import files

import revvideo
from revvideo.report.charts import draw_chart, legend
from revvideo.report.classes_section import (
    MAX_TABLE_CLASSES,
    calibration_part,
    class_comparison,
    class_table,
    confused_pairs,
    confusion_matrix,
    matrix_data,
)
from revvideo.report.config_difference import base_of
from revvideo.report.evaluation import Evaluation, evaluation_of
from revvideo.report.examples_section import examples_part
from revvideo.report.facts_section import (
    bad_videos,
    config_part,
    environment_table,
    epochs_table,
    starts_table,
    summary,
)
from revvideo.report.markup import Html, data_block, details, join, tag
from revvideo.report.run_record import RunRecord
from revvideo.report.series import common_axis, curve_charts
from revvideo.report.thumbnails import Budget

NUM_EXAMPLES = 8  # of each kind, of one run


def page(runs: list[RunRecord], budget: Budget) -> str:
    """The report of one run, or of several beside each other, as one HTML document that needs no other file.

    Args:
        runs: with different names.
        budget: of the moving pictures.
    """
    evaluations = [evaluation_of(run) for run in runs]
    curves, charts = _curves(runs)
    sections = {"summary": ("Summary", summary(runs)), "curves": ("Curves", curves)}
    comparison = class_comparison(runs, evaluations)
    if comparison is not None:
        sections["comparison"] = ("Classes", comparison)
    count = max(2, NUM_EXAMPLES // len(runs))
    shares = [Budget(budget.num_bytes // len(runs), budget.deadline) for _ in runs]
    if len(runs) == 1:
        sections |= _run_sections(runs[0], evaluations[0], count, shares[0], "0")
    else:
        folded = []
        for number, (run, evaluation, share) in enumerate(zip(runs, evaluations, shares)):
            parts = _run_sections(run, evaluation, count, share, str(number)).values()
            content = (join(tag("h3", title), part) for title, part in parts)
            folded.append(details(run.name, *content, open_=number == 0))
        sections["runs"] = ("Runs", join(*folded))
    sections["config"] = ("Config", config_part(runs, [base_of(run) for run in runs[:1]]))
    matrices = {
        str(number): matrix_data(each)
        for number, each in enumerate(evaluations)
        if each is not None and len(each.classes) > MAX_TABLE_CLASSES
    }
    return _document(runs, sections, {"charts": charts, "matrices": matrices})


def _curves(runs: list[RunRecord]) -> tuple[Html, list[dict]]:
    axis = common_axis(runs)
    charts = curve_charts(runs, axis)
    if not charts:
        return tag("p", "No training steps and no validations in events.jsonl."), []
    drawn = [draw_chart(chart, number, axis) for number, chart in enumerate(charts)]
    note = "Pale lines are single steps (or means of neighbours), strong ones moving averages."
    if charts[0].restarts:
        note += " Dashed lines with a triangle: the run was started again there."
    tables = (
        join(tag("h4", run.name) if len(runs) > 1 else None, epochs_table(run), starts_table(run)) for run in runs
    )
    parts = [
        legend([run.name for run in runs]),
        tag("div", *(figure for figure, _ in drawn), class_="charts"),
        tag("p", note, class_="note"),
        *tables,
    ]
    return join(*parts), [data for _, data in drawn]


def _run_sections(
    run: RunRecord, evaluation: Evaluation | None, count: int, budget: Budget, name: str
) -> dict[str, tuple[str, Html]]:
    """Of one run: id -> (title, content)."""
    if evaluation is None:
        nothing = tag("p", "Neither metrics.json nor predictions.npz: the run has not been evaluated.")
        sections = {"classes": ("Classes", nothing)}
    else:
        sections = {
            "confusion": (
                "Confusion",
                tag(
                    "div",
                    confusion_matrix(evaluation, name),
                    tag("div", confused_pairs(evaluation)),
                    calibration_part(evaluation),
                    class_="sides",
                ),
            ),
            "classes": ("Classes", class_table(evaluation)),
            "examples": ("Examples", examples_part(run, count, budget)),
        }
    return sections | {
        "bad": ("Unreadable videos", bad_videos(run)),
        "environment": ("Environment", environment_table(run)),
    }


def _document(runs: list[RunRecord], sections: dict[str, tuple[str, Html]], data: dict) -> str:
    here = files("revvideo.report")
    style = Html(here.joinpath("report.css").read_text(encoding="utf-8"))
    script = Html(here.joinpath("report.js").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    # Nothing is loaded from anywhere, and no script runs but this one, whatever stands in the page.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = " / ".join(run.name for run in runs)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title} - revvideo report"),
        tag("style", style),
    )
    links = (tag("a", words, href=f"#{name}") for name, (words, _) in sections.items())
    body = tag(
        "body",
        tag(
            "header",
            tag("h1", title),
            tag("p", f"revvideo {revvideo.__version__}, written {now}", class_="note"),
            tag("nav", *links, aria_label="sections"),
        ),
        tag("main", *(tag("section", tag("h2", words), part, id=name) for name, (words, part) in sections.items())),
        tag("div", role="status", id="tip", hidden=True),
        data_block("data", data),
        tag("script", script),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"
