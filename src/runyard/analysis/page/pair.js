// Two runs side by side: their confusion matrices, the difference, and the images on which they disagree.

function pairOfRuns(best) {
  const answers = comparison.disagreements.runs || [];
  const able = [...new Set([...Object.keys(comparison.confusion).map(Number), ...answers])].sort((a, b) => a - b);
  if (able.length < 2) { at("pair").hidden = true; return null; }
  const ahead = best.flatMap(group => group.runs.filter(run => able.includes(run)).slice(0, 1));
  [view.first, view.second] = ahead.length > 1 ? [ahead[1], ahead[0]] : able;
  for (const which of ["first", "second"]) {
    at(which).replaceChildren(...able.map(run => el("option", { value: run, selected: run === view[which] }, shortened(called(run), 60))));
    at(which).onchange = event => { view[which] = Number(event.target.value); drawPair(); };
  }
  at("swap").onclick = () => {
    [view.first, view.second] = [view.second, view.first];
    for (const which of ["first", "second"]) at(which).value = view[which];
    drawPair();
  };
  return drawPair;
}

// A run's confusion matrix by rows, in counts, from its correct images and its mistakes; null if the page lacks it.
function matrixOf(run) {
  const kept = comparison.confusion[run], count = comparison.classes.length;
  if (!kept || !kept.mistakes) return null;
  const matrix = Array.from({ length: count }, () => Array(count).fill(0));
  kept.right.forEach((right, label) => { matrix[label][label] = right; });
  for (let i = 0; i < kept.mistakes.length; i += 2) matrix[Math.floor(kept.mistakes[i] / count)][kept.mistakes[i] % count] = kept.mistakes[i + 1];
  return matrix;
}

async function drawPair() {
  const [a, b] = [matrixOf(view.first), matrixOf(view.second)];
  at("matrices").hidden = !(a && b);
  at("no-matrices").hidden = Boolean(a && b);
  at("no-matrices").textContent = whyNot(comparison.noConfusion);
  if (a && b) {
    const worst = Math.max(...[a, b].flatMap(m => m.flatMap((row, t) => row.map((n, p) => t === p ? 0 : share(m, t, n)))), 1e-9);
    at("first-title").textContent = `A: ${called(view.first)}`;
    at("second-title").textContent = `B: ${called(view.second)}`;
    await Promise.all([drawMatrix("matrix-first", a, worst), drawMatrix("matrix-second", b, worst), drawDifference(a, b)]);
    tabled("matrices", () => largestChanges(a, b));
  }
  drawDisagreements();
}

// Why the page cannot show these two runs.
const whyNot = reasons => [...new Set([view.first, view.second])].filter(run => reasons[run])
  .map(run => `${called(run)}: ${reasons[run]}.`).join(" ");

const share = (matrix, label, count) => 100 * count / Math.max(1, matrix[label].reduce((sum, n) => sum + n, 0));

// Dark enough for white numbers: on a dark background the page's own colors are too pale for them.
const strong = () => dark() ? { right: "#0a6ebd", wrong: "#c04f00" } : inks();

function drawMatrix(id, matrix, worst) {
  const ink = strong(), shares = matrix.map((row, label) => row.map(n => share(matrix, label, n)));
  const only = diagonal => shares.map((row, t) => row.map((value, p) => (t === p) === diagonal ? value : null));
  const ground = dark() ? "#171a1f" : "#ffffff";
  const part = (diagonal, ceiling, end) => heat(matrix, only(diagonal), [[0, ground], [1, end]], 0, ceiling,
    (t, p) => `${matrix[t][p]} of ${plain(comparison.classes[t])}<br>taken for ${plain(comparison.classes[p])}<br>${shares[t][p].toFixed(1)} %`,
    (t, p) => (t === p) === diagonal ? String(matrix[t][p]) : "");
  return draw(id, [part(true, 100, ink.right), part(false, worst, ink.wrong)], square());
}

function drawDifference(a, b) {
  const ink = strong(), ground = dark() ? "#171a1f" : "#ffffff";
  const change = b.map((row, t) => row.map((n, p) => share(b, t, n) - share(a, t, a[t][p])));
  const better = change.map((row, t) => row.map((value, p) => t === p ? value : -value)); // fewer mistakes are better
  const most = Math.max(...better.flat().map(Math.abs), 1e-9);
  return draw("matrix-difference", [heat(b, better, [[0, ink.wrong], [.5, ground], [1, ink.right]], -most, most,
    (t, p) => `${plain(comparison.classes[t])} taken for ${plain(comparison.classes[p])}<br>A ${a[t][p]}, B ${b[t][p]}<br>B is ${better[t][p] > 0 ? "better" : better[t][p] < 0 ? "worse" : "alike"}`,
    (t, p) => signed(b[t][p] - a[t][p]))], square());
}

const signed = n => n > 0 ? `+${n}` : n < 0 ? `−${-n}` : "";

function heat(matrix, z, colours, low, high, said, written) {
  const few = matrix.length <= 12, roomy = at("matrix-first").clientWidth / (matrix.length + 4) > 22; // 22 px a cell
  const each = make => matrix.map((row, t) => row.map((_, p) => make(t, p)));
  return { type: "heatmap", z, colorscale: colours, zmin: low, zmax: high, showscale: false, xgap: few ? 1 : 0, ygap: few ? 1 : 0, hoverongaps: false,
    text: each(written), texttemplate: roomy ? "%{text}" : "", customdata: each(said), hovertemplate: "%{customdata}<extra></extra>" };
}

function square() {
  const names = comparison.classes, few = names.length <= 30;
  const labels = few ? { tickvals: names.map((_, i) => i), ticktext: names.map(name => plain(name, 13)) } : { nticks: 10, tickformat: "d" };
  return { margin: { l: 30, r: 6, t: 6, b: 30 },
    xaxis: axis({ ...labels, ticks: "", showgrid: false, title: { text: few ? "taken for" : "taken for (label)" }, tickangle: few ? -60 : 0 }),
    yaxis: axis({ ...labels, ticks: "", showgrid: false, autorange: "reversed", title: { text: few ? "true class" : "true label" } }) };
}

function largestChanges(a, b) {
  const cells = a.flatMap((row, t) => row.map((n, p) => [t, p, n, b[t][p]])).filter(([, , x, y]) => x !== y);
  cells.sort((x, y) => Math.abs(y[3] - y[2]) - Math.abs(x[3] - x[2]));
  return [["True → taken for", "A", "B", "Change"], cells.slice(0, 30).map(([t, p, x, y]) =>
    [`${comparison.classes[t]} → ${t === p ? "right" : comparison.classes[p]}`, x, y, signed(y - x)])];
}

function drawDisagreements() {
  const { runs = [], counts = [], of = 0, images = [], missing = "", why = {} } = comparison.disagreements;
  const [i, j] = [runs.indexOf(view.first), runs.indexOf(view.second)];
  const say = text => { at("disagree-note").textContent = text; at("faces").replaceChildren(); };
  if (view.first === view.second) return say("Choose two runs.");
  if (i < 0 || j < 0) return say(whyNot(why) || "Fewer than two runs kept their predictions on the same test images.");
  const [low, high] = i < j ? [i, j] : [j, i], place = 3 * (low * (2 * runs.length - low - 1) / 2 + high - low - 1);
  const [one, other, neither] = counts.slice(place, place + 3), [onlyA, onlyB] = i < j ? [one, other] : [other, one];
  const name = label => comparison.classes[label] ?? `class ${label}`;
  const found = images.filter(image => image.taken[i] !== image.taken[j]);
  const rank = image => image.taken[j] === image.label ? 0 : image.taken[i] === image.label ? 1 : 2;
  say(`Of ${of.toLocaleString("en")} test images they disagree on ${onlyA + onlyB + neither}: A alone is right on ${onlyA}, B alone on ${onlyB}, `
    + `and on ${neither} both are wrong, each in its way. ` + (missing ? `The images are not shown: ${missing}.` : found.length ? `${found.length} of them:`
      : onlyA + onlyB + neither ? "None of these is on this page: its images were chosen for the best rows." : ""));
  const word = (who, image, at) => el("span", { class: image.taken[at] === image.label ? "ok" : "no" },
    `${who} ${image.taken[at] === image.label ? "✓" : "✗"} ${name(image.taken[at])}`);
  at("faces").replaceChildren(...found.sort((x, y) => rank(x) - rank(y)).map(image => el("figure", {},
    el("img", { src: image.source, alt: `test image ${image.index}`, width: 64, height: 64 }),
    el("figcaption", {}, el("b", {}, name(image.label)), word("A", image, i), word("B", image, j)))));
  return undefined;
}
