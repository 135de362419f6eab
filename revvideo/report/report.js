"use strict";
// Adds to a page that is whole without it: read-outs in charts and matrix, sorting, filtering. Text is set as text only.
document.documentElement.classList.add("script");
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function element(name, text, attributes) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  return made;
}

function figure(value) {
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return size < 1000 ? String(Number(value.toPrecision(4))) : value.toFixed(0);
}

// --- charts: one cursor for all of them ---

const charts = [...document.querySelectorAll("svg[data-chart]")].map((svg) => {
  const number = svg.dataset.chart;
  const output = document.querySelector(`output[data-output="${number}"]`);
  return { svg, output, resting: [...output.childNodes], cursor: svg.querySelector(".cursor"), ...data.charts[number] };
});

function nearest(values, wanted) {
  let low = 0, high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle; else high = middle;
  }
  return wanted - values[low] <= values[high] - wanted ? low : high;
}

function place(value, [low, high, start, end], log) {
  const at = log ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (value - low) / (high - low);
  return start + at * (end - start);
}

function drawn(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function showAt(x) {
  for (const chart of charts) {
    const log = chart.y.log !== undefined && chart.svg.parentNode.querySelector(".scale").checked;
    const scale = log ? chart.y.log : chart.y.linear;
    const across = place(x, chart.x);
    const marks = [drawn("line", { x1: across, x2: across, y1: scale[2], y2: scale[3] })];
    const words = [element("span", figure(x))];
    for (const line of chart.lines) {
      const at = nearest(line.x, x);
      const value = log ? Math.max(line.y[at], scale[0]) : line.y[at];
      const dot = drawn("circle", { cx: place(line.x[at], chart.x), cy: place(value, scale, log), r: 3 });
      dot.setAttribute("class", `c${line.colour}`);
      marks.push(dot);
      const item = element("span", null);
      item.append(element("i", "", { class: `key c${line.colour}` }), `${line.name} `, element("b", figure(line.y[at])));
      words.push(item);
    }
    chart.cursor.replaceChildren(...marks);
    chart.output.replaceChildren(...words);
  }
}

function rest() {
  for (const chart of charts) {
    chart.cursor.replaceChildren();
    chart.output.replaceChildren(...chart.resting);
  }
}

for (const chart of charts) {
  const [low, high, start, end] = chart.x;
  let at = high;
  chart.svg.addEventListener("pointermove", (event) => {
    const box = chart.svg.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width * chart.svg.viewBox.baseVal.width;
    at = low + Math.min(1, Math.max(0, (across - start) / (end - start))) * (high - low);
    showAt(at);
  });
  chart.svg.addEventListener("pointerleave", rest);
  chart.svg.addEventListener("blur", rest);
  chart.svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    at = Math.min(high, Math.max(low, at + step * (high - low) / 100));
    showAt(at);
  });
}

// --- tables ---

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column], value = cell.dataset.value;
    if (value === undefined) return cell.textContent;
    const figure = { "inf": Infinity, "-inf": -Infinity }[value] ?? Number(value);
    return Number.isNaN(figure) ? value : figure;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? (a < b ? -1 : Number(a > b))
    : String(a).localeCompare(String(b), undefined, { numeric: true });
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort((a, b) => direction * compare(a[0], b[0]));
  body.append(...rows.map((pair) => pair[1]));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", head.textContent, { type: "button" });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      // Figures begin with the largest, words with the first.
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const next = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", next);
      sortBy(table, column, next === "ascending" ? 1 : -1);
    });
  });
}

for (const part of document.querySelectorAll(".filtered")) {
  const filter = part.querySelector(".filter");
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of part.querySelector("tbody").rows) {
      row.hidden = ![...row.cells].some((cell) => cell.textContent.toLowerCase().includes(wanted));
    }
  });
}

// --- the matrix of many classes ---

for (const picture of document.querySelectorAll("img[data-matrix]")) {
  const { names, videos, cells } = data.matrices[picture.dataset.matrix];
  const counts = new Map(cells.map(([label, guess, count]) => [label * names.length + guess, count]));
  const readout = document.querySelector(`output[data-readout="${picture.dataset.matrix}"]`);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const cell = (offset, length) => Math.min(names.length - 1, Math.max(0, Math.floor(offset / length * names.length)));
    const label = cell(event.clientY - box.top, box.height), guess = cell(event.clientX - box.left, box.width);
    const count = counts.get(label * names.length + guess) || 0;
    const share = videos[label] ? ` (${(100 * count / videos[label]).toFixed(1)} %)` : "";
    readout.textContent = `${names[label]} taken for ${names[guess]}: ${count} of ${videos[label]}${share}`;
  });
}

// --- words of bars ---

const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const words = event.target instanceof Element ? event.target.getAttribute("data-tip") : null;
  tip.hidden = words === null;
  if (words === null) return;
  tip.textContent = words;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
});
