"""The surest right and wrong videos of a run, playing, with their scores."""

from pathlib import Path

import numpy as np

from revvideo.report.evaluation import Example, examples, is_softmax
from revvideo.report.markup import Html, join, number, tag
from revvideo.report.run_record import RunRecord
from revvideo.report.thumbnails import Budget, thumbnail

TOP = 3
VIEW_HEIGHT, VIEW_WIDTH = 34, 150


def examples_part(run: RunRecord, count: int, budget: Budget) -> Html:
    """Best and worst examples.

    Args:
        run: whose predictions.npz is shown.
        count: at most so many of each.
        budget: of the moving pictures.
    """
    best, worst = examples(run, count)
    if not best and not worst:
        return tag("p", "No predictions.npz: no examples.")
    unit = "Scores are mean probabilities over the views. " if is_softmax(run) else ""
    views = (
        "Upright bars: each view's score of the predicted class, in a wrong one also of the true class (narrow, blue). "
    )
    words = f"{unit}{views if (best + worst)[0].views is not None else ''}Hold the pointer over a clip to stop it."
    parts = [tag("p", words, class_="note")]
    if worst:
        parts += [tag("h4", "Wrong, and sure of it"), _cards(run, worst, budget)]
    if best:
        parts += [tag("h4", "Right, and sure of it"), _cards(run, best, budget)]
    return join(*parts)


def _cards(run: RunRecord, shown: list[Example], budget: Budget) -> Html:
    return tag("ul", *(_card(run, example, budget) for example in shown), class_="cards")


def _card(run: RunRecord, example: Example, budget: Budget) -> Html:
    scores = [
        tag(
            "li",
            tag("span", run.class_name(label), class_="name"),
            tag("span", _score(run, score)),
            class_="bar true" if label == example.label else "bar",
            style=f"--share:{min(1.0, max(0.0, score)):.3f}",
        )
        for label, score in example.top(min(TOP, len(example.scores)))
    ]
    return tag(
        "li",
        thumbnail(example.path, budget),
        tag("p", _file_name(example.path), title=example.path, class_="path"),
        tag("p", "true: ", tag("b", run.class_name(example.label)), class_="true"),
        tag("ol", *scores, class_="scores"),
        _views(run, example),
        class_="card",
    )


def _score(run: RunRecord, score: float) -> str:
    return f"{100 * score:.1f} %" if is_softmax(run) else f"{score:.3g}"


def _file_name(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _views(run: RunRecord, example: Example) -> Html | None:
    """A bar for each view: the score of the predicted class, and within it that of the true one where they differ."""
    if example.views is None:
        return None
    views = example.views.astype(np.float64)
    top = max(1.0 if is_softmax(run) else 0.0, float(views.max())) or 1.0
    width = VIEW_WIDTH / len(views)
    bars = []
    for place, row in enumerate(views):
        words = f"view {place}: " + ", ".join(
            f"{run.class_name(label)} {number(float(row[label]), 3)}"
            for label in dict.fromkeys((example.predicted, example.label))
        )
        x, thick = place * width, max(1.0, width - 2)
        bars.append(_bar(x, thick, row[example.predicted] / top, "right" if example.is_right else "wrong", words))
        if not example.is_right:
            bars.append(_bar(x, thick / 2, row[example.label] / top, "right", words))
    return tag(
        "svg",
        tag("title", f"scores of the {len(views)} views; the first bars are those of the first views"),
        *bars,
        tag("line", x1=0, x2=VIEW_WIDTH, y1=VIEW_HEIGHT, y2=VIEW_HEIGHT, class_="grid"),
        viewBox=f"0 0 {VIEW_WIDTH} {VIEW_HEIGHT + 1}",
        role="img",
        class_="views",
    )


def _bar(x: float, width: float, share: float, kind: str, words: str) -> Html:
    height = max(0.5, VIEW_HEIGHT * min(1.0, max(0.0, float(share))))
    return tag(
        "rect",
        tag("title", words),
        x=f"{x:.1f}",
        y=f"{VIEW_HEIGHT - height:.1f}",
        width=f"{width:.1f}",
        height=f"{height:.1f}",
        class_=kind,
        data_tip=words,
    )
