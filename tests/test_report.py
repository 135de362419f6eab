"""The run report without a browser: what stands in it, that it escapes, partial runs, wrong input, the end of a run."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tiny
from report_runs import EVIL, write_run

from revvideo.errors import InputError
from revvideo.report import writer
from revvideo.report.charts import log_ticks, nice_ticks
from revvideo.report.config_difference import base_of, differing
from revvideo.report.evaluation import evaluation_of, examples
from revvideo.report.markup import compact, data_block, escape, tag, visible
from revvideo.report.run_record import FILES, read_run
from revvideo.report.series import common_axis, curve_charts, epochs, smoothed, thinned
from revvideo.report.thumbnails import Budget, encode_strip, read_frames, thumbnail
from revvideo.report.writer import write_report

VOID = {"meta", "link", "img", "input", "br"}
# All that a page of few classes is made of: whatever else is in it came in as text.
ELEMENTS = {
    *("html", "head", "meta", "link", "title", "style", "body", "header", "main", "nav", "section", "div", "script"),
    *("h1", "h2", "h3", "h4", "p", "a", "b", "i", "small", "code", "dl", "dt", "dd", "ul", "ol", "li", "span"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption"),
    *("svg", "g", "line", "path", "circle", "rect", "text", "input", "label", "output"),
}


class Parsed(HTMLParser):
    """A page as a browser takes it apart.

    Attributes:
        elements: (name, attributes) in order.
        texts: all text but that of scripts and the style sheet.
        scripts: text of each script.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == [], "elements are not closed"

    def handle_starttag(self, name: str, attributes: list) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self._open.append(name)
        if name == "script":
            self.scripts.append("")

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, text: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += text
        elif self._open and self._open[-1] != "style":
            self.texts.append(text)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def all(self, name: str) -> list[dict]:
        return [attributes for found, attributes in self.elements if found == name]

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> tuple[Path, Parsed]:
    """A run in which everything that others write is markup, and its report."""
    names = (f"wave {EVIL}", "' onmouseover=alert(2) x='", "<b>turn</b>")
    overrides = ("DATA.PATH_PREFIX", f"<i>{EVIL}")
    folder = tmp_path_factory.mktemp("report") / "a run <u>&amp;"
    write_run(folder, class_names=names, views=5, reason=f"<script>alert(3)</script>\0{EVIL}", overrides=overrides)
    return folder, Parsed(write_report([folder]))


def test_what_others_write_stays_text(evil):
    _, page = evil
    assert len(page.scripts) == 2  # the data and the one script of the page
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert {name for name, _ in page.elements} <= ELEMENTS
    assert "<b>turn</b>" in page.texts
    shown = EVIL.replace("\u202e", "\\u202e")
    assert f"wave {shown}" in page.texts
    assert f"<script>alert(3)</script>\\x00{shown}" in page.texts
    assert f"<i>{shown}" in page.texts
    assert "a run <u>&amp;" in page.texts


def test_nothing_is_loaded_and_only_the_own_script_may_run(evil):
    _, page = evil
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "poster", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
        for address in re.findall(r"url\((.*?)\)", attributes.get("style", "")):
            assert address.startswith("data:image/")
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_its_figures_are_those_of_the_run(evil):
    folder, page = evil
    results = json.loads((folder / "results.json").read_text())
    assert f"{results['top1_acc']:.2f} %" in page.texts
    assert "95 %: {:.1f} to {:.1f}".format(*results["top1_interval"]) in page.texts
    assert results["protocol"] in page.texts
    metrics = json.loads((folder / "metrics.json").read_text())
    cells = [text for text in page.texts if re.fullmatch(r"\d+", text)]
    for _, _, count in metrics["confusion"]:
        assert str(count) in cells
    wrong = sum(count for label, guess, count in metrics["confusion"] if label != guess)
    cards = [each for each in page.all("li") if each.get("class") == "card"]
    assert len(cards) == min(8, wrong) + min(8, metrics["num_videos"] - wrong)
    assert "stopped by SIGTERM" in page.texts


def test_a_run_that_lacks_any_file_still_has_a_report(tmp_path):
    for name in FILES:
        page = Parsed(write_report([write_run(tmp_path / name.replace(".", "_"), missing=(name,))]))
        assert page.all("section")
    only = tmp_path / "only"
    only.mkdir()
    (only / "events.jsonl").write_text('{"kind": "start", "time": 1.0, "restart": 0}\n{"kind": "tra')
    page = Parsed(write_report([only]))
    assert "No training steps and no validations in events.jsonl." in page.texts
    assert "Neither metrics.json nor predictions.npz: the run has not been evaluated." in page.texts


def test_files_of_other_content_are_told_and_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "results.json").write_text("[1, 2]")
    (folder / "metrics.json").write_text('{"confusion": [[0, 99, 1]], "per_class": []}')
    (folder / "environment.json").write_text("{half")
    (folder / "config.yaml").write_text("a: [")
    page = Parsed(write_report([folder]))
    for words in (
        "results.json cannot be read: it holds a list",
        "metrics.json is not as",
        "environment.json cannot be",
    ):
        assert words in page.text
    (folder / "predictions.npz").write_bytes(b"PK no archive")
    assert "predictions.npz cannot be read" in Parsed(write_report([folder])).text


def test_metrics_and_predictions_give_the_same_classes(tmp_path):
    written = read_run(write_run(tmp_path / "run"))
    computed = read_run(write_run(tmp_path / "without", missing=("metrics.json",)))
    computed.class_names = written.class_names
    first, second = evaluation_of(written), evaluation_of(computed)
    assert first.confusion == second.confusion
    assert [each.interval for each in first.classes] == [each.interval for each in second.classes]
    assert first.calibration == second.calibration
    assert sum(each.num_failed for each in first.classes) == 1  # which only metrics.json tells


def test_of_a_step_made_twice_the_last_line_counts(tmp_path):
    run = read_run(write_run(tmp_path / "run", restarts=2, epochs=3))
    assert list(run.steps) == list(range(30))
    lines = tiny.events(run.folder, "train_step")
    assert len(lines) == 34
    assert [event["loss"] for event in run.steps.values()] == [
        {event["step"]: event["loss"] for event in lines}[step] for step in range(30)
    ]
    axis = common_axis([run])
    charts = {chart.title: chart for chart in curve_charts([run], axis)}
    assert (axis.title, axis.steps_per_epoch) == ("epoch", (10.0,))
    loss = charts["Training loss"]
    assert [x for _, x, _ in loss.restarts] == [0.8, 1.8]  # each two steps before the tenth
    assert all("stopped by SIGTERM" in words for *_, words in loss.restarts)
    validation = next(line for line in charts["Top-1 accuracy, %"].lines if line.name == "validation")
    assert (validation.x, validation.y) == ([1.0, 2.0, 3.0], [30.0, 40.0, 50.0])
    found = epochs(run)
    assert [epoch.number for epoch in found] == [1, 2, 3]
    assert found[1].loss == pytest.approx(np.mean([run.steps[step]["loss"] for step in range(10, 20)]))
    assert found[2].validation["top1_acc"] == 50.0


def test_several_runs_stand_beside_each_other(tmp_path):
    runs = [write_run(tmp_path / f"{name}" / "run", seed=number) for number, name in enumerate("ab")]
    runs.append(write_run(tmp_path / "other", class_names=("one", "two"), overrides=("SOLVER.BASE_LR", 0.123)))
    page = Parsed(write_report(runs, tmp_path / "all.html"))
    lines = {line["name"] for line in page.data["charts"][0]["lines"]}
    assert {name.split(":")[0] for name in lines} == {"a/run", "b/run", f"{tmp_path.name}/other"}
    assert "Top-1 of each class, %" not in page.texts  # the third has other classes
    assert "0.123" in page.texts
    assert "Top-1 of each class, %" in Parsed(write_report(runs[:2], tmp_path / "two.html")).texts


def test_lines_are_thinned_and_smoothed_without_loss_of_level():
    points = [(float(number), float(number % 7)) for number in range(1000)]
    assert thinned(points, 1000) == ([x for x, _ in points], [y for _, y in points])
    x, y = thinned(points, 90)
    assert (len(x), x[-1]) == (90, 999.0)
    assert np.mean(y) == pytest.approx(np.mean([y for _, y in points]), abs=0.02)
    line = [2.0 * value for value in range(100)]
    assert smoothed(line) == pytest.approx(line)  # a straight line stays what it is, to its ends


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-5, 1e6), (1e-9, 3e-9), (97, 103)])
def test_ticks_enclose_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 * (high - low)
    assert ticks[-1] >= high - 1e-9 * (high - low)
    assert 3 <= len(ticks) <= 12
    if low > 0:
        ticks = log_ticks(low, high)
        assert ticks[0] <= low * 1.001
        assert ticks[-1] >= high * 0.999


def test_examples_are_the_surest_and_show_their_views(tmp_path):
    run = read_run(write_run(tmp_path / "run", views=5, num_videos=60))
    best, worst = examples(run, 6)
    assert all(example.is_right for example in best)
    assert not any(example.is_right for example in worst)
    assert {example.label for example in best[:3]} == {0, 1, 2}  # one of each class first
    for example in (*best, *worst):
        assert example.scores.sum() == pytest.approx(1)
        assert example.views.mean(axis=0) == pytest.approx(example.scores, abs=1e-6)
        assert example.label in dict(example.top(2))
    surplus = [example.scores[example.predicted] - example.scores[example.label] for example in worst]
    assert surplus == sorted(surplus, reverse=True)


def test_thumbnails(tmp_path):
    folder = write_run(tmp_path / "run")
    frames = read_frames(str(folder / "videos/0.mp4"))
    assert frames.shape == (8, 96, 144, 3)
    assert len({frame.tobytes() for frame in frames}) == 8
    strip, width = encode_strip(frames)
    assert (strip.startswith("data:image/webp;base64,"), width) == (True, 144)
    budget = Budget.of(100_000, 60)
    assert 'class="film"' in thumbnail(str(folder / "videos/1.mp4"), budget)
    assert budget.num_bytes < 100_000
    assert "No such file" in thumbnail(str(folder / "videos/<none>.mp4"), budget)
    assert "left out" in thumbnail(str(folder / "videos/1.mp4"), Budget.of(10, 60))
    assert "left out" in thumbnail(str(folder / "videos/1.mp4"), Budget.of(100_000, -1))


def test_the_config_is_compared_with_the_shipped_one(tmp_path):
    run = read_run(write_run(tmp_path / "run", overrides=("SOLVER.BASE_LR", 0.5)))
    base = base_of(run)
    assert (base.name, base.named) == ("demo/REV_MVIT_DEMO", True)
    assert set(differing(run.config, base.values)) == {"OUTPUT_DIR", "MODEL.NUM_CLASSES", "SOLVER.BASE_LR"}
    run.starts.clear()  # nothing tells what it started from: the nearest
    assert (base_of(run).name, base_of(run).named) == ("demo/REV_MVIT_DEMO", False)
    run.config["MVIT.DEPTH"] = 77
    assert base_of(run).name == ""


def test_markup():
    assert tag("a", "<", tag("b", None, 1), title='"', hidden=True, class_=None) == (
        '<a title="&quot;" hidden>&lt;<b>1</b></a>'
    )
    assert escape("a\ud800\x1b[1m") == r"a\ud800\x1b[1m"
    assert visible("\u00e9\u4e2d\n") == "\u00e9\u4e2d\n"
    block = data_block("d", {"x": "</script><!--&\u2028"})
    assert block.count("<") == 2
    assert json.loads(block[block.index(">") + 1 : block.rindex("<")]) == {"x": "</script><!--&\u2028"}
    assert [compact(value) for value in (0.05, 12.345, 0.00025, 1080, 2.5e7, None)] == [
        *("0.05", "12.35", "2.5e-4", "1080", "2.5e7", "–")
    ]


def test_the_command(tmp_path):
    folder = write_run(tmp_path / "run")
    assert tiny.done(tiny.command("report", folder)).out.strip() == str(folder / "report.html")
    out = tmp_path / "x.html"
    assert tiny.done(tiny.command("report", folder, "--out", out)).out.strip() == str(out)
    assert out.stat().st_size < 3e6
    for words, expected in {
        (tmp_path / "nothing",): "is no folder",
        (tmp_path,): "has none of events.jsonl",
        (folder, folder / "."): "is named twice",
        (folder, "--out", tmp_path): "is a folder; expected a file",
        (folder, "--out", tmp_path / "no" / "x.html"): "cannot be written",
    }.items():
        outcome = tiny.command("report", *words)
        assert (outcome.code, expected in outcome.err, outcome.err.count("\n")) == (2, True, 1), outcome.err


def test_a_run_ends_with_its_report(data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    on = {"RUN.REPORT": True}
    tiny.done(tiny.run_net(data, folder, on))
    page = Parsed(folder / "report.html")
    assert len([each for each in page.all("div") if each.get("class") == "film"]) == tiny.NUM_TEST
    before = (folder / "report.html").read_bytes()

    def fail(*_):
        raise InputError("no page today")

    monkeypatch.setattr(writer, "page", fail)
    outcome = tiny.done(tiny.run_net(data, folder, on, {"TRAIN.ENABLE": False}))
    assert "no report was written (InputError: no page today)" in outcome.err
    assert (folder / "report.html").read_bytes() == before


def test_a_run_that_fails_a_check_has_a_report_too(data, finished, tmp_path):
    lists, (trained, _) = tmp_path / "data", finished
    lists.mkdir()
    (lists / "broken.mp4").write_text("no video")
    tiny.write_list(lists / "test.csv", [(str(data / "test1.mp4"), 2), (str(lists / "broken.mp4"), 3)])
    checkpoint = max((trained / "checkpoints").glob("checkpoint_*.pyth"))
    layer = {"RUN.REPORT": True, "TRAIN.ENABLE": False, "TEST.CHECKPOINT_FILE_PATH": checkpoint, "EVAL.STRICT": True}
    outcome = tiny.run_net(lists, tmp_path / "run", tiny.RANDOM, layer)
    assert outcome.code == 3, outcome.err
    assert str(lists / "broken.mp4") in Parsed(tmp_path / "run" / "report.html").texts
