"""What a search varies: every word, and what each refuses."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from runyard.cluster.search.space import format_point, lowest_point, override, split_search_space
from runyard.errors import UserError


@pytest.mark.parametrize(("word", "distribution"), [
    ("optim.lr=log(1e-3,1)", FloatDistribution(1e-3, 1, log=True)),
    ("optim.lr=uniform(0,0.5)", FloatDistribution(0, 0.5)),
    ("+optim.lr=uniform( 0, 0.5 )", FloatDistribution(0, 0.5)),
    ("epochs=int(3,9)", IntDistribution(3, 9)),
    ("epochs=int(3,9,2)", IntDistribution(3, 9, step=2)),
    ("batch_size=logint(16,512)", IntDistribution(16, 512, log=True)),
    ("schedule=choice(cosine,one_cycle)", CategoricalDistribution(["cosine", "one_cycle"])),
    ("model.widths=choice([16,32],[32,64])", CategoricalDistribution(["[16,32]", "[32,64]"])),
])  # fmt: skip
def test_a_word_is_a_distribution_and_the_rest_stays(word: str, distribution: object) -> None:
    fixed, space = split_search_space(["experiment=starter", word, "seed=1"])
    assert fixed == ["experiment=starter", "seed=1"]
    assert list(space.values()) == [distribution]
    assert list(space) == [word.lstrip("+").partition("=")[0]]


def test_hydras_own_cast_is_left_to_hydra() -> None:
    fixed, _ = split_search_space(["epochs=int(3.7)", "optim.lr=log(0.1,1)"])
    assert fixed == ["epochs=int(3.7)"]


def test_a_drawn_number_is_written_so_that_it_is_read_back_to_the_bit() -> None:
    value = 0.1 + 0.2
    name, _, text = override("optim.lr", value).partition("=")
    assert (name, float(text)) == ("optim.lr", value)
    assert override("epochs", 3) == "epochs=3"
    assert override("schedule", "cosine") == "schedule=cosine"
    assert format_point({"optim.lr": value, "epochs": 3}) == "optim.lr=0.3 epochs=3"


def test_a_corner_is_a_point_of_the_space() -> None:
    _, space = split_search_space(["optim.lr=log(0.5,1)", "epochs=int(3,9)", "schedule=choice(cosine,one_cycle)"])
    assert lowest_point(space) == ["optim.lr=0.5", "epochs=3", "schedule=cosine"]


@pytest.mark.parametrize(("words", "told"), [
    (["optim.lr=log(0,1)"], r"optim\.lr=log\(0,1\): has no logarithm at 0; begin above 0"),
    (["optim.lr=log(1,0.1)"], "the smaller number first"),
    (["optim.lr=uniform(1,1)"], "the smaller number first"),
    (["optim.lr=uniform(a,1)"], "expected two numbers"),
    (["optim.lr=uniform(0,inf)"], "expected two numbers"),
    (["optim.lr=uniform(0,1,2)"], "expected two numbers"),
    (["epochs=int(1.5,3)"], "expected two whole numbers, and perhaps a step"),
    (["epochs=int(1,4,2)"], "expected a step that leads from 1 to 4"),
    (["epochs=int(1,4,0)"], "expected a step that leads from 1 to 4"),
    (["epochs=logint(1,4,2)"], "expected two whole numbers, as logint"),
    (["schedule=choice(cosine)"], "expected two or more different values"),
    (["schedule=choice(cosine,cosine)"], "expected two or more different values"),
    (["schedule=choice(cosine,)"], "expected two or more different values"),
    (["cluster.nodes=int(1,4)"], "cluster.nodes is the same for all of a search"),
    (["data=choice(cifar10,cifar100)"], "data is the same for all of a search"),
    (["runs_dir=choice(a,b)"], "runs_dir is the same for all of a search"),
    (["optim.lr=log(0.1,1)", "optim.lr=log(0.1,2)"], "was given twice"),
    (["optim.lr=log(0.1,1)", "optim.lr=0.5"], "optim.lr=0.5: it is searched as well"),
    (["optim.lr=interval(0.1,1)"], r"interval\(\) is no range of a search; ranges are log, uniform, int"),
    (["epochs=range(1,5)", "optim.lr=log(0.1,1)"], r"range\(\) is no range of a search"),
    (["optim.lr=0.5"], "nothing to search; give at least one setting a range"),
    ([], "nothing to search"),
])  # fmt: skip
def test_what_is_no_range_is_refused_in_one_line(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        split_search_space(words)
    assert "\n" not in str(refused.value)
