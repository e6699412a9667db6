"""What helps at the command line: examples, completion, JSON where it is asked for; and quickly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runyard.cli.commands import COMMANDS
from runyard.cli.completion import completions
from runyard.cli.main import main


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verbs_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert re.search(rf"^example: .*\b{verb}\b", capsys.readouterr().out, re.MULTILINE)


def test_help_imports_neither_torch_nor_hydra() -> None:
    ask = (
        "import sys, runyard.cli.main\ntry: runyard.cli.main.main(['--help'])\nexcept SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'numpy', 'hydra', 'submitit'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    assert said.endswith("loaded []\n")


def test_json_is_all_that_is_said_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "optim", "--json"]) == 0
    assert "optim.lr" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert main(["inspect", "model=paper_resnet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 4_693_962


ASK = 'eval "$(runyard completion bash)"; COMP_LINE=$1 COMP_POINT=${#1}; _runyard 2>/dev/null; echo "${COMPREPLY[@]}"'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("runyard rep", "report"),
        ("runyard submit optim=a", "adamw"),
        ("runyard submit compile=d", "default"),
        ("runyard submit experiment=a", "auto"),
        ("runyard inspect model.wid", "model.widths="),
        ("runyard settings optim.l", "optim.lr"),
        ("runyard completion ", "bash zsh"),
        ("runyard report @", "@last"),
        ("runyard slurm s", "shell status"),
        ("runyard predict @last --images ", ""),
        ("runyard submit zzz", ""),
    ],
)
def test_the_tab_key_completes_in_bash(line: str, words: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-c", ASK, "bash", line], env=environment, capture_output=True, text=True)
    assert said.stdout.strip() == words


def test_completion_knows_every_verb() -> None:
    assert completions("runyard ") == list(COMMANDS)
