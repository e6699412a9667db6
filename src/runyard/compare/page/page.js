"use strict";
// The page's state, the list of runs, and what all charts share. Names from users meet the page as text, never as markup.

const view = { x: "epoch", band: "sd", smooth: 0, logX: false, logY: false, hidden: new Set(), panels: [], cost: "",
  score: "last", first: null, second: null };
const COARSE = matchMedia("(pointer: coarse)").matches; // a finger scrolls the page, it does not zoom the chart
// By name, those that are wanted: plotly's own set has one that sends the chart to a server.
const CONFIG = { displaylogo: false, displayModeBar: !COARSE, responsive: true, showTips: false,
  doubleClick: "reset", plotlyServerURL: "", modeBarButtons: [["toImage", "resetScale2d"]] };
const redraws = []; // one function for each chart, in the order they are drawn
let comparison = null;

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const at = id => document.getElementById(id);
const shortened = (text, most) => text.length <= most ? text
  : text.slice(0, Math.ceil(most * .6) - 1) + "…" + text.slice(text.length - Math.floor(most * .4));
// plotly reads <b> and its like in labels, so what it is given is escaped
const plain = (text, most = 40) => shortened(String(text), most).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const mean = values => values.reduce((sum, v) => sum + v, 0) / values.length;
const sd = values => values.length < 2 ? 0
  : Math.sqrt(values.reduce((sum, v) => sum + (v - mean(values)) ** 2, 0) / (values.length - 1));
const seen = value => value !== null && value !== undefined && Number.isFinite(value);
const percent = share => seen(share) ? (100 * share).toFixed(2) + " %" : "—";

// Long names break behind their underscores and hyphens first.
const breakable = text => text.split(/(?<=[_\-./])/).flatMap(part => [part, el("wbr")]);

async function unpack(id) {
  const bytes = Uint8Array.from(atob(at(id).textContent.trim()), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
const colour = group => dark() ? group.dark : group.light;
const faint = (hex, opacity) => `rgba(${[1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)).join(",")},${opacity})`;

function inks() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(["ink", "muted", "line", "card", "right", "wrong"].map(
    name => [name, style.getPropertyValue(`--${name}`).trim()]));
}

function axis(extra = {}) {
  const ink = inks();
  return { gridcolor: ink.line, linecolor: ink.muted, zeroline: false, ticks: "outside", ticklen: 3, tickcolor: ink.muted,
    automargin: true, exponentformat: "power", ...extra };
}

function draw(id, traces, layout) {
  const ink = inks(), size = .8 * parseFloat(getComputedStyle(document.body).fontSize);
  return Plotly.react(at(id), traces, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size, color: ink.muted }, showlegend: false,
    margin: { l: 48, r: 14, t: 10, b: 40 }, hovermode: "closest", dragmode: COARSE ? false : "zoom",
    hoverlabel: { align: "left", bgcolor: ink.card, bordercolor: ink.muted, font: { color: ink.ink, size } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: ink.muted, activecolor: ink.ink }, ...layout }, CONFIG);
}

// The values of a chart as a table, made when it is opened: what a screen reader, and a person who wants numbers, reads.
function tabled(id, make) {
  const holder = at(`${id}-values`);
  if (!holder) return;
  const fill = () => {
    if (!holder.open) return;
    const [head, rows] = make();
    holder.querySelector("div").replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { scope: "col", class: i ? "n" : "" }, text)))),
      el("tbody", {}, ...rows.map(row => el("tr", {}, ...row.map((text, i) =>
        el(i ? "td" : "th", i ? { class: "n" } : { scope: "row" }, String(text))))))));
  };
  holder.ontoggle = fill;
  fill();
}

const shown = run => !view.hidden.has(run);
const shownRuns = group => group.runs.filter(shown);
const shownGroups = () => comparison.groups.filter(group => shownRuns(group).length);
const countedRuns = group => shownRuns(group).filter(run => comparison.runs[run].counted);
function called(run) {
  const { group, seed } = comparison.runs[run], { label, runs } = comparison.groups[group];
  const same = runs.filter(other => comparison.runs[other].seed === seed).length > 1;
  return runs.length === 1 ? label : `${label}, ${seed === null || same ? comparison.runs[run].id : `seed ${seed}`}`;
}
const score = runs => { const known = runs.map(r => comparison.runs[r].last).filter(seen); return known.length ? mean(known) : null; };

function swatch(group) {
  const dash = { solid: "", dash: "6 3", dot: "2 2.5" }[group.line];
  const shape = { circle: "M14 2.5a3.5 3.5 0 1 0 .01 0z", square: "M11 3h6v6h-6z", diamond: "M14 1.5l4.5 4.5-4.5 4.5-4.5-4.5z",
    "triangle-up": "M14 2l4.5 7.5h-9z", "triangle-down": "M14 10L9.5 2.500h9z", cross: "M12.7 2h2.600v2.700H18v2.600h-2.700V10h-2.600V7.300H10V4.700h2.700z",
    x: "M11 1.800l3 3 3-3 1.7 1.7-3 3 3 3-1.7 1.7-3-3-3 3-1.7-1.7 3-3-3-3z", star: "M14 1l1.5 3.4 3.7.4-2.8 2.5.8 3.7-3.2-1.9-3.2 1.9.8-3.7-2.8-2.5 3.7-.4z" }[group.marker];
  const made = el("span", { class: "swatch", "aria-hidden": "true" });
  made.innerHTML = `<svg viewBox="0 0 28 12"><path d="M0 6h28" stroke="currentColor" stroke-width="2" stroke-dasharray="${dash}"/>`
    + `<path d="${shape}" fill="currentColor"/></svg>`;
  made.style.setProperty("--light", group.light);
  made.style.setProperty("--dark", group.dark);
  return made;
}

function listRuns() {
  const box = (label, runs, ...rest) => el("label", {}, el("input", { type: "checkbox", "data-runs": runs.join(" "),
    onchange: event => { runs.forEach(r => event.target.checked ? view.hidden.delete(r) : view.hidden.add(r)); changed(); } }),
    ...rest, el("span", { class: "name", title: label }, ...breakable(label)));
  at("runs").replaceChildren(...comparison.groups.map(group => {
    const state = group.state ? [el("span", { class: "note" }, group.state)] : [];
    const row = el("div", { class: "row" }, box(group.label, group.runs, swatch(group)),
      el("span", { class: "score" }, percent(score(group.runs.filter(r => comparison.runs[r].counted)))));
    if (group.runs.length === 1) return el("li", {}, row, ...state);
    return el("li", {}, row, ...state, el("details", {}, el("summary", { class: "note" }, `${group.runs.length} runs`),
      ...group.runs.map(run => el("div", { class: "row" }, box(called(run).slice(group.label.length + 2), [run]),
        el("span", { class: "score" }, percent(comparison.runs[run].last))))));
  }));
  check();
}

function check() {
  for (const input of document.querySelectorAll("#runs input")) {
    const runs = input.dataset.runs.split(" ").map(Number), count = runs.filter(shown).length;
    input.checked = count > 0;
    input.indeterminate = count > 0 && count < runs.length;
  }
  const groups = shownGroups().length;
  at("shown").textContent = groups === comparison.groups.length ? "" : `${groups} of ${comparison.groups.length} shown`;
}

function showOnly(groups) {
  view.hidden = new Set(comparison.runs.keys());
  groups.forEach(group => group.runs.forEach(run => view.hidden.delete(run)));
  changed();
}

// Once the first chart is on the screen, note how long that took; the others follow.
async function firstDrawn() {
  const said = document.documentElement.dataset;
  if (said.drawn) return;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  said.drawn = performance.now().toFixed(0);
}

let waiting = 0;
function changed() {
  check();
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => redraws.forEach(redraw => redraw()));
}

function control(name, set) {
  for (const input of document.getElementsByName(name)) input.addEventListener(input.type === "range" ? "input" : "change", event => { set(event.target); changed(); });
}

async function begin() {
  const [library, text] = await Promise.all([unpack("library"), unpack("data")]);
  document.head.append(el("script", {}, library));
  comparison = JSON.parse(text);
  const best = [...comparison.groups].sort((a, b) => (score(b.runs) ?? -1) - (score(a.runs) ?? -1));
  listRuns();
  at("all").onclick = () => showOnly(comparison.groups);
  at("none").onclick = () => showOnly([]);
  at("best").onclick = () => showOnly(best.slice(0, 5));
  for (const input of document.getElementsByName("x")) input.closest("label").hidden = !comparison.axes.some(([name]) => name === input.value);
  at("theme").onclick = () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; changed(); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  for (const part of [curves, cost, sweep, classes, pairOfRuns]) {
    const redraw = part(best);
    if (redraw) { redraws.push(redraw); await redraw(); }
  }
  document.documentElement.dataset.ready = "1";
}

if (typeof DecompressionStream === "undefined") at("trouble").hidden = false;
else document.addEventListener("DOMContentLoaded", begin);
