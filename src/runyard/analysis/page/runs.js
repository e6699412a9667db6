"use strict";
// The list of runs: which runs are shown, and the style of each group.

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

let waiting = 0;
function changed() {
  check();
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => redraws.forEach(redraw => redraw()));
}
