"""The text below the table: significance tests and sweep results, as sentences and small tables."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from runyard.analysis.compare.choose import RunSelection
from runyard.analysis.compare.groups import Group, format_setting
from runyard.analysis.compare.importance import METHOD, Sweep
from runyard.analysis.compare.pairs import NO_SPREAD, NOT_KEPT, OTHER_IMAGES, UNKNOWN_IMAGES, PairTest, PairTests
from runyard.analysis.compare.statistics import CONFIDENCE
from runyard.analysis.compare.table import TableRow, as_dict
from runyard.analysis.compare.text import Column, format_numbers, format_p_value, on_one_line
from runyard.runs.results.history import RunHistory

Layout = Callable[[Sequence[Column]], str]
CHOSEN_BY = {
    "val": "the last top-1 on the held-out part",
    "last": "the last test top-1, so the test set itself chose it, which flatters",
}
IMAGES_LABEL = {OTHER_IMAGES: "other", UNKNOWN_IMAGES: "unknown"}  # in the column "test images"


def table_notes(groups: Sequence[Group]) -> list[str]:
    """Return a paragraph on how the table's numbers were computed, and why its rows may not be comparable."""
    out = []
    if any(group.seed_count > 1 for group in groups):
        out.append("Mean ± standard deviation over n seeds.")
    if any(group.finished and len(group.counted_runs) < len(group.runs) for group in groups):
        out.append("Of each seed the newest finished run that was evaluated counts.")
    if any(run.selection_metric == "test_top1" for group in groups for run in group.counted_runs):
        out.append("best is chosen by the test set itself and flatters, where no images are held out for it.")
    if len({group.runs[0].test_sha256 for group in groups if group.runs[0].test_sha256}) > 1:
        out.append("Rows are of different test images: see data.")
    if mixed := [group.label for group in groups if len({run.code_sha256 for run in group.runs}) > 1]:
        out.append(f"Submitted with more than one version of the code: {_first_names(mixed)}.")
    if mixed := [g.label for g in groups if len({run.device for run in g.counted_runs if run.device}) > 1]:
        out.append(f"Run on more than one kind or number of devices: {_first_names(mixed)}.")
    if moved := [(g.label, run.ranks) for g in groups for run in g.counted_runs if len(run.ranks) > 1]:
        changes = [f"{label} ({' then '.join(map(str, ranks))})" for label, ranks in moved]
        out.append(f"The number of ranks changed midway, which changes what is learned: {_first_names(changes)}.")
    return [" ".join(out)] if out else []


def column_notes(groups: Sequence[Group], target: float | None = None) -> list[str]:
    """Return a sentence on columns that are computed from different runs, if rows have several."""
    if all(len(group.runs) == 1 for group in groups):
        return []
    medians = ", costs to the target are their medians" if target is not None else ""
    return [
        f"Hours and rates are means of the n runs that count{medians}, restarts are the sum over all runs of a row."
    ]


def wrap(paragraph: str, width: int) -> str:
    """Break a sentence into lines of ``width`` characters; tables are left as they are."""
    return paragraph if "\n" in paragraph else textwrap.fill(paragraph, width, break_on_hyphens=False)


def pair_text(pairs: PairTests, render_table: Layout) -> list[str]:
    """Return paragraphs on the tests, the table of pairs, and what is missing for more tests; [] for one group."""
    if not pairs.pairs:
        return _missing(pairs) if len(pairs.excluded) > 1 else []
    title = "Is it real? Differences of the last test top-1 in percentage points, first less second"
    if pairs.baseline is not None:
        title += f", against {pairs.baseline.label}" + (
            ", the best of these same figures, which favours it" if pairs.baseline_is_best else ""
        )
    elif pairs.baseline_is_best:
        title += "; of many, each against the best of its data set by these same figures, which favours it"
    columns = [Column("pair", [_pair_name(p, pairs) for p in pairs.pairs], right_aligned=False)]
    if any(p.no_mcnemar in IMAGES_LABEL for p in pairs.pairs):
        images = [IMAGES_LABEL.get(p.no_mcnemar, "same") for p in pairs.pairs]
        columns.append(Column("test images", images, right_aligned=False))
    columns.append(Column("difference", [_points(p.difference) for p in pairs.pairs]))
    paragraphs, notes = [title + "."], []
    if any(p.welch for p in pairs.pairs):
        columns.append(Column(f"{CONFIDENCE:.0%} interval", [_interval(p) for p in pairs.pairs]))
        columns.append(Column("p Welch", [format_p_value(p.means_p_holm) if p.welch else "" for p in pairs.pairs]))
        notes.append(
            f"Welch's t over seeds; {_family(sum(1 for p in pairs.pairs if p.welch))} "
            "The interval is for one pair by itself."
        )
    if any(p.mcnemar for p in pairs.pairs):
        columns.append(Column("right alone", [_right_alone(p) for p in pairs.pairs]))
        columns.append(
            Column("p McNemar", [format_p_value(p.mcnemar.p_holm) if p.mcnemar else _no(p) for p in pairs.pairs])
        )
        image_counts = " or ".join(f"{n:,}" for n in sorted({p.mcnemar.images for p in pairs.pairs if p.mcnemar}))
        notes.append(
            f"McNemar's exact test of two networks on the same {image_counts} test images, {_seeds(pairs)}; "
            f"{_family(sum(1 for p in pairs.pairs if p.mcnemar))} It says whether these two networks differ, "
            "not whether their settings do."
        )
    paragraphs.append(render_table(columns))
    paragraphs += notes + _missing(pairs)
    return paragraphs


def sweep_text(sweep: Sweep, name: str, render_table: Layout) -> list[str]:
    """Return paragraphs on the best point, the importance of settings, failures, and cost."""
    states = ", ".join(f"{count} {state}" for state, count in sweep.states.items())
    states += f"; {len(sweep.refused)} more trials were refused" if sweep.refused else ""
    paragraphs = [f"Sweep {name}: {sweep.runs} runs, {states}."]
    if sweep.best is not None:
        settings = [effect.setting for effect in sweep.effects]
        point = (
            "  ".join(f"{s}={format_setting(sweep.best.settings.get(s))}" for s in sorted(settings)) or sweep.best.label
        )
        test = f"; on the test set {100 * sweep.best.mean('last'):.2f} %" if sweep.measure == "val" else ""
        score = (
            f"{100 * sweep.best.mean(sweep.measure):.2f} % over {sweep.best.seed_count} "
            f"seed{'s' * (sweep.best.seed_count != 1)}"
        )
        paragraphs.append(f"Best point: {point}  ({sweep.best.label}, {score}{test}), by {CHOSEN_BY[sweep.measure]}.")
    if sweep.effects and sweep.evaluated > 1:
        labels = [f"{e.setting} ({f'{e.levels} bins' if e.binned else f'{e.levels} values'})" for e in sweep.effects]
        shares = ["unknown" if e.importance is None else f"{100 * e.importance:.0f} %" for e in sweep.effects]
        if sweep.seed_variance_fraction is not None:
            labels.append("(between seeds)")
            shares.append(f"{100 * sweep.seed_variance_fraction:.0f} %")
        name = CHOSEN_BY[sweep.measure].partition(",")[0]
        paragraphs.append(f"What mattered, over {sweep.evaluated} finished runs, for {name}:")
        paragraphs.append(render_table([Column("setting", labels, right_aligned=False), Column("share", shares)]))
        paragraphs.append(f"({METHOD}{_unexplained_text(sweep)}.)")
    paragraphs += failure_text(sweep.failures, max_reasons=len(sweep.failures))
    paragraphs += [
        on_one_line(f"Refused before it became a run, {count}: {reason}")
        for reason, count in Counter(sweep.refused).items()
    ]
    paragraphs.append(f"Cost: {_cost(sweep)}, {_span(sweep.wall_s)} from the first start to the last end.")
    return paragraphs


def failure_text(failures: Mapping[str, Sequence[RunHistory]], max_reasons: int = 3) -> list[str]:
    """Return a line for each of the ``max_reasons`` most frequent reasons of failures, and a count of the others."""
    lines = []
    for reason, runs in [*failures.items()][:max_reasons]:
        ids, more = ", ".join(run.id for run in runs[:3]), ", ..." * (len(runs) > 3)
        message = runs[0].message.partition("\n")[0] if len(runs) == 1 else ""  # with its numbers
        lines.append(on_one_line(f"Failed, {len(runs)}: {message or reason} ({ids}{more})"))
    if remaining := sum(map(len, [*failures.values()][max_reasons:])):
        lines.append(f"Failed, {remaining} more: see --json.")
    return lines


def as_json_document(
    rows: Sequence[TableRow], pairs: PairTests, sweep: Sweep | None, selection: RunSelection
) -> dict[str, object]:
    """Return the whole comparison as a JSON-ready mapping."""
    return {
        "rows": [as_dict(row) for row in rows],
        "pairs": [pair_as_dict(pair) for pair in pairs.pairs],
        "sweep": sweep_as_dict(sweep, selection.sweep) if sweep and selection.sweep else None,
        "notes": selection.notes,
    }


def pair_as_dict(pair: PairTest) -> dict[str, object]:
    """Return a pair's tests as a JSON-ready mapping: accuracies as fractions of 1, p values raw and adjusted."""
    welch, mcnemar = pair.welch, pair.mcnemar
    return {
        "first": pair.first.label,
        "second": pair.second.label,
        "difference": pair.difference,
        "welch": {
            "difference": welch.difference,
            "low": welch.low,
            "high": welch.high,
            "confidence": CONFIDENCE,
            "df": welch.df,
            "p": welch.p,
            "p_holm": pair.means_p_holm,
        }
        if welch
        else None,
        "no_welch": pair.no_welch or None,
        "mcnemar": {
            "first_run": mcnemar.first.id,
            "second_run": mcnemar.second.id,
            "images": mcnemar.images,
            "only_first_right": mcnemar.only_first,
            "only_second_right": mcnemar.only_second,
            "p": mcnemar.p,
            "p_holm": mcnemar.p_holm,
        }
        if mcnemar
        else None,
        "no_mcnemar": pair.no_mcnemar or None,
    }


def sweep_as_dict(sweep: Sweep, name: str) -> dict[str, object]:
    """Return a sweep's results as a JSON-ready mapping."""
    return {
        "id": name,
        "runs": sweep.runs,
        "states": sweep.states,
        "best": sweep.best.label if sweep.best else None,
        "best_by": {"val": "val_top1", "last": "test_top1"}[sweep.measure],
        "importance": {
            "method": METHOD,
            "runs": sweep.evaluated,
            "between_seeds": sweep.seed_variance_fraction,
            "settings": {
                e.setting: {"share": e.importance, "levels": e.levels, "binned": e.binned} for e in sweep.effects
            },
        },
        "failures": {reason: [run.id for run in runs] for reason, runs in sweep.failures.items()},
        "refused": list(sweep.refused),
        **{
            name: value if math.isfinite(value := getattr(sweep, name)) else None
            for name in ("gpu_hours", "gpu_hours_lost", "core_hours", "core_hours_lost", "wall_s")
        },
    }


def _first_names(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _pair_name(pair: PairTest, pairs: PairTests) -> str:
    """Return both names, or the first alone if the title names the common baseline."""
    return pair.first.label if pairs.baseline is not None else f"{pair.first.label} vs {pair.second.label}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"


def _interval(pair: PairTest) -> str:
    if pair.welch is None:
        return pair.no_welch.partition(" (")[0]
    return f"{_points(pair.welch.low)} to {_points(pair.welch.high)}"


def _no(pair: PairTest) -> str:
    return "" if pair.no_mcnemar in IMAGES_LABEL else pair.no_mcnemar


def _right_alone(pair: PairTest) -> str:
    return f"{pair.mcnemar.only_first:,} : {pair.mcnemar.only_second:,}" if pair.mcnemar else ""


def _family(count: int) -> str:
    return "1 pair." if count == 1 else f"p is adjusted by Holm for {count} pairs."


def _seeds(pairs: PairTests) -> str:
    same = {p.mcnemar.first.seed == p.mcnemar.second.seed for p in pairs.pairs if p.mcnemar}
    if same == {False}:
        return "of each row's lowest seed"
    fallback = ", or where they have none in common each row's lowest" * (False in same)
    return f"of the lowest seed that both have{fallback}"


def _missing(pairs: PairTests) -> list[str]:
    """Return why some pairs have no test and why some groups are in no pair."""
    groups = {g.label: g for p in pairs.pairs for g in (p.first, p.second)}
    out = []
    single = [g for g in groups.values() if g.seed_count < 2]
    seeds: dict[tuple[str, str | None], set[int | None]] = {}
    for g in [*groups.values(), *(g for g in pairs.excluded if g.finished)]:
        seeds.setdefault(_repeats(g), set()).update(run.seed for run in g.counted_runs)
    if any(len(seeds[_repeats(g)]) > 1 for g in single):
        out.append("One run a row: leave --by-run out for tests over seeds.")
    if single := [g for g in single if len(seeds[_repeats(g)]) < 2]:
        next_seed = max((run.seed or 0 for g in single for run in g.runs), default=0) + 1
        out.append(
            f"Not enough seeds (n=1): {_first_names([g.label for g in single])}. How much seeds alone differ is "
            f"unknown there: train the same with seed={next_seed},{next_seed + 1}."
        )
    if not any(p.welch for p in pairs.pairs) and (no_spread := [p for p in pairs.pairs if p.no_welch == NO_SPREAD]):
        out.append(
            f"No spread between seeds: {_first_names([_pair_name(p, pairs) for p in no_spread])}. Where all seeds of "
            "both came to one accuracy there is no test over seeds."
        )
    if not any(p.mcnemar for p in pairs.pairs) and any(p.no_mcnemar == NOT_KEPT for p in pairs.pairs):
        out.append(
            "No predictions kept: without a predictions.npz of both it is unknown which images a network got "
            "right, so there is no paired test."
        )
    if any(p.no_mcnemar == OTHER_IMAGES for p in pairs.pairs):
        out.append("Networks that were tested on different images are not compared by a paired test.")
    if any(p.no_mcnemar == UNKNOWN_IMAGES for p in pairs.pairs):
        out.append("Without its data.json it is unknown which test images a run saw: it is in no paired test.")
    reasons: dict[str, list[str]] = {}
    compared = {g.runs[0].data_name for g in groups.values()}
    given_baseline = pairs.baseline is not None and not pairs.baseline_is_best
    alone_reason = "of another data set" if given_baseline else "the only one of its data set that finished"
    for g in (g for g in pairs.excluded if g is not pairs.baseline):
        reason = (
            "unfinished"
            if not g.finished
            else "never evaluated"
            if math.isnan(g.mean("last"))
            else alone_reason
            if g.runs[0].data_name not in compared
            else "not among the best"
        )
        reasons.setdefault(reason, []).append(g.label)
    if reasons:
        out.append(
            f"Not tested: {'; '.join(f'{_first_names(labels)} ({reason})' for reason, labels in reasons.items())}."
        )
    return out


def _repeats(group: Group) -> tuple[str, str | None]:
    """Return a key that is equal for rows that differ only in their seed, as rows do with --by-run."""
    return group.runs[0].settings_sha256, group.runs[0].test_sha256


def _unexplained_text(sweep: Sweep) -> str:
    """Return what the shares do not explain, which depends on the design of the sweep; empty without shares."""
    if all(effect.importance is None for effect in sweep.effects):
        return ""
    if not sweep.full_factorial:
        return "; values were not combined evenly, so that shares overlap and need not add up to 100 %"
    parts = ["what settings do only together"] * (len(sweep.effects) > 1)
    parts += ["what values do within a bin"] * any(e.binned for e in sweep.effects)
    parts += ["what seeds do"] * (sweep.seed_variance_fraction is None)
    return f"; what is missing from 100 % is {' and '.join(parts)}" if parts else ""


def _cost(sweep: Sweep) -> str:
    parts = []
    for total, lost, unit in (
        (sweep.gpu_hours, sweep.gpu_hours_lost, "GPU-hours"),
        (sweep.core_hours, sweep.core_hours_lost, "core-hours without a GPU"),
    ):
        if total:
            parts.append(
                f"{format_numbers([total])[0]} {unit}"
                + (f" ({format_numbers([lost])[0]} in runs that did not finish)" if lost else "")
            )
    return " and ".join(parts) or "nothing"


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"
