"""Which runs `runyard compare` takes, and what it says of those that it cannot compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.comparing import document
from tests.support.fake_runs import Compare, Make


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
        ((), "--all"),
        (("--all", "@last"), "@last"),
        (("nobody",), "nobody"),
        (("--tag", "x"), "tags there: mine"),
        (("--sweep", "x"), "20260901-120000-grid-0001"),
        (("--all", "--where", "lr<1"), "optim.lr"),
        (("--all", "--where", "optim.lr>5"), "--where optim.lr>5: "),
        (("--all", "--sort", "beauty"), "--sort beauty: "),
        (("--all", "--target", "92"), "--target 92: "),
        (("--all", "--target", "high"), "--target high: "),
        (("--all", "--baseline", "nobody"), "--baseline nobody: "),
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
    assert "newest there: apple, " in compare("--sweep", "nobody")[2]


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
    assert f"without metrics so far: run {empty.id} (waiting)" in err
    assert f"skipped {damaged.directory}/config.yaml" in err
    assert len(err.splitlines()) == 4


def test_different_data_sets_are_marked_and_never_paired(compare: Compare, make: Make) -> None:
    make(0.9, test_images=100)
    make(0.8, lr=3e-3, test_images=100, data="1")
    make(0.5, settings={"data.name": "cifar100"}, data="2", test_images=100)
    _, out, _ = compare("--all")
    marks = ("cifar10 (1)", "cifar10 (2)", "cifar100", "other", "different images", "the only one of its data set")
    for mark in marks:
        assert mark in out
    assert [pair["mcnemar"] for pair in document(compare, "--all")["pairs"]] == [None]


def test_predictions_that_cannot_be_read_are_named_and_those_that_were_not_kept_are_not(
    compare: Compare, make: Make
) -> None:
    damaged, _, _ = make(0.9, test_images=100), make(0.91, lr=3e-3), make(0.92, lr=1e-2, test_images=100)
    path = damaged.directory / "predictions.npz"
    path.write_bytes(path.read_bytes()[:500])
    assert compare("--all")[2] == f"runyard: predictions.npz cannot be read: run {damaged.id} (finished)\n"
