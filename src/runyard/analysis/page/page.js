"use strict";
// The page's state, and functions that all charts share. Names from users enter the page as text, never as markup.

const NONCE = document.currentScript.nonce; // without it the page's policy blocks every script
const view = { x: "epoch", band: "sd", smooth: 0, logX: false, logY: false, hidden: new Set(), panels: [], cost: "",
  score: "last", first: null, second: null };
const COARSE = matchMedia("(pointer: coarse)").matches; // on touch screens dragging scrolls the page and does not zoom the chart
// An explicit list of buttons: plotly's default set has one that sends the chart to a server.
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
// plotly interprets tags such as <b> in labels, so labels are escaped
const plain = (text, most = 40) => shortened(String(text), most).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const mean = values => values.reduce((sum, v) => sum + v, 0) / values.length;
const sd = values => values.length < 2 ? 0
  : Math.sqrt(values.reduce((sum, v) => sum + (v - mean(values)) ** 2, 0) / (values.length - 1));
const seen = value => value !== null && value !== undefined && Number.isFinite(value);
const percent = share => seen(share) ? (100 * share).toFixed(2) + " %" : "—";

// Allows line breaks in long names after underscores and hyphens.
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

// Lines and markers scale with the font size, for a projector.
const thick = width => width * parseFloat(getComputedStyle(document.body).fontSize) / 16;

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

// The values of a chart as a table, built when it is opened, for screen readers and for readers who want numbers.
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

// Once the first chart is on the screen, records how long that took, then draws the others.
async function firstDrawn() {
  const said = document.documentElement.dataset;
  if (said.drawn) return;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  said.drawn = performance.now().toFixed(0);
}

function control(name, set) {
  for (const input of document.getElementsByName(name)) input.addEventListener(input.type === "range" ? "input" : "change", event => { set(event.target); changed(); });
}

async function begin() {
  const [library, text] = await Promise.all([unpack("library"), unpack("data")]);
  document.head.append(el("script", {nonce: NONCE}, library));
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
