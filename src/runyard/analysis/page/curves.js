// Charts of metrics over time: a line with a band for each group of runs that differ only in seed, or one for each run.

function curves() {
  const panels = [...document.querySelectorAll("#curves .panel")];
  view.panels = panels.map((_, place) => comparison.measures[place][0]);
  panels.forEach((panel, place) => {
    const select = panel.querySelector("select");
    select.replaceChildren(...comparison.measures.map(([name, title]) =>
      el("option", { value: name, selected: name === view.panels[place] }, title)));
    select.onchange = () => { view.panels[place] = select.value; drawPanel(place); };
  });
  control("x", input => { view.x = input.value; });
  control("band", input => { view.band = input.value; });
  control("smooth", input => { view.smooth = Number(input.value); at("smooth-value").textContent = input.value; });
  control("log-x", input => { view.logX = input.checked; });
  control("log-y", input => { view.logY = input.checked; });
  return async () => {
    for (const place of panels.keys()) {
      await drawPanel(place);
      await firstDrawn();
    }
  };
}

// Points of one run, [epoch, x, y], if x and y are known.
function pointsOf(run, measure, factor) {
  const { at: places, series } = comparison.runs[run], values = series[measure] || [];
  return values.flatMap((value, i) => seen(value) && seen(places[view.x][i]) ? [[places.epoch[i], places[view.x][i], factor * value]] : []);
}

// Points of several runs: [mean x, mean y, low, high, n, epoch] over the runs that reached each epoch.
function pointsOfMany(runs, measure, factor) {
  const epochs = new Map();
  for (const run of runs) {
    for (const [epoch, x, y] of pointsOf(run, measure, factor)) {
      if (!epochs.has(epoch)) epochs.set(epoch, [[], []]);
      epochs.get(epoch)[0].push(x);
      epochs.get(epoch)[1].push(y);
    }
  }
  return [...epochs].sort((a, b) => a[0] - b[0]).map(([epoch, [xs, ys]]) => {
    const y = mean(ys), wide = view.band === "sd" ? sd(ys) : 0;
    return [mean(xs), y, view.band === "sd" ? y - wide : Math.min(...ys), view.band === "sd" ? y + wide : Math.max(...ys), ys.length, epoch];
  });
}

// Exponential moving average with bias correction.
function smoothed(values) {
  let sum = 0, weight = 0;
  return values.map(value => {
    sum = view.smooth * sum + (1 - view.smooth) * value;
    weight = view.smooth * weight + 1 - view.smooth;
    return sum / weight;
  });
}

function lineOf(group, points, name, detail, thin) {
  const count = points.length, many = comparison.byScore;
  return { name, x: points.map(p => p[0]), y: smoothed(points.map(p => p[1])), customdata: detail, type: "scatter",
    mode: count > 1 && (many || thin) ? "lines" : "lines+markers",
    line: { color: colour(group), width: thick(many || thin ? 1 : 1.8), dash: group.line }, opacity: thin && !many ? .65 : 1,
    marker: { symbol: group.marker, size: thick(count > 1 ? 6 : 8), color: colour(group), maxdisplayed: 8 },
    hovertemplate: `<b>${plain(name)}</b><br>%{xaxis.title.text} %{x:.6~g}<br>%{y:.6~g}%{customdata}<extra></extra>` };
}

function bandOf(group, points) {
  const low = smoothed(points.map(p => p[2])), high = smoothed(points.map(p => p[3]));
  const least = Math.min(...points.map(p => p[1]).filter(y => y > 0)) / 10;
  return { x: [...points.map(p => p[0]), ...points.map(p => p[0]).reverse()],
    y: [...high, ...low.map(y => view.logY ? Math.max(y, least) : y).reverse()], type: "scatter", mode: "lines", fill: "toself",
    fillcolor: faint(colour(group), .17), line: { width: 0 }, hoverinfo: "skip" };
}

function drawPanel(place) {
  const measure = view.panels[place], [, title, factor] = comparison.measures.find(([name]) => name === measure);
  const bands = [], lines = [], table = [];
  for (const group of shownGroups()) {
    const together = view.band === "each" ? [] : countedRuns(group);
    const points = pointsOfMany(together, measure, factor);
    if (points.some(p => p[4] > 1)) bands.push(bandOf(group, points));
    const words = { sd: p => ` ± ${(p[3] - p[1]).toPrecision(2)} (sd, n = ${p[4]})`,
      range: p => ` (${p[2].toPrecision(4)} to ${p[3].toPrecision(4)}, n = ${p[4]})` }[view.band];
    const spread = points.map(p => p[4] > 1 ? words(p) : "");
    if (points.length) lines.push(lineOf(group, points, group.label, spread)), table.push([group.label, points, spread]);
    for (const run of shownRuns(group).filter(run => !together.includes(run))) {
      const own = pointsOf(run, measure, factor).map(([epoch, x, y]) => [x, y, y, y, 1, epoch]);
      const state = comparison.runs[run].state, said = state === "finished" ? "" : ` (${state})`;
      if (!own.length) continue;
      lines.push(lineOf(group, own, called(run), own.map(() => said), group.runs.length > 1));
      table.push([called(run), own, own.map(() => "")]);
    }
  }
  const [, xTitle] = comparison.axes.find(([name]) => name === view.x);
  const id = `curve-${place}`;
  tabled(id, () => valuesOf(table, xTitle));
  const nothing = lines.length ? [] : [{ text: shownGroups().length ? "not measured" : "no run is shown", showarrow: false,
    xref: "paper", yref: "paper", x: .5, y: .5 }];
  const whole = view.x === "epoch" && !view.logX ? { tickformat: "d" } : {};
  return draw(id, [...bands, ...lines, restartsOf()], {
    annotations: nothing,
    xaxis: axis({ title: { text: xTitle }, type: view.logX ? "log" : "linear", nticks: 8, ...whole }),
    yaxis: axis({ type: view.logY ? "log" : "linear", nticks: 7, ...rangeOf(lines) }),
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true } });
}

// A diverged run must not flatten the others: values beyond four times nearly all others are cut off.
function rangeOf(lines) {
  const values = lines.flatMap(line => line.y).sort((a, b) => a - b);
  const high = values[Math.floor(.97 * (values.length - 1))], low = values[0], span = high - low;
  return view.logY || !(span > 0) || values.at(-1) <= low + 4 * span ? { autorange: true } : { range: [low - .05 * span, low + 1.2 * span] };
}

// Small triangles on the time axis where runs resumed after an interruption.
function restartsOf() {
  const marks = [];
  for (const group of shownGroups()) {
    for (const run of shownRuns(group)) {
      for (const { at: place, cause, step } of comparison.runs[run].restarts) {
        if (!view.logX || place[view.x] > 0) marks.push({ x: place[view.x], colour: colour(group), said: `<b>${plain(called(run))}</b><br>went on at step ${step}`
          + (cause ? `<br>after: ${plain(cause)}` : "") });
      }
    }
  }
  return { x: marks.map(m => m.x), y: marks.map(() => .025), yaxis: "y2", type: "scatter", mode: "markers", text: marks.map(m => m.said),
    name: "restarts", hovertemplate: "%{text}<extra></extra>",
    marker: { symbol: "triangle-up-open", size: 9, color: marks.map(m => m.colour), line: { width: 1.5 } } };
}

// A table by epoch, without smoothing: at most 24 rows, including the last.
function valuesOf(table, xTitle) {
  const epochs = [...new Set(table.flatMap(([, points]) => points.map(p => p[5])))].sort((a, b) => a - b), step = Math.ceil(epochs.length / 24) || 1;
  const columns = table.map(([, points, spread]) => new Map(points.map((p, i) => [p[5],
    Number(p[1].toPrecision(5)) + spread[i] + (view.x === "epoch" ? "" : ` at ${Number(p[0].toPrecision(5))}`)])));
  const head = view.x === "epoch" ? xTitle : `Epoch (at: ${xTitle})`;
  return [[head, ...table.map(([name]) => name)], epochs.filter((_, i) => (epochs.length - 1 - i) % step === 0)
    .map(epoch => [epoch, ...columns.map(column => column.get(epoch) ?? "")])];
}
