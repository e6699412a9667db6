"""`runyard compare`, as a person meets it: choosing runs, the table, its other forms, and bad input."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runyard.analysis.compare.statistics import welch
from runyard.config.schema import Config
from tests.compare.conftest import Compare, Make
from tests.compare.fabricate import fabricate

HEAVY = ("torch", "torchvision", "ffcv", "wandb", "numba", "cv2", "hydra", "submitit")
ROOT = Path(__file__).resolve().parents[2]
MEASURED = "import sys; from benchmarks.commands import cost; print(*cost(sys.argv[1:]))"
SWEEP = "20260901-120000-grid-0001"


@pytest.fixture
def grid(make: Make) -> None:
    """Two learning rates x three seeds of one sweep, and a run that failed in it."""
    for seed in range(3):
        make(0.920 + 0.001 * seed, seed=seed, sweep=SWEEP, test_images=100)
        make(0.930 + 0.002 * seed, seed=seed, lr=3e-3, sweep=SWEEP, restarts=(4,), test_images=100)
    make(lr=1.0, sweep=SWEEP, done=2, end="failed", message="the loss is not a finite number")
    make(0.5, name="other", settings={"tracking.tags": ["mine"]})


def document(compare: Compare, *argv: str) -> dict[str, Any]:
    code, out, _ = compare(*argv, "--json")
    assert code == 0
    return json.loads(out)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("grid")
def test_the_figures_are_the_journals(compare: Compare) -> None:
    rows = document(compare, "--sweep", "@last", "--target", "90%")["rows"]
    best, second, failed = rows
    assert best["settings"] == {"optim.lr": 3e-3}
    assert best["seeds"] == [0, 1, 2]
    assert best["last"] == pytest.approx(np.mean([0.930, 0.932, 0.934]))
    assert best["last_sd"] == pytest.approx(np.std([0.930, 0.932, 0.934], ddof=1))
    assert best["restarts"] == 3
    assert best["gpu_hours"] == pytest.approx(10 * 36 * 4 / 3600)
    assert best["gpu_hours_total"] == pytest.approx(3 * best["gpu_hours"])
    assert second["last"] == pytest.approx(0.921)
    assert (failed["state"], failed["n"]) == ("failed 2/10", 1)


@pytest.mark.usefixtures("grid")
def test_the_time_to_a_target_is_where_the_journal_first_reaches_it(compare: Compare, runs_dir: Path) -> None:
    rows = document(compare, "--all", "--where", "state=finished", "--target", "0.9215")["rows"]
    expected: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(runs_dir.glob("*/metrics.jsonl")):
        journal = [json.loads(line) for line in path.read_text().splitlines()]
        there = [(row["epoch"], row["clock_s"]) for row in journal if (row.get("test_top1") or 0) >= 0.9215]
        expected[path.parent.name] = there
    for row in rows:
        first = [expected[run["id"]][0] if expected[run["id"]] else (np.inf, np.inf) for run in row["runs"]]
        epoch, clock_s = (float(np.median([f[at] for f in first])) for at in (0, 1))
        assert row["reached"] == sum(np.isfinite(f[0]) for f in first)
        assert (row["epochs_to_target"], row["clock_s_to_target"]) == (
            (epoch, clock_s) if np.isfinite(epoch) else (None, None)
        )
    by_lr = {row["settings"]["optim.lr"]: row for row in rows if row["name"] == "paper"}
    assert by_lr[1e-3]["reached"] == 1  # of three: the median seed never came
    assert by_lr[1e-3]["epochs_to_target"] is None


@pytest.mark.usefixtures("grid")
def test_pairs_say_what_was_tested_and_how(compare: Compare) -> None:
    (pair,) = document(compare, "--sweep", "@last")["pairs"]
    expected = welch([0.930, 0.932, 0.934], [0.920, 0.921, 0.922])
    assert expected is not None
    assert (pair["welch"]["low"], pair["welch"]["high"]) == pytest.approx((expected.low, expected.high))
    assert pair["mcnemar"]["images"] == 100
    _, out, _ = compare("--sweep", "@last")
    for words in ("Welch's t over seeds", "95% interval", "McNemar's exact test", "Mean ± standard deviation"):
        assert words in out


@pytest.mark.usefixtures("grid")
def test_a_sweep_is_summed_up(compare: Compare) -> None:
    code, out, _ = compare("--sweep", "20260901-12")
    assert code == 0
    assert "Sweep 20260901-120000-grid-0001: 7 runs, 6 finished, 1 failed." in out
    assert "Best point: optim.lr=0.003" in out
    assert "Failed, 1: the loss is not a finite number (20260901-000006-paper-ab12)" in out
    assert "ε²" in out
    assert "in runs that did not finish" in out
    assert document(compare, "--all")["sweep"] is None


@pytest.mark.usefixtures("grid")
def test_by_run_the_seed_stands_beside_the_id_and_in_groups_it_is_said_what_columns_are_made_of(
    compare: Compare,
) -> None:
    _, out, _ = compare("--sweep", "@last", "--by-run", "--where", "state=finished", width=200)
    _, head, _, first, *_ = out.splitlines()
    assert head.split()[:2] == ["run", "seed"]
    assert first.split()[:2] == ["20260901-000005-paper-ab12", "2"]
    assert "restarts are the sum" not in out
    _, out, _ = compare("--sweep", "@last", "--target", "0.9", width=200)
    assert "  seed  " not in out.partition("─")[0]
    assert (
        "Hours and rates are means of the n runs that count, costs to the target are their medians, "
        "restarts are the sum over all runs of a row." in out
    )


@pytest.mark.usefixtures("grid")
@pytest.mark.parametrize("width", [80, 200])
def test_the_page_fits_the_terminal(compare: Compare, width: int) -> None:
    _, out, _ = compare("--all", "--target", "0.92", width=width)
    assert max(map(len, out.splitlines())) <= width


@pytest.mark.usefixtures("grid")
def test_rows_come_best_first_or_by_any_column(compare: Compare) -> None:
    def order(*argv: str) -> list[Any]:
        return [row["last"] for row in document(compare, "--all", "--where", "state=finished", *argv)["rows"]]

    assert order() == sorted(order(), reverse=True)
    assert order("--sort=-last") == sorted(order())
    names = [row["run"] for row in document(compare, "--all", "--sort", "run")["rows"]]
    assert names == sorted(names)
    rates = [row["settings"]["optim.lr"] for row in document(compare, "--all", "--sort", "optim.lr")["rows"]]
    assert rates == sorted(rates)
    unknown_last = [row["last"] for row in document(compare, "--all", "--sort", "core_hours")["rows"]]
    assert len(unknown_last) == 4


def test_rows_come_by_state_and_by_data_which_are_columns_too(compare: Compare, make: Make) -> None:
    make(0.9, settings={"data.name": "mnist"}, data="1")
    make(0.8, settings={"data.name": "cifar10"}, data="2")
    make(0.7, settings={"data.name": "stl10"}, data="3", done=2, end="failed")

    def order(*argv: str) -> list[tuple[str, str]]:
        return [(row["data"], row["state"].partition(" ")[0]) for row in document(compare, "--all", *argv)["rows"]]

    a, b, c = ("cifar10", "finished"), ("mnist", "finished"), ("stl10", "failed")
    assert order("--sort", "data") == [a, b, c]
    assert order("--sort=-data") == [c, b, a]
    assert order("--sort", "state")[0] == order("--sort=-state")[2] == c
    assert order() == [b, a, c]
    assert "run, n, state, data, and every setting" in compare("--all", "--sort", "beauty")[2]


@pytest.mark.usefixtures("grid")
def test_csv_has_a_line_a_row_in_full_precision(compare: Compare) -> None:
    _, out, _ = compare("--all", "--by-run", "--csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert len(lines) == 8
    assert {float(line["optim.lr"]) for line in lines} == {1e-3, 3e-3, 1.0}
    assert sorted(float(line["last"]) for line in lines)[-1] == 0.934


@pytest.mark.usefixtures("grid")
def test_markdown_is_a_table_of_whole_names(compare: Compare) -> None:
    _, out, _ = compare("--all", "--by-run", "--md", width=40)
    assert "| 20260901-000007-other-ab12 |" in out
    assert out.startswith("| run |")


@pytest.mark.usefixtures("grid")
def test_runs_are_chosen_by_id_beginning_path_tag_and_condition(compare: Compare, runs_dir: Path) -> None:
    def ids(*argv: str) -> list[str]:
        return sorted(run["id"] for row in document(compare, *argv)["rows"] for run in row["runs"])

    assert ids("20260901-000000", str(runs_dir / "20260901-000001-paper-ab12"), "@last") == [
        "20260901-000000-paper-ab12",
        "20260901-000001-paper-ab12",
        "20260901-000007-other-ab12",
    ]
    assert ids("@last", "20260901-000007") == ["20260901-000007-other-ab12"]  # once
    assert ids("--tag", "mine") == ["20260901-000007-other-ab12"]
    assert ids("--all", "--where", "optim.lr<1e-2", "--where", "seed=0 and sweep!=null") == [
        "20260901-000000-paper-ab12",
        "20260901-000001-paper-ab12",
    ]


@pytest.mark.usefixtures("grid")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "which runs"),
        (("--all", "@last"), "not both"),
        (("nobody",), "no run nobody"),
        (("--tag", "x"), "tags there: mine"),
        (("--sweep", "x"), "the newest there is 20260901-120000-grid-0001"),
        (("--all", "--where", "lr<1"), "optim.lr"),
        (("--all", "--where", "optim.lr>5"), "none of 8 runs fits"),
        (("--all", "--sort", "beauty"), "no such column"),
        (("--all", "--target", "92"), "as 92%"),
        (("--all", "--target", "high"), "as 0.92"),
        (("--all", "--baseline", "nobody"), "fits none of the rows"),
        (("--all", "--json", "--csv"), "not allowed with"),
    ],
)
def test_where_there_is_no_answer_one_line_says_why(compare: Compare, argv: tuple[str, ...], said: str) -> None:
    code, out, err = compare(*argv)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_the_last_sweep_is_the_newest_and_not_the_last_by_its_name(compare: Compare, make: Make) -> None:
    make(sweep="zebra")
    make(sweep="20260901-000001-grid-0001")
    make(sweep="apple", lr=3e-3)
    make(sweep="zebra", lr=3e-3, began=1_700_000_000.0)
    assert document(compare, "--sweep", "@last")["sweep"]["id"] == "apple"
    assert "the newest there is apple" in compare("--sweep", "nobody")[2]


def test_why_runs_failed_stands_under_the_table_and_in_json(compare: Compare, make: Make) -> None:
    make(0.9)
    for at, why in enumerate(("no room on disk 7", "the loss is nan at step 5", "x", "y")):
        make(lr=at + 1.0, done=1, end="failed", message=f"{why}\nTraceback")
    killed = make(lr=9.0, done=1, end="")
    _, out, _ = compare("--all", width=200)
    assert "Failed, 1: no room on disk 7 (20260901-000001-paper-ab12)" in out
    assert "Failed, 2 more: see --json." in out
    assert "Traceback" not in out
    said = {run["id"]: run["message"] for row in document(compare, "--all")["rows"] for run in row["runs"]}
    assert said["20260901-000002-paper-ab12"] == "the loss is nan at step 5\nTraceback"
    assert said[killed.id].startswith("no sign of life since")


def test_trials_that_were_refused_are_counted_with_their_reason(compare: Compare, make: Make, runs_dir: Path) -> None:
    make(sweep="lr")
    rows = [{"trial": 1, "why": "too many"}, {"trial": 2, "why": "too many"}, {"trial": 2, "why": "too many"}]
    (runs_dir / ".sweeps" / "lr").mkdir(parents=True)
    (runs_dir / ".sweeps" / "lr" / "refused.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = compare("--sweep", "lr")
    assert "1 finished; 2 more trials were refused" in out
    assert "Refused before it became a run, 2: too many" in out
    assert document(compare, "--sweep", "lr")["sweep"]["refused"] == ["too many"] * 2
    (runs_dir / ".sweeps" / "lr" / "refused.jsonl").write_text("{")
    assert "refused" not in compare("--sweep", "lr")[1]


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside a run"])
def test_of_a_search_whose_trials_were_all_refused_the_reason_is_said(
    compare: Compare, make: Make, runs_dir: Path, others: bool
) -> None:
    if others:
        make(sweep="other")
    (runs_dir / ".sweeps" / "large").mkdir(parents=True)
    rows = [{"trial": at, "why": f"batch_size {at}: too\nlarge"} for at in (1, 2)]
    (runs_dir / ".sweeps" / "large" / "refused.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("large", "lar", *["@last"] * (not others)):
        code, out, err = compare("--sweep", name)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "--sweep large: none of its 2 trials became a run: batch_size 1: too" in err
    assert "none of its" not in compare("--sweep", "larger")[2]


def test_a_torn_line_of_the_refused_trials_costs_that_line(compare: Compare, make: Make, runs_dir: Path) -> None:
    make(sweep="lr")
    (runs_dir / ".sweeps" / "lr").mkdir(parents=True)
    path = runs_dir / ".sweeps" / "lr" / "refused.jsonl"
    whole = '{"trial": 1, "why": "too many"}\n{"trial": 2, "why": "too few"}\n'
    path.write_text(whole)
    assert compare("--sweep", "lr")[2] == ""
    for torn in ('{"trial": 3, "wh', "[1]", '{"trial": 3}', '{"trial": [3], "why": "x"}'):
        path.write_text(whole + torn)
        _, out, err = compare("--sweep", "lr")
        assert "1 finished; 2 more trials were refused" in out
        assert err == "runyard: sweep lr: 1 broken line in refused.jsonl, skipped\n"


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_a_file_that_cannot_be_written_does_not_cost_the_table(
    compare: Compare, make: Make, tmp_path: Path, option: str
) -> None:
    make(0.9)
    (tmp_path / "file").write_text("")
    code, out, err = compare("--all", option, str(tmp_path / "file" / "x"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{option} {tmp_path / 'file' / 'x'}: cannot write" in err
    assert "90.00" in out


@pytest.mark.parametrize("name", [".", "/", ""])
def test_a_page_without_a_name_is_refused_in_one_line_after_the_table(compare: Compare, make: Make, name: str) -> None:
    make(0.9)
    code, out, err = compare("--all", "--html", name)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "cannot write it" in err
    assert "90.00" in out


def test_an_empty_folder_and_runs_without_metrics_are_refused_in_one_line(compare: Compare, make: Make) -> None:
    code, out, err = compare("--all")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    (make().directory / "metrics.jsonl").unlink()
    code, out, err = compare("--all")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "without metrics" in err


def test_what_is_damaged_is_named_and_the_rest_is_shown(compare: Compare, make: Make) -> None:
    make(0.9)
    broken, empty, damaged = make(0.91, lr=3e-3), make(0.92, lr=1e-2), make(0.93, lr=2e-2)
    path = broken.directory / "metrics.jsonl"
    path.write_text("no json\n" + path.read_text() + '{"event": "epo')
    (empty.directory / "metrics.jsonl").unlink()
    (damaged.directory / "config.yaml").write_text("[")
    code, out, err = compare("--all", "--json")
    assert code == 0
    assert [row["last"] for row in json.loads(out)["rows"]] == [0.91, 0.9, None]
    assert f"run {broken.id}: 1 broken line in metrics.jsonl (1), skipped" in err
    assert f"run {broken.id}: the last line of metrics.jsonl is half-written" in err
    assert f"without metrics so far: run {empty.id} (not started)" in err
    assert f"skipped {damaged.directory}/config.yaml" in err
    assert len(err.splitlines()) == 4


def test_different_data_sets_are_marked_and_never_paired(compare: Compare, make: Make) -> None:
    make(0.9, test_images=100)
    make(0.8, lr=3e-3, test_images=100, data="1")
    make(0.5, settings={"data.name": "cifar100"}, data="2", test_images=100)
    _, out, _ = compare("--all")
    marks = ("cifar10 (1)", "cifar10 (2)", "cifar100", "other", "different test images", "the only one of its data set")
    for mark in marks:
        assert mark in " ".join(out.split())
    assert [pair["mcnemar"] for pair in document(compare, "--all")["pairs"]] == [None]


def test_which_seeds_networks_mcnemar_held_against_each_other_is_said(compare: Compare, make: Make) -> None:
    def said() -> str:
        return " ".join(compare("--all")[1].split())

    make(0.9, seed=0, test_images=100)
    make(0.91, seed=0, lr=3e-3, test_images=100)
    assert "test images, of the lowest seed that both have; 1 pair." in said()
    make(0.92, seed=1, lr=1e-2, test_images=100)
    mixed = "of the lowest seed that both have, or where they have none in common each row's lowest; p is adjusted"
    assert mixed in said()
    code, out, _ = compare("--all", "--where", "optim.lr>=3e-3")
    assert code == 0
    assert "of each row's lowest seed; 1 pair." in " ".join(out.split())


def test_where_nothing_is_tested_it_is_said_why(compare: Compare, make: Make) -> None:
    def said(*argv: str) -> str:
        return " ".join(compare("--all", *argv)[1].split())

    for seed in range(3):
        make(0.913, seed=seed)
        make(0.914, seed=seed, lr=3e-3, test_images=100 * (seed == 0))
    out = said()
    assert "No spread between seeds: paper-b vs paper-a." in out
    assert "No predictions kept: without a predictions.npz of both" in out
    assert "p Welch" not in out
    for seed in range(3):  # where a column says it of each pair, no sentence does
        make(0.92 + seed / 1000, seed=seed, lr=1e-2, test_images=100)
    out = said()
    assert out.count("no spread between seeds") == 1
    assert out.count("no predictions kept") == 2
    assert "No spread" not in out
    assert "No predictions" not in out


def test_by_run_nobody_is_told_to_train_seeds_that_are_rows_beside_it(compare: Compare, make: Make) -> None:
    def said(*argv: str) -> str:
        return " ".join(compare("--all", *argv)[1].split())

    for seed in range(3):
        make(0.91 + seed / 1000, seed=seed)
    assert "One run a row: leave --by-run out for tests over seeds." in said("--by-run")
    assert "train the same" not in said("--by-run")
    alone = make(0.92, seed=5, lr=3e-3)
    assert (
        f"Not enough seeds (n=1): {alone.id}. How much seeds alone differ is unknown there: train the same with "
        "seed=6,7." in said("--by-run")
    )
    assert "leave --by-run out" in said("--by-run")
    assert "leave --by-run out" not in said()
    assert "Not enough seeds (n=1): paper-b." in said()


def test_without_a_pair_it_is_said_what_was_not_tested(compare: Compare, make: Make) -> None:
    make(0.9)
    assert "Not tested" not in compare("--all")[1]
    make(lr=3e-3, done=2, end="failed", message="x")
    out = compare("--all")[1]
    said = "Not tested: paper-a (the only one of its data set that finished); paper-b (unfinished)."
    assert out.rstrip().endswith(said)
    assert "Is it real?" not in out


def test_a_baseline_that_is_alone_on_its_data_set_is_not_called_of_another(compare: Compare, make: Make) -> None:
    make(0.9, name="base")
    make(0.8, name="far", settings={"data.name": "cifar100"}, data="1")
    out = compare("--all", "--baseline", "base")[1]
    assert out.rstrip().endswith("Not tested: far (of another data set).")


def test_predictions_that_cannot_be_read_are_named_and_those_that_were_not_kept_are_not(
    compare: Compare, make: Make
) -> None:
    damaged, _, _ = make(0.9, test_images=100), make(0.91, lr=3e-3), make(0.92, lr=1e-2, test_images=100)
    path = damaged.directory / "predictions.npz"
    path.write_bytes(path.read_bytes()[:500])
    assert compare("--all")[2] == f"runyard: predictions.npz cannot be read: run {damaged.id} (finished)\n"


def test_json_is_json_whatever_the_settings_are(compare: Compare, make: Make) -> None:
    nan, inf = float("nan"), float("inf")
    make(0.9, lr=nan, settings={"epochs": 10, "model.widths": [1.0, -inf]}, sweep="odd")
    make(0.91, lr=inf, sweep="odd")

    def read(*argv: str, verb: str = "compare") -> Any:
        code, out, _ = compare(*argv, "--json", verb=verb)
        assert code == 0
        return json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))

    rows = read("--sweep", "odd")["rows"]
    assert [row["settings"]["optim.lr"] for row in rows] == ["inf", "nan"]
    assert rows[1]["settings"]["model.widths"] == [1.0, "-inf"]
    assert len(read(verb="leaderboard")) == 2
    with pytest.raises(pytest.fail.Exception):
        json.loads('{"optim.lr": NaN}', parse_constant=lambda word: pytest.fail(word))


@pytest.mark.parametrize("verb", ["compare", "leaderboard"])
def test_line_breaks_and_control_characters_in_names_and_settings_break_no_table(
    compare: Compare, make: Make, verb: str
) -> None:
    evil = "a\nb\x1b[31mc\rd\u2028e\tg"
    for at, name in enumerate((evil, evil, "plain")):
        settings = {"name": name, "model.name": name, "data.name": evil}  # no id: a run of such an id is damaged
        make(0.9 + at / 100, lr=1e-3 * (at + 1), settings=settings)
    failed = make(lr=1.0, name="plain", done=1, end="failed", message=f"{evil}{evil}", settings={"data.name": evil})
    assert "\x1b" in failed.message
    every = ["--all"] if verb == "compare" else []
    for form in ([], ["--md"], ["--md", "--by-run"][: 1 + len(every)]):
        code, out, _ = compare(*every, *form, verb=verb, width=400)
        assert code == 0
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", out)
        assert r"a\nb\x1b[31mc\rd\u2028e\tg" in out
        table = [line for line in out.splitlines() if re.search(r"9[0-2]\.00", line)]
        assert len(table) == 3
        assert "--md" not in form or all(line.startswith("|") and line.endswith("|") for line in table)


def test_one_seed_is_said_to_be_not_enough(compare: Compare, make: Make) -> None:
    make(0.9)
    make(0.91, lr=3e-3)
    _, out, _ = compare("--all")
    assert "Not enough seeds (n=1): paper-b, paper-a." in out
    assert "seed=1,2" in out
    assert "interval" not in out


def heavy_after(code: str) -> set[str]:
    """Which heavy packages a fresh process holds after ``code``."""
    show = f"import sys\n{code}\nprint('HEAVY', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("HEAVY")[2].split())


@pytest.mark.usefixtures("grid")
@pytest.mark.parametrize(
    "verb",
    ["['compare', '--all', '--target', '0.9'", "['leaderboard'", "['compare', '--all', '--html', 'page.html'"],
    ids=["table", "leaderboard", "page"],
)
def test_comparing_loads_no_torch_and_no_launcher(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code = f"from runyard.cli.main import main\nassert main({verb}, '--runs-dir', {str(runs_dir)!r}]) == 0"
    assert heavy_after(code) == set()
    assert "numba" in heavy_after(code + "\nimport numba")


def test_two_hundred_runs_are_compared_in_bounded_time_and_memory(runs_dir: Path, recipe: Config) -> None:
    """Bounds for a machine that is busy with other things: benchmarks/compare.py measures."""
    config = replace(recipe, epochs=50)
    for at in range(200):
        settings = {"seed": at % 3, "optim.lr": 1e-3 * (1 + at // 3)}
        fabricate(runs_dir, config, f"20260901-{at:06d}-paper-ab12", settings=settings, test_images=1000)
    command = [sys.executable, "-m", "runyard", "compare", "--all", "--runs-dir", str(runs_dir)]
    measured = [sys.executable, "-c", MEASURED, *command]  # a fork's peak begins with its parent's, and ours is large
    seconds, memory_mb = map(float, subprocess.run(measured, cwd=ROOT, capture_output=True, check=True).stdout.split())
    assert seconds < 20
    assert memory_mb < 300
