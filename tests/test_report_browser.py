"""The report in a headless Chromium: no error, no request, tables sort, charts answer, narrow pages, contrast."""

import pytest
from browser import browser, find_browser
from report_runs import EVIL, write_run

from revvideo.report.writer import write_report

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium here (chromium, google-chrome)")

# WCAG 2.2: the ratio of the luminances of every visible text and of what is behind it.
CONTRAST = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), parent = walker.currentNode.parentElement;
    if (!text || !parent.checkVisibility() || ["SCRIPT", "title"].includes(parent.tagName)) continue;
    const style = getComputedStyle(parent);
    const ink = rgba(parent instanceof SVGElement ? style.fill : style.color);
    const [high, low] = [light(ink), light(behind(parent))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), text.slice(0, 40), parent.tagName]);
  }
  found.sort((a, b) => a[0] - b[0]);
  return { texts: found.length, lowest: found[0] };
})()
"""

# A place of an element, in shares of its width and height, that was scrolled into the window.
MIDDLE = """((selector, across, down) => {
  const found = document.querySelector(selector);
  found.scrollIntoView({ block: "start" });
  const box = found.getBoundingClientRect();
  return [box.left + box.width * across, box.top + box.height * down];
})"""

# Pixels of the smallest words, those in charts apart: they scale with the chart.
SMALLEST = """
Math.min(...[...document.querySelectorAll("p, td, th, a, dd, dt, small, code, summary, output, li")]
  .filter((each) => each.textContent && each.checkVisibility())
  .map((each) => parseFloat(getComputedStyle(each).fontSize)))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run whose class names are markup, with scores of each view."""
    folder = tmp_path_factory.mktemp("report") / "run"
    names = (f"wave {EVIL}", "b\" onmouseover='alert(2)", "<b>turn</b>")
    return write_report([write_run(folder, class_names=names, views=5, reason=f"<script>alert(3)</script> {EVIL}")])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The reports of 400 classes: one run, and two beside each other."""
    folder = tmp_path_factory.mktemp("large")
    names = tuple(f"class number {number}" for number in range(400))
    runs = [write_run(folder / f"run{i}", class_names=names, num_videos=1200, seed=i, restarts=i) for i in range(2)]
    return write_report(runs[:1]), write_report(runs, folder / "both.html")


def check_clean(page, report, **options) -> None:
    page.open(report, **options)
    assert page.run("document.querySelectorAll('main section').length") >= 4
    assert page.errors == []
    assert page.requests == []


def test_markup_of_others_stays_text(page, report):
    check_clean(page, report)
    assert page.run("document.querySelectorAll('main img[onerror], main script, td b, [onmouseover]').length") == 0
    assert page.run("[...document.querySelectorAll('.classes .name')].map((name) => name.textContent)") == [
        "wave " + EVIL.replace("\u202e", "\\u202e"),
        "b\" onmouseover='alert(2)",
        "<b>turn</b>",
    ]
    assert page.run("document.querySelectorAll('.views rect').length") > 0


def test_a_long_name_of_one_word_does_not_push_the_figures_away(page, tmp_path):
    report = write_report([write_run(tmp_path / "run", class_names=("x" * 300, "jump", "turn"))])
    page.open(report, width=1240)
    tables = "[...document.querySelectorAll('.confusion, .classes')].map((each) => each.getBoundingClientRect().width)"
    assert max(page.run(tables)) <= 1240


def test_tables_sort_by_figures_and_by_words(page, report):
    page.open(report)
    script = """((title) => {
      const table = document.querySelector("table.classes");
      const button = [...table.querySelectorAll("button")].find((each) => each.textContent === title);
      button.click();
      const column = button.closest("th").cellIndex;
      return { sort: button.closest("th").getAttribute("aria-sort"),
               values: [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value) };
    })"""
    for title in ("top-1, %", "#"):
        first, second = page.run(f"{script}('{title}')"), page.run(f"{script}('{title}')")
        assert (first["sort"], second["sort"]) == ("descending", "ascending")
        assert list(map(float, first["values"])) == sorted(map(float, first["values"]), reverse=True)
        assert list(map(float, second["values"])) == sorted(map(float, second["values"]))
    words = page.run(f"{script}('class')")
    assert words["sort"] == "ascending"
    assert len(words["values"]) == 3
    assert page.errors == []


def test_a_chart_reads_out_its_values_and_has_two_scales(page, report):
    page.open(report)
    resting = page.run("document.querySelector('output[data-output=\"0\"]').textContent")
    page.move_to(*page.run(MIDDLE + "('svg[data-chart]', 0.5, 0.5)"))
    read = page.run("[...document.querySelectorAll('output[data-output]')].map((each) => each.textContent)")
    assert read[0] != resting
    assert all("loss" in text or index for index, text in enumerate(read))
    assert page.run("document.querySelectorAll('.cursor circle').length") >= len(read)
    shown = "['linear', 'log'].map((name) => getComputedStyle(document.querySelector('svg .' + name)).display)"
    assert page.run(shown) == ["inline", "none"]
    page.run("document.querySelector('.scale').click()")
    assert page.run(shown) == ["none", "inline"]
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_that_of_wcag_aa(page, report, scheme):
    page.open(report, scheme=scheme)
    page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = page.run(CONTRAST)
    assert found["texts"] > 200
    assert found["lowest"][0] >= 4.5, found["lowest"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_narrow_page_scrolls_in_its_tables_only(page, large, report, which):
    for file in (large[which], report):
        check_clean(page, file, width=390, height=844)
        page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert page.run(SMALLEST) >= 12


def test_400_classes(page, large):
    check_clean(page, large[0])
    assert large[0].stat().st_size < 3e6
    page.move_to(*page.run(MIDDLE + "('.matrix', 7.5 / 400, 7.5 / 400)"))
    assert page.run("document.querySelector('.readout').textContent").startswith(
        "class number 7 taken for class number 7: "
    )
    script = """(() => { const f = document.querySelector(".filter"); f.value = "NUMBER 39";
      f.dispatchEvent(new Event("input"));
      return [...document.querySelectorAll(".filtered tbody tr")].filter((row) => !row.hidden).length; })()"""
    assert page.run(script) >= 11  # 39, 390 to 399, and rows that name one of them
    check_clean(page, large[1])
    assert page.run("document.querySelectorAll('.legend li').length") == 2


def test_without_scripts_all_is_there_but_what_needs_them(page, report):
    page.open(report, script=False)
    root = page.call("DOM.getDocument", depth=-1)["root"]

    def count(selector: str) -> int:
        return len(page.call("DOM.querySelectorAll", nodeId=root["nodeId"], selector=selector)["nodeIds"])

    assert count("svg[data-chart] .linear path") >= 8
    assert count(".confusion td") == 9
    assert count(".film") >= 4
    assert page.requests == []
