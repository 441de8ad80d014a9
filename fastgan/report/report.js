"use strict";

const charts = JSON.parse(document.getElementById("data").textContent);

function add(parent, name, attributes, words) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (words !== undefined) element.textContent = words;
  return parent.appendChild(element);
}

function words(value) {
  const size = Math.abs(value);
  if (size >= 1e4 && size < 1e9) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

// A handful of round numbers from low to high.
function ticks(low, high, count) {
  const rough = (high - low) / count, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5].find(factor => factor * unit >= rough) || 10), found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function powers(low, high) {
  const found = [];
  for (let i = Math.floor(Math.log10(low)); 10 ** i <= high; i++)
    for (const factor of high / low > 300 ? [1] : [1, 3]) found.push(factor * 10 ** i);
  return found.filter(value => value >= low && value <= high);
}

// From [low, high] to [start, end].
function scale([low, high], [start, end], log) {
  const along = log ? Math.log : value => value, from = along(low), to = along(high);
  return value => start + (along(value) - from) / (to - from) * (end - start);
}

function range(values, log) {
  const low = Math.min(...values), high = Math.max(...values), room = (high - low) * 0.04;
  if (low === high) return log ? [low / 2, low * 2] : [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)];
  if (log) return [low / 1.1, high * 1.1];
  return low >= 0 && low < high / 2 ? [0, high + room] : [low - room, high + room];
}

// The place in xs, which ascend, that is nearest to x.
function nearest(xs, x) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - x) <= Math.abs(xs[best] - x)) best = i;
  return best;
}

function draw(plot, chart) {
  const width = plot.clientWidth, height = Math.round(Math.min(280, Math.max(190, width * 0.45)));
  const xs = chart.series.flatMap(one => one.x), ys = chart.series.flatMap(one => one.y);
  const first = Math.min(...xs), last = Math.max(...xs);
  const stretch = range(ys, chart.log), marks = chart.log ? powers(...stretch) : ticks(...stretch, 5);
  const left = 12 + 7 * Math.max(...marks.map(mark => words(mark).length)), bottom = height - 38;
  const right = width - 8 - 3.5 * words(last).length;  // half of the last label
  const x = scale(first === last ? [first - 1, last + 1] : [first, last], [left, right], false);
  const y = scale(stretch, [bottom, 10], chart.log);
  plot.replaceChildren();
  const svg = add(plot, "svg", {viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true"});
  for (const mark of marks) {
    add(svg, "line", {class: "rule", x1: left, x2: right, y1: y(mark), y2: y(mark)});
    add(svg, "text", {x: left - 6, y: y(mark) + 4, "text-anchor": "end"}, words(mark));
  }
  const steps = first === last ? [first] : ticks(first, last, Math.max(2, Math.floor((width - left) / 90)));
  for (const step of steps)
    add(svg, "text", {x: x(step), y: bottom + 17, "text-anchor": "middle"}, step.toLocaleString("en"));
  add(svg, "text", {x: (left + right) / 2, y: height - 4, "text-anchor": "middle"},
      chart.log ? "step (logarithmic scale upwards)" : "step");
  chart.series.forEach((one, i) => {
    const line = values => "M" + one.x.map((step, at) => `${x(step).toFixed(1)},${y(values[at]).toFixed(1)}`).join("L");
    add(svg, "path", {class: `raw s${i}`, d: line(one.y)});
    add(svg, "path", {class: `smooth s${i}`, d: line(one.smooth)});
    if (one.x.length < 12)
      one.x.forEach((step, at) => add(svg, "circle", {class: `s${i}`, cx: x(step), cy: y(one.y[at]), r: 3}));
  });
  return {svg, x, y, bottom, from: left, to: right, first, last};
}

// A plot with a cursor that follows pointer and arrow keys; the last column of its legend tells the values there.
function enliven(figure, chart) {
  const plot = figure.querySelector(".plot"), rows = [...figure.querySelectorAll("tbody tr")];
  const steps = [...new Set(chart.series.flatMap(one => one.x))].sort((a, b) => a - b);
  const head = figure.querySelector("thead th:last-child"), cells = rows.map(row => row.lastElementChild);
  let drawn = draw(plot, chart), at = steps.length - 1, marks = [];

  function show(place, visible) {
    at = Math.max(0, Math.min(steps.length - 1, place));
    const values = chart.series.map(one => one.y[nearest(one.x, steps[at])]);
    head.textContent = `step ${steps[at].toLocaleString("en")}`;
    values.forEach((value, i) => { cells[i].textContent = words(value); });
    plot.setAttribute("aria-valuenow", steps[at]);
    plot.setAttribute("aria-valuetext", `step ${steps[at]}: ` + chart.series.map(
      (one, i) => `${one.name} ${words(values[i])}`).join("; "));
    for (const mark of marks) mark.remove();
    if (!visible) return;
    const x = drawn.x(steps[at]);
    marks = [add(drawn.svg, "line", {class: "cursor", x1: x, x2: x, y1: 10, y2: drawn.bottom}),
             ...values.map((value, i) => add(drawn.svg, "circle", {class: `s${i}`, cx: x, cy: drawn.y(value), r: 4}))];
  }

  for (const [name, value] of Object.entries({role: "slider", tabindex: "0", "aria-valuemin": steps[0],
                                              "aria-valuemax": steps[steps.length - 1],
                                              "aria-label": `${chart.title}, values by step`}))
    plot.setAttribute(name, value);
  const leap = Math.max(1, Math.round(steps.length / 10));
  const moves = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -leap, PageUp: leap,
                 Home: -Infinity, End: Infinity};
  plot.addEventListener("keydown", event => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(at + moves[event.key], true);
  });
  for (const name of ["pointermove", "pointerdown"]) plot.addEventListener(name, event => {
    const along = (event.clientX - plot.getBoundingClientRect().left - drawn.from) / (drawn.to - drawn.from);
    show(nearest(steps, drawn.first + along * (drawn.last - drawn.first)), true);
  });
  let wide = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth === wide) return;
    wide = plot.clientWidth;
    drawn = draw(plot, chart);
    show(at, false);
  }).observe(plot);
  show(at, false);
}

// Pictures one below the other become one at a time.
function slide(slides) {
  const pictures = [...slides.querySelectorAll("[data-said]")], bar = slides.querySelector(".slider");
  const input = bar.querySelector("input"), said = bar.querySelector("output");
  const show = () => {
    const now = Number(input.value);
    pictures.forEach((picture, i) => { picture.hidden = i !== now; });
    said.textContent = `${pictures[now].dataset.said}, picture ${now + 1} of ${pictures.length}`;
    input.setAttribute("aria-valuetext", pictures[now].dataset.said);
  };
  input.addEventListener("input", show);
  bar.hidden = false;
  show();
}

document.querySelectorAll(".chart").forEach((figure, i) => enliven(figure, charts[i]));
document.querySelectorAll(".slides").forEach(slide);
