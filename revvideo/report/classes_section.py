"""Confusion matrix, most confused pairs, calibration and the table of classes."""

import base64
import io
import math

import numpy as np

from revvideo.report.charts import calibration_chart
from revvideo.report.evaluation import ClassFigures, Evaluation
from revvideo.report.markup import Html, number, table, tag
from revvideo.report.run_record import RunRecord

MAX_TABLE_CLASSES = 20  # above, the matrix is a picture with a read-out
MAX_PAIRS = 20
RIGHT_COLOUR, WRONG_COLOUR = (43, 120, 196), (217, 95, 14)  # visible on a light and on a dark ground
PALEST = 0.22


def confusion_matrix(evaluation: Evaluation, name: str) -> Html:
    """Rows are true classes, columns predicted ones; the tint is the share of the row.

    Args:
        evaluation: of a run.
        name: of the run's data in the page's script.
    """
    if len(evaluation.classes) <= MAX_TABLE_CLASSES:
        return _matrix_table(evaluation)
    size = len(evaluation.classes)
    picture = tag(
        "img",
        src=_matrix_picture(evaluation),
        alt=f"confusion matrix of {size} classes; the most frequent confusions are in the table of pairs",
        class_="matrix",
        data_matrix=name,
    )
    return tag(
        "div",
        tag("p", "Rows: true class, columns: predicted class, both by number. Point at a cell.", class_="note"),
        tag("output", "\u00a0", data_readout=name, class_="readout"),
        picture,
    )


def _matrix_table(evaluation: Evaluation) -> Html:
    classes = evaluation.classes
    counts = {(label, guess): count for label, guess, count in evaluation.confusion}
    head = [
        tag("th", "true \\ predicted", scope="col"),
        *(tag("th", c.number, scope="col", title=c.name) for c in classes),
    ]
    rows = []
    for true in classes:
        cells = [tag("th", tag("span", true.number, class_="index"), f" {true.name}", scope="row")]
        for guess in classes:
            count = counts.get((true.number, guess.number), 0)
            words = _cell_words(true, guess, count)
            cells.append(
                tag(
                    "td",
                    count or "·",
                    title=words,
                    class_=("right" if true is guess else "wrong") if count else "none",
                    style=f"--share:{count / true.num_videos:.3f}" if count else None,
                )
            )
        rows.append(tag("tr", *cells))
    inner = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="confusion")
    region = tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label="confusion matrix")
    return tag("div", region, class_="fitting")


def _cell_words(true: ClassFigures, guess: ClassFigures, count: int) -> str:
    share = f" ({100 * count / true.num_videos:.1f} %)" if true.num_videos else ""
    return f"{true.name} taken for {guess.name}: {count} of {true.num_videos}{share}"


def _matrix_picture(evaluation: Evaluation) -> str:
    """A data URI: one pixel a cell, transparent where nothing is."""
    from PIL import Image

    size = len(evaluation.classes)
    pixels = np.zeros((size, size, 4), np.uint8)
    for label, guess, count in evaluation.confusion:
        share = math.sqrt(count / max(1, evaluation.classes[label].num_videos))  # a single video is still seen
        alpha = PALEST + (1 - PALEST) * min(1.0, share)
        pixels[label, guess] = (*(RIGHT_COLOUR if label == guess else WRONG_COLOUR), round(255 * alpha))
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def matrix_data(evaluation: Evaluation) -> dict:
    """What the script needs to read out a cell of the picture."""
    return {
        "names": [figures.name for figures in evaluation.classes],
        "videos": [figures.num_videos for figures in evaluation.classes],
        "cells": [list(entry) for entry in evaluation.confusion],
    }


def confused_pairs(evaluation: Evaluation) -> Html:
    """The confusions that occur most often, with how often the other way round."""
    counts = {(label, guess): count for label, guess, count in evaluation.confusion}
    rows = []
    for label, guess, count in evaluation.confused[:MAX_PAIRS]:
        true, other = evaluation.classes[label], evaluation.classes[guess]
        share = 100 * count / true.num_videos if true.num_videos else None
        rows.append(
            [true.name, other.name, (count, count), (number(share, 1), share), (counts.get((guess, label), 0),) * 2]
        )
    if not rows:
        return tag("p", "No video was taken for another class.")
    head = ["true class", "taken for", ("videos", "number"), ("%", "number"), ("reverse", "number")]
    return table(head, rows, caption="Most confused pairs", sortable=True)


def class_table(evaluation: Evaluation) -> Html:
    """Every class with its accuracy, interval and the class it is most often taken for."""
    with_failed = any(figures.num_failed for figures in evaluation.classes)
    head = [
        ("#", "number"),
        "class",
        ("videos", "number"),
        *([("unreadable", "number")] if with_failed else []),
        ("top-1, %", "number"),
        ("95 % interval", "number"),
        ("top-5, %", "number"),
        "most often taken for",
    ]
    rows = []
    for figures in evaluation.classes:
        top5 = 100 * figures.top5_correct / figures.num_videos if figures.num_videos else None
        low_high = figures.interval
        other = figures.taken_for
        rows.append(
            [
                (figures.number, figures.number),
                (tag("span", figures.name, class_="name"), figures.name),
                (figures.num_videos, figures.num_videos),
                *([(figures.num_failed, figures.num_failed)] if with_failed else []),
                (bar(figures.accuracy), _sortable(figures.accuracy)),
                (f"{low_high[0]:.0f} to {low_high[1]:.0f}" if low_high else "–", _sortable(low_high and low_high[0])),
                (number(top5, 1), _sortable(top5)),
                (f"{evaluation.classes[other[0]].name} ({other[1]})", other[1]) if other else ("", 0),
            ]
        )
    filter_ = tag("input", type="search", class_="filter", placeholder="filter classes", aria_label="filter classes")
    return tag("div", filter_, table(head, rows, caption="Classes", sortable=True, class_="classes"), class_="filtered")


def bar(percent: float | None) -> Html:
    """A percentage with a bar under it."""
    if percent is None:
        return tag("span", "–")
    return tag("span", number(percent, 1), class_="bar", style=f"--share:{percent / 100:.3f}")


def _sortable(value: float | None) -> float:
    return -1.0 if value is None else value


def calibration_part(evaluation: Evaluation) -> Html | None:
    """The reliability diagram; None where scores are no probabilities."""
    if evaluation.calibration is None:
        return None
    error = number(100 * evaluation.calibration["ece"], 1)
    words = (
        f"Expected calibration error {error} %. Below the line the model is surer than it is right. "
        f"{len(evaluation.calibration['bins'])} bins of confidence."
    )
    drawing = calibration_chart(evaluation.calibration["bins"])
    return tag("div", tag("h4", "Calibration"), drawing, tag("p", words, class_="note"), class_="reliability")


def class_comparison(runs: list[RunRecord], evaluations: list[Evaluation | None]) -> Html | None:
    """The accuracy of each class in several runs; None unless two of them name the same classes."""
    shown = [(run, each) for run, each in zip(runs, evaluations) if each is not None]
    if len(shown) < 2 or len({tuple(figures.name for figures in each.classes) for _, each in shown}) > 1:
        return None
    head = [("#", "number"), "class", *((run.name, "number") for run, _ in shown), ("spread", "number")]
    rows = []
    for place, figures in enumerate(shown[0][1].classes):
        accuracies = [each.classes[place].accuracy for _, each in shown]
        known = [accuracy for accuracy in accuracies if accuracy is not None]
        spread = max(known) - min(known) if known else None
        rows.append(
            [
                (figures.number, figures.number),
                (figures.name, figures.name),
                *((bar(accuracy), _sortable(accuracy)) for accuracy in accuracies),
                (number(spread, 1), _sortable(spread)),
            ]
        )
    return table(head, rows, caption="Top-1 of each class, %", sortable=True, class_="classes")
