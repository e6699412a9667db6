"""What the pages tell people to type is what the program takes.

Verbs, options, settings, experiments, clusters, targets of make and scripts must exist, and settings make a
configuration that a submission would accept. Nothing is trained or submitted here.
"""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from runyard.cli.commands import COMMANDS
from runyard.cli.parser import parse
from runyard.cluster.search.space import lowest_point, split_search_space
from runyard.config.compose import compose, expand
from runyard.errors import UserError
from tests.support.settings import ROOT

PAGES = sorted(page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if page.name != "cli.md")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)  # what is no command has a language: text
QUOTED = re.compile(r"`((?:\.venv/bin/)?(?:runyard|make|sbatch) [^`]+)`")
OTHERS = {"git", "ssh", "wandb"}  # programs that are not this project's
PLACEHOLDERS = {"...": "YOURS", "=S": "=0"}


def typed(page: str) -> list[str]:
    """The commands in a page's blocks, without their comments."""
    text = "\n".join(block for language, block in FENCED.findall(page) if not language)
    commands = re.split(r"\n| && ", text.replace("\\\n", ""))
    return [shlex.join(words) for command in commands if (words := shlex.split(command, comments=True))]


def quoted(page: str) -> list[str]:
    """The commands within sentences."""
    return [" ".join(command.split()) for command in QUOTED.findall(FENCED.sub("", page))]


def accept(command: str, *, whole: bool) -> None:
    """See that this command can be typed; the settings of one that is ``whole`` must make a configuration.

    Raises:
        UserError, AssertionError: it cannot.
    """
    program, *words = shlex.split(command)
    program = program.removeprefix(".venv/bin/")
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words if "=" not in word} <= set(targets), command
    elif program == "sbatch":
        assert any((ROOT / word).is_file() for word in words if word.startswith("slurm/")), command
    elif program == "runyard":
        for placeholder, value in PLACEHOLDERS.items():
            words = [word.removesuffix(placeholder) + value if word.endswith(placeholder) else word for word in words]
        if not whole and (words == ["--help"] or words[1:] == []):  # a sentence may name a verb alone
            assert {*words} <= {"--help", *COMMANDS}, command
            return
        args = parse(words)
        if whole and "overrides" in args and args.command not in ("resume", "settings"):
            settings(args.command, args.overrides, multirun="multirun" in args and args.multirun)
    else:
        assert program in {*OTHERS, "cd", "python"}, command


def settings(verb: str, overrides: list[str], *, multirun: bool) -> None:
    if verb == "sweep" and overrides:  # without any it goes on with one that was begun
        fixed, space = split_search_space(overrides)
        overrides = [*fixed, *lowest_point(space)]
    for point in expand(overrides) if multirun else [overrides]:
        compose(point)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_can_be_typed(page: Path) -> None:
    text = page.read_text()
    for command in typed(text):
        accept(command, whole=True)
    for command in quoted(text):
        accept(command, whole=False)


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_example_of_help_can_be_typed(verb: str) -> None:
    example = import_module(f"runyard.cli.commands.{verb}").EXAMPLE
    for command in re.findall(r"runyard .*?(?= {4}|\)\"$|$)", example):  # several are apart; one is in eval "$(...)"
        accept(command, whole=True)


def test_the_pages_have_commands() -> None:
    assert sum(len(typed(page.read_text())) for page in PAGES) > 30
    assert sum(len(quoted(page.read_text())) for page in PAGES) > 30


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("runyard submitt experiment=paper", "submitt"),
        ("runyard compare --al", "--al"),
        ("runyard submit experiment=papper", "papper"),
        ("runyard submit -m experiment=paper optim.lr=1e-3,2 optim.rate=1", "optim.rate"),
        ("runyard sweep experiment=paper 'optim.lr=log(0.1,0)'", "optim.lr"),
        ("make trian", "trian"),
        ("sbatch slurm/nothing.sbatch", "nothing"),
        ("runyrad submit", "runyrad"),
    ],
)
def test_a_command_that_cannot_be_typed_is_seen(command: str, why: str) -> None:
    page = f"# Page\n\n```\n{command}   # so\n```\n"
    assert len(typed(page)) == 1
    with pytest.raises((UserError, AssertionError), match=why):
        accept(typed(page)[0], whole=True)
