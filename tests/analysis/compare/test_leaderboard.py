"""`runyard leaderboard`: the best of each data set, under a limit of parameters, and nothing that has not finished."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.support.fake_runs import Compare, Make


@pytest.fixture
def runs(make: Make) -> None:
    for seed, top1 in enumerate((0.93, 0.95)):
        make(top1, seed=seed, name="strong")
    small = make(0.92, name="small", lr=3e-3)
    path = small.directory / "metrics.jsonl"
    path.write_text(path.read_text().replace("4693962", "1000000"))
    make(0.99, name="running", lr=1e-2, done=9, end="")
    make(0.70, name="hundred", settings={"data.name": "cifar100"}, data="1", device="cpu")


@pytest.mark.usefixtures("runs")
def test_each_data_set_has_its_own_ranking_of_means_over_seeds(compare: Compare) -> None:
    code, out, _ = compare("--json", verb="leaderboard")
    assert code == 0
    places = json.loads(out)
    assert [(p["data"], p["place"], p["recipe"]) for p in places] == [
        ("cifar10", 1, "strong"),
        ("cifar10", 2, "small"),
        ("cifar100", 1, "hundred"),
    ]
    assert places[0]["last"] == pytest.approx(0.94)
    assert places[0]["last_sd"] == pytest.approx(0.0141, abs=1e-4)
    assert (places[0]["n"], places[0]["seeds"], places[0]["parameters"]) == (2, "0 1", 4_693_962)
    assert places[0]["gpu_hours"] == pytest.approx(0.4)
    assert places[2]["gpu_hours"] is None
    assert places[2]["core_hours"] == pytest.approx(0.8)


@pytest.mark.usefixtures("runs")
def test_a_limit_of_parameters_leaves_out_what_is_larger_and_says_so(compare: Compare) -> None:
    _, out, _ = compare("--max-parameters", "2e6", "--data", "cifar10", verb="leaderboard")
    assert "small" in out
    assert "strong" not in out
    assert "Not ranked: 1 with more than 2,000,000 parameters and 1 without a finished run." in out
    _, out, _ = compare("--data", "cifar10", "--max-parameters", "4693962", "--csv", verb="leaderboard")
    assert [row["recipe"] for row in csv.DictReader(io.StringIO(out))] == ["strong", "small"]  # the limit is allowed


@pytest.mark.usefixtures("runs")
def test_a_run_of_unknown_size_is_under_no_limit_and_is_counted(compare: Compare, runs_dir: Path) -> None:
    path = next(runs_dir.glob("*small*")) / "metrics.jsonl"
    path.write_text(path.read_text().replace('"parameters"', '"forgotten"'))
    _, out, _ = compare("--max-parameters", "5e6", "--data", "cifar10", verb="leaderboard")
    assert "small" not in out
    assert "Not ranked: 1 with an unknown number of parameters and 1 without a finished run." in out
    assert "small" in compare("--data", "cifar10", verb="leaderboard")[1]
    assert "larger or of unknown size" in compare("--max-parameters", "1e3", verb="leaderboard")[2]


@pytest.mark.usefixtures("runs")
def test_a_data_set_of_failed_runs_alone_has_no_board_but_they_are_counted(compare: Compare, make: Make) -> None:
    for lr in (1e-3, 3e-3):
        make(name="fell", lr=lr, settings={"data.name": "mnist"}, data="2", done=1, end="failed", message="x")
    code, out, _ = compare(verb="leaderboard")
    assert code == 0
    assert "mnist" not in out
    assert "Not ranked: 3 without a finished run." in out
    assert {place["data"] for place in json.loads(compare("--json", verb="leaderboard")[1])} == {"cifar10", "cifar100"}
    code, out, err = compare("--data", "mnist", verb="leaderboard")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "no run has finished: nothing to rank yet. Not ranked: 2 without a finished run." in err
    said = "all 3 finished are larger. Not ranked: 3 with more than 1,000 parameters and 3 without a finished run."
    assert said in compare("--max-parameters", "1e3", verb="leaderboard")[2]


@pytest.mark.usefixtures("runs")
def test_the_best_epoch_may_rank_instead_of_the_last(compare: Compare, runs_dir: Path) -> None:
    path = next(runs_dir.glob("*small*")) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["event"] == "epoch" and row["epoch"] == 5:
            row["test_top1"] = 0.96
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def first(metric: str) -> str:
        return str(json.loads(compare("--metric", metric, "--json", verb="leaderboard")[1])[0]["recipe"])

    assert (first("top1"), first("best")) == ("strong", "small")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("width", [80, 200])
def test_it_fits_the_terminal(compare: Compare, width: int) -> None:
    _, out, _ = compare(verb="leaderboard", width=width)
    assert max(map(len, out.splitlines())) <= width
    _, out, _ = compare("--top", "1", verb="leaderboard", width=width)
    assert "cifar10: 2 ranked, the first 1" in out
    assert "small" not in out


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--data", "mnist"), "there are cifar10, cifar100"),
        (("--max-parameters", "1e3"), "all 3 finished are larger"),
        (("--max-parameters", "few"), "as 5e6"),
        (("--metric", "loss"), "invalid choice"),
        (("--top", "0"), "at least 1"),
    ],
)
def test_where_there_is_no_answer_one_line_says_why(compare: Compare, argv: tuple[str, ...], said: str) -> None:
    code, out, err = compare(*argv, verb="leaderboard")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_the_newest_run_is_the_last_created_and_not_the_one_of_the_highest_seed(compare: Compare, make: Make) -> None:
    older, newer = make(seed=5), make(seed=0)
    _, out, _ = compare(verb="leaderboard", width=200)
    assert newer.id in out
    assert older.id not in out


def test_without_a_finished_run_there_is_no_board(compare: Compare, make: Make) -> None:
    make(done=3, end="failed", message="x")
    code, out, err = compare(verb="leaderboard")
    assert (code, out) == (2, "")
    assert "no run has finished" in err
