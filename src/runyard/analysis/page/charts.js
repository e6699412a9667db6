// Charts of the runs' cost, their settings, and their accuracy on each class.

function cost() {
  const kinds = [["gpu", "GPU-hours"], ["core", "Core-hours (no GPU)"], ["training", "Training time, h"], ["parameters", "Parameters"]]
    .filter(([name]) => comparison.runs.some(run => run.cost[name] > 0 && seen(run.last)));
  if (!kinds.length || comparison.runs.length < 2) { at("cost").hidden = true; return null; }
  view.cost = kinds[0][0];
  at("cost-by").replaceChildren(...kinds.map(([name, title]) => el("option", { value: name }, title)));
  at("cost-by").onchange = event => { view.cost = event.target.value; changed(); };
  at("cost-score").onchange = event => { view.score = event.target.value; changed(); };
  return () => drawCost(kinds);
}

function drawCost(kinds) {
  const known = run => comparison.runs[run].cost[view.cost] > 0 && seen(comparison.runs[run][view.score]);
  const price = run => comparison.runs[run].cost[view.cost], worth = run => 100 * comparison.runs[run][view.score];
  const means = shownGroups().map(group => ({ group, runs: countedRuns(group).filter(known) })).filter(({ runs }) => runs.length)
    .map(({ group, runs }) => ({ group, runs, x: mean(runs.map(price)), y: mean(runs.map(worth)),
      done: runs.every(run => comparison.runs[run].state === "finished") })); // unfinished runs have not reached their full cost
  let best = -Infinity;
  const symbol = p => p.done ? p.group.marker : `${p.group.marker}-open`;
  const front = means.filter(p => p.done).sort((a, b) => a.x - b.x || b.y - a.y).filter(point => point.y > best && (best = point.y, true));
  const single = means.filter(point => point.runs.length > 1).flatMap(point => point.runs.map(run => ({ ...point, run })));
  const ink = inks(), xTitle = kinds.find(([name]) => name === view.cost)[1], few = innerWidth > 700;
  const all = means.flatMap(p => p.runs.map(price)), [least, most] = [Math.min(...all), Math.max(...all)], log = most > 8 * least;
  const by = log ? Math.log10 : x => x, span = by(most) - by(least) || Math.abs(by(most)) / 10 || 1; // leaves space for names at the left
  const heights = means.map(p => p.y), high = Math.max(...heights) - Math.min(...heights) || 1, named = [];
  const near = (p, q) => Math.abs(by(p.x) - by(q.x)) < .2 * span && Math.abs(p.y - q.y) < .07 * high;
  for (const p of [...front].reverse()) if (few && named.length < 6 && !named.some(q => near(p, q))) named.push(p); // best first
  tabled("cost-chart", () => [["Group", xTitle, "Test accuracy, %", "Runs", "On the front"],
    means.map(p => [p.group.label, p.x.toPrecision(4), p.y.toFixed(2), p.runs.length, front.includes(p) ? "yes" : p.done ? "" : "not finished"])]);
  return draw("cost-chart", [
    { x: front.map(p => p.x), y: front.map(p => p.y), type: "scatter", mode: "lines", hoverinfo: "skip", name: "front",
      line: { shape: "hv", color: ink.muted, width: 1.5, dash: "dot" } },
    { x: single.map(p => price(p.run)), y: single.map(p => worth(p.run)), type: "scatter", mode: "markers", text: single.map(p => plain(called(p.run))),
      name: "runs", hovertemplate: "%{text}<br>%{x:.4~g}<br>%{y:.2f} %<extra></extra>",
      marker: { symbol: single.map(symbol), color: single.map(p => colour(p.group)), size: thick(6), opacity: .45 } },
    { x: means.map(p => p.x), y: means.map(p => p.y), type: "scatter", mode: few ? "markers+text" : "markers", name: "groups",
      text: means.map(p => named.includes(p) ? plain(p.group.label, 22) : ""), textposition: "top left", cliponaxis: false,
      textfont: { color: ink.ink }, customdata: means.map(p => [plain(p.group.label), front.includes(p) ? "<br>nothing cheaper is as good" : p.done ? "" : "<br>not finished"]),
      hovertemplate: "<b>%{customdata[0]}</b><br>%{xaxis.title.text} %{x:.4~g}<br>%{y:.2f} %%{customdata[1]}<extra></extra>",
      marker: { symbol: means.map(symbol), color: means.map(p => colour(p.group)), size: thick(12),
        line: { width: means.map(p => front.includes(p) || !p.done ? 2 : 0), color: means.map(p => p.done ? ink.ink : colour(p.group)) } } },
  ], { xaxis: axis({ title: { text: xTitle }, type: log ? "log" : "linear", nticks: 8, ...(log ? whole(least, most) : {}),
      range: means.length ? [by(least) - (few ? .14 : .05) * span, by(most) + .05 * span] : [0, 1] }),
    yaxis: axis({ title: { text: view.score === "best" ? "Test accuracy, best epoch, %" : "Test accuracy, last, %" } }) });
}

// Ticks of a log axis with full numbers: plotly's own labels leave out the power of ten.
function whole(least, most) {
  const powers = [...Array(19).keys()].map(i => i - 6).filter(p => 10 ** (p + 1) > least && 10 ** p <= most);
  const tickvals = powers.flatMap(p => (powers.length > 3 ? [1] : [1, 2, 5]).map(digit => Number(`${digit}e${p}`)));
  return { tickvals, ticktext: tickvals.map(said) };
}

const MOST_AXES = 10;

function sweep() {
  const axes = comparison.settings.slice(0, MOST_AXES);
  if (!axes.length || comparison.groups.length < 2) { at("sweep").hidden = true; return null; }
  if (comparison.settings.length > MOST_AXES) at("sweep-note").textContent += ` The first ${MOST_AXES} of ${comparison.settings.length} settings that differ.`;
  at("sweep-chart").style.minWidth = `${130 * axes.length + 176}px`;
  const scores = comparison.groups.map(group => score(group.runs.filter(run => comparison.runs[run].counted)));
  const all = [...axes, { name: "Test accuracy, %", values: scores.map(s => seen(s) ? 100 * s : null), score: true }].map(scaled);
  return () => drawSweep(all);
}

// Maps each axis to 0 to 1: place(value) and its ticks.
function scaled(axis) {
  if (axis.words) {
    const place = value => axis.words.length > 1 ? axis.words.indexOf(value) / (axis.words.length - 1) : .5;
    return { ...axis, place, ticks: axis.words.length <= 16 ? axis.words : [axis.words[0], axis.words.at(-1)] };
  }
  const values = [...new Set(axis.values.filter(seen))].sort((a, b) => a - b), by = axis.log ? Math.log : v => v;
  const low = by(values[0]), high = by(values.at(-1)), place = value => high > low ? (by(value) - low) / (high - low) : .5;
  const apart = values.every((v, i) => !i || place(v) - place(values[i - 1]) > .07);
  const even = [0, .25, .5, .75, 1].map(s => low + s * (high - low)).map(v => axis.log ? Math.exp(v) : v);
  const ticks = values.length <= 10 && apart ? values : high > low ? even : values.slice(0, 1);
  return { ...axis, place, ticks };
}

// A number in its shortest form: 0.001, 16384, 5.6e-4.
function said(value) {
  if (typeof value !== "number" || (Number.isInteger(value) && Math.abs(value) < 1e9)) return value;
  const short = String(Number(value.toPrecision(4)));
  return short.length <= 6 ? short : Math.abs(value) < .01 || Math.abs(value) >= 1e6 ? value.toExponential(1) : short;
}

function drawSweep(axes) {
  const ink = inks(), groups = shownGroups(), index = group => comparison.groups.indexOf(group);
  const order = [...groups].sort((a, b) => (axes.at(-1).values[index(a)] ?? -1) - (axes.at(-1).values[index(b)] ?? -1));
  const traces = order.map(group => {
    const values = axes.map(a => a.values[index(group)]);
    const text = `<b>${plain(group.label)}</b>` + axes.map((a, i) => `<br>${plain(a.name)}: ${values[i] === null ? "—" : plain(said(values[i]))}`).join("");
    return { x: axes.map((_, i) => i), y: values.map((v, i) => v === null ? null : axes[i].place(v)), type: "scatter", mode: "lines+markers",
      text, hovertemplate: "%{text}<extra></extra>", name: group.label, marker: { symbol: group.marker, size: thick(comparison.byScore ? 5 : 7), color: colour(group) },
      line: { color: colour(group), dash: group.line, width: thick(comparison.byScore ? 1 : 1.8), shape: "linear" }, opacity: comparison.byScore ? .8 : 1 };
  });
  const labels = axes.flatMap((a, i) => a.ticks.map(tick => ({ x: i, y: a.place(tick), text: plain(said(tick), 16), showarrow: false,
    xanchor: i === axes.length - 1 ? "left" : "right", xshift: i === axes.length - 1 ? 9 : -9, bgcolor: ink.card, borderpad: 1 })));
  const names = axes.map((a, i) => ({ x: i, y: 1.03, showarrow: false, yanchor: "bottom", font: { color: ink.ink },
    text: plain(a.name.replace(/[^.]*$/, ""), 16) + `<br><b>${plain(a.name.split(".").at(-1), 18)}</b>` }));
  tabled("sweep-chart", () => [["Group", ...axes.map(a => a.name)], [...order].reverse().map(group =>
    [group.label, ...axes.map(a => { const v = a.values[index(group)]; return v === null ? "—" : said(v); })])]);
  return draw("sweep-chart", traces, { annotations: [...labels, ...names], margin: { l: 92, r: 84, t: 42, b: 8 },
    shapes: axes.map((_, i) => ({ type: "line", x0: i, x1: i, y0: 0, y1: 1, line: { color: ink.muted, width: 1 }, layer: "below" })),
    xaxis: { visible: false, range: [-.01, axes.length - .99], fixedrange: true }, yaxis: { visible: false, range: [-.04, 1.05], fixedrange: true } });
}

function classes() {
  if (!comparison.classes.length || !Object.keys(comparison.confusion).length) { at("classes").hidden = true; return null; }
  const count = comparison.classes.length;
  if (comparison.classesOf) at("classes-note").textContent += ` Of ${comparison.classesOf} alone: the other runs have other classes.`;
  at("classes-chart").style.height = `${Math.max(200, (count > 40 ? 17 : 26) * count + 70)}px`;
  return drawClasses;
}

function shareOf(runs, label) {
  const known = runs.map(run => comparison.confusion[run]).filter(c => c && c.of[label]);
  return known.length ? mean(known.map(c => 100 * c.right[label] / c.of[label])) : null;
}

function drawClasses() {
  const names = comparison.classes, groups = shownGroups();
  const shares = groups.map(group => names.map((_, label) => shareOf(countedRuns(group), label)));
  const low = names.map((_, label) => Math.min(...shares.map(s => s[label]).filter(seen)));
  const high = names.map((_, label) => Math.max(...shares.map(s => s[label]).filter(seen)));
  const order = [...names.keys()];
  if (names.length > 20) order.sort((a, b) => (high[b] - low[b] || 0) - (high[a] - low[a] || 0) || a - b);
  const ink = inks(), places = order.map((_, i) => i);
  tabled("classes-chart", () => [["Class", ...groups.map(g => g.label)],
    order.map(label => [names[label], ...shares.map(s => seen(s[label]) ? s[label].toFixed(1) : "—")])]);
  const reach = places.filter((_, i) => high[order[i]] >= low[order[i]]);
  return draw("classes-chart", [
    { x: reach.flatMap(i => [low[order[i]], high[order[i]], null]), y: reach.flatMap(i => [i, i, null]), type: "scatter", mode: "lines",
      hoverinfo: "skip", line: { color: ink.line, width: 4 } },
    ...groups.map((group, g) => ({ x: order.map(label => shares[g][label]), y: places, type: "scatter", mode: "markers", name: group.label,
      text: order.map(label => plain(names[label])), hovertemplate: `<b>${plain(group.label)}</b><br>%{text}: %{x:.1f} %<extra></extra>`,
      marker: { symbol: group.marker, size: thick(9), color: colour(group), opacity: comparison.byScore ? .7 : .9 } }))],
  { xaxis: axis({ title: { text: "Right, % of the class" }, side: names.length > 30 ? "top" : "bottom", nticks: 8 }),
    yaxis: axis({ tickvals: places, ticktext: order.map(label => plain(names[label], innerWidth < 600 ? 14 : 28)), range: [places.length - .4, -.6], ticks: "",
      showgrid: false }), margin: { l: 48, r: 14, t: names.length > 30 ? 44 : 8, b: 44 } });
}
