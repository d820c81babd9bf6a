"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 260;

const color = (at) => `var(--c${at % 6})`;
const dash = (at) => (at >= 6 ? "6 4" : "none");

function make(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size >= 100) return String(Math.round(value));
  return String(+value.toPrecision(3));
}

/* Ticks at 1, 2 and 5 times powers of ten; on a logarithmic axis at powers, with 2 and 5 while there is room. */
function ticks(low, high, log, most) {
  if (log) {
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const step of steps) {
          const value = step * 10 ** power;
          if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
        }
      if (found.length <= most || steps.length === 1) return found;
    }
  }
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(+value.toPrecision(12));
  return found;
}

/* chart: {series: [{name, color, points: [[x, y]], marks, bare, labels}], x, y: axis titles, log, logBoth, top} */
function draw(plot, chart) {
  const old = plot.querySelector("svg");
  if (old) old.remove();
  const width = Math.max(plot.clientWidth, 260);
  const frame = { left: 52, right: width - 14, top: 12, bottom: HEIGHT - 40 };
  const points = chart.series.flatMap((series) => series.points).filter((point) => point[1] !== null);
  if (!points.length) return;
  let [xLow, xHigh] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  const log = chart.logBoth || (chart.log && xLow > 0 && xHigh / xLow > 12);
  if (!log && !chart.tight) xLow = Math.min(0, xLow);
  if (xHigh === xLow) { xLow *= 0.9; xHigh = xHigh * 1.1 || 1; }
  const yHigh = chart.top || Math.max(...points.map((p) => p[1])) * (chart.logBoth ? 1.5 : 1.08) || 1;
  const yLow = chart.logBoth ? Math.min(...points.map((p) => p[1])) / 1.5 : 0;
  const along = (value, low, high, isLog) => (isLog ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low));
  const x = (value) => frame.left + along(value, xLow, xHigh, log) * (frame.right - frame.left);
  const y = (value) => frame.bottom - along(value, yLow, yHigh, chart.logBoth) * (frame.bottom - frame.top);
  const svg = make("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${chart.title}: ${chart.y} over ${chart.x}` });
  for (const value of ticks(yLow, yHigh, chart.logBoth, 5)) {
    make("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y(value), y2: y(value) }, svg);
    make("text", { x: frame.left - 7, y: y(value) + 4, "text-anchor": "end" }, svg, short(value));
  }
  for (const value of ticks(xLow, xHigh, log, Math.floor(width / 75))) {
    make("line", { class: "axis", x1: x(value), x2: x(value), y1: frame.bottom, y2: frame.bottom + 4 }, svg);
    make("text", { x: x(value), y: frame.bottom + 17, "text-anchor": "middle" }, svg, short(value));
  }
  make("line", { class: "axis", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }, svg);
  make("text", { x: (frame.left + frame.right) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, svg, chart.x);
  make("text", { transform: `translate(9 ${(frame.top + frame.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, svg, chart.y);
  const spots = [];
  for (const series of chart.series) {
    let path = "";
    let open = false;
    for (const [px, py] of series.points) {
      if (py === null) { open = false; continue; }
      path += `${open ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`;
      open = true;
      spots.push({ at: x(px), up: y(py), series, px, py, label: (series.labels || {})[px] });
      if (series.marks) make("circle", { cx: x(px), cy: y(py), r: 3.5, fill: series.color }, svg);
    }
    if (!series.bare) make("path", { class: "series", d: path, stroke: series.color, "stroke-dasharray": series.dash || "none" }, svg);
  }
  plot.prepend(svg);
  const tip = plot.querySelector(".tip");
  const ring = make("circle", { r: 5, fill: "none", "stroke-width": 2, visibility: "hidden" }, svg);
  plot.onpointermove = (event) => {
    const box = plot.getBoundingClientRect();
    const [mx, my] = [event.clientX - box.left, event.clientY - box.top];
    const near = spots.reduce((best, spot) => {
      const far = Math.abs(spot.at - mx) + 0.4 * Math.abs(spot.up - my);
      return !best || far < best.far ? { ...spot, far } : best;
    }, null);
    if (!near) return;
    tip.textContent = `${near.label || near.series.name}: ${short(near.py)} at ${short(near.px)} ${chart.unit || ""}`.trim();
    tip.style.visibility = "visible";
    tip.style.top = `${near.up}px`;
    const half = tip.offsetWidth / 2;
    tip.style.left = `${Math.min(Math.max(near.at, half), width - half)}px`;
    for (const [key, value] of [["cx", near.at], ["cy", near.up], ["stroke", near.series.color], ["visibility", "visible"]]) ring.setAttribute(key, value);
  };
  plot.onpointerleave = () => { tip.style.visibility = "hidden"; ring.setAttribute("visibility", "hidden"); };
}

function figure(parent, chart) {
  chart.series = chart.series.filter((series) => series.points.some((point) => point[1] !== null));
  if (!chart.series.length) return;
  const node = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = chart.title;
  const small = document.createElement("small");
  small.textContent = chart.note || "";
  caption.append(small);
  const legend = document.createElement("div");
  legend.className = "legend";
  if (chart.series.length > 1)
    for (const series of chart.series) {
      const entry = document.createElement("span");
      const mark = document.createElement("i");
      mark.style.borderColor = series.color;
      if (series.dash && series.dash !== "none") mark.style.borderTopStyle = series.dash === "2 3" ? "dotted" : "dashed";
      if (series.bare) { mark.className = "dot"; mark.style.background = series.color; }
      entry.append(mark, series.name);
      legend.append(entry);
    }
  const plot = document.createElement("div");
  plot.className = "plot";
  const tip = document.createElement("div");
  tip.className = "tip";
  plot.append(tip);
  node.append(caption, legend, plot);
  parent.append(node);
  let last = 0;
  new ResizeObserver(() => {
    if (plot.clientWidth !== last) { last = plot.clientWidth; draw(plot, chart); }
  }).observe(plot);
}

function section(id, charts) {
  const parent = document.getElementById(id);
  charts.forEach((chart) => figure(parent, chart));
  if (!parent.children.length) parent.closest("section").remove();
}

const METRICS = [
  ["ttft", "Time to first token", "TTFT"],
  ["itl", "Between chunks", "ITL"],
  ["tpot", "Time per output token", "TPOT"],
  ["e2el", "Whole answer", "E2EL"],
];

/* Many runs would hide each other: at most six of them, evenly chosen. */
const shown = data.runs.length <= 6 ? data.runs.map((_, at) => at)
  : Array.from({ length: 6 }, (_, at) => Math.round((at * (data.runs.length - 1)) / 5));
const some = shown.length < data.runs.length ? ` · ${shown.length} of ${data.runs.length} results` : "";

section("distributions", METRICS.map(([key, title, name]) => ({
  title, note: `${name}: share of samples at or below x` + some, x: "milliseconds", y: "percent", unit: "ms", log: true, tight: true, top: 100,
  series: shown.map((at, order) => ({
    name: data.runs[at].title, color: color(order),
    points: ((data.runs[at].distributions || {})[key] || []).map((value, q) => [Math.max(value, 0.001), q / 2]),
  })),
})));

const bins = (run, key) => {
  const line = run.timeline;
  return line ? line[key].map((value, at) => [+((at + 0.5) * line.bin_s).toPrecision(6), value]) : [];
};
section("timeline", [
  ["output_tokens_per_s", "Output tokens", "tokens/s"],
  ["in_flight", "Requests in flight", "requests"],
  ["median_ttft_ms", "Median TTFT of what began to answer then", "milliseconds"],
].map(([key, title, unit]) => ({
  title, note: "the last repeat" + some, x: "seconds since the start", y: unit, unit: "s",
  series: shown.map((at, order) => ({ name: data.runs[at].title, color: color(order), points: bins(data.runs[at], key).filter((point) => point[1] !== null) })),
})));

const groups = new Map();
for (const run of data.runs) {
  if (!groups.has(run.name)) groups.set(run.name, []);
  groups.get(run.name).push(run);
}
const curves = [...groups].filter(([, runs]) => runs.length > 1);
section("curve", [["ttft", "TTFT"], ["tpot", "TPOT"], ["e2el", "E2EL"]].map(([key, name]) => ({
  title: `Throughput against ${name}`, note: "one point a load; median, and p99 dashed", x: "output tokens/s", y: `${name}, milliseconds`, unit: "tokens/s",
  series: curves.flatMap(([group, runs], at) => [["median", "none"], ["p99", "6 4"]].map(([part, line], order) => ({
    name: `${curves.length > 1 ? group + " " : ""}${part}`, color: color(curves.length > 1 ? at : order), dash: line, marks: true,
    points: runs.map((run) => [run.output_throughput, run[`${part}_${key}_ms`] ?? null]),
  }))),
})));

/* Attainable rate against operations a byte: the slope is the memory's, the ceilings those of each kind of product. */
function roofline() {
  const machine = data.hardware;
  if (!machine) return [];
  const giga = (value) => value / 1e9;
  const kinds = [["prefill", "Prefill"], ["decode", "Decode"]].map(([key, name]) => {
    const rows = data.engine.filter((row) => row[`${key}_roofline`]);
    const place = (row) => [row[`${key}_roofline`].operations_per_byte, giga(row[`${key}_roofline`].operations_per_s)];
    return { name, points: rows.map(place), labels: Object.fromEntries(rows.map((row) => [place(row)[0], `${name} of ${row.case}`])) };
  });
  const all = kinds.flatMap((kind) => kind.points);
  if (!all.length) return [];
  const ceilings = [["f32", machine.f32_per_s], ["bf16", machine.bf16_per_s], ["int8", machine.int8_per_s]].filter((one) => one[1]);
  const ridges = ceilings.map((one) => one[1] / machine.read_bytes_per_s);
  const low = Math.min(...all.map((point) => point[0]), ...ridges) / 2;
  const high = Math.max(...all.map((point) => point[0]), ...ridges) * 2;
  const roofs = ceilings.map(([name, rate], at) => ({
    name: `${name} roof, ${short(giga(rate))} GOP/s`, color: color(at + 2), dash: ["none", "6 4", "2 3"][at],
    points: [[low, giga(Math.min(rate, low * machine.read_bytes_per_s))], [rate / machine.read_bytes_per_s, giga(rate)], [high, giga(rate)]],
  }));
  const marks = kinds.map((kind, at) => ({ ...kind, color: color(at), marks: true, bare: true }));
  return [{
    title: "Roofline", note: `points are cases; slope: ${short(giga(machine.read_bytes_per_s))} GB/s read from memory, ${machine.threads} threads`,
    x: "operations a byte", y: "GOP/s", unit: "operations a byte", logBoth: true, tight: true, series: [...roofs, ...marks],
  }];
}

const bars = document.getElementById("limits");
if (bars && data.engine) {
  section("limits", [...roofline(), {
    title: "Decode against batch size", note: "measured, and what memory bandwidth and arithmetic of this machine allow", x: "sequences at once", y: "tokens/s", unit: "sequences",
    series: [["measured", "decode_tokens_per_s", "none"], ["limit", "decode_limit_tokens_per_s", "6 4"]].map(([name, key, line], at) => ({
      name, color: color(at), dash: line, marks: true, points: data.engine.filter((row) => row[key]).map((row) => [row.sequences, row[key]]).sort((a, b) => a[0] - b[0]),
    })),
  }]);
}

document.getElementById("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
