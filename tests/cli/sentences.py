"""tests/cli/sentences.txt: what each mistake is answered with. Written by: python -m tests.cli.sentences

What is asserted there is asserted nowhere else: other tests name the setting, the error's class or the exit code.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from runyard.cli.main import main
from runyard.data.prepare.pipeline import prepare_dataset
from tests.support.settings import ROOT, SMALL, SMALL_DATA, compose

PAGE = Path(__file__).with_name("sentences.txt")
HEAD = """\
What runyard answers to a mistake: the command, what it prints ("problem; fix"), its exit code if that is not 2.
A test provokes each (tests/cli/test_sentences.py). Written by: python -m tests.cli.sentences
SMALL is the settings of a small run.
"""


@dataclass(frozen=True)
class Section:
    """Mistakes of one kind: each is what follows ``command``."""

    title: str
    command: str
    mistakes: tuple[str, ...]


SECTIONS = (
    Section("The command line", "", (
        "", "sumbit", "submit --epochs=3", "train x -m", "submit --js", "submit --cfg hydra", "submit --cfg job -m",
        "resume", "report a b", "predict @last", "completion fish", "settings zzz", "sync", "compare",
    )),
    Section("A name of a setting", "create SMALL", (
        "epohcs=3", "lr=3", "+new.thing=1", "modle=starter", "optim=adam", "experiment=nope", "optim=", "'~data'",
        "epochs", "''", "epochs=[1", '"name=it\'s"', "epochs=1,2", "'epochs=${nope}'", "'epochs=???'", "loss=5",
        "model=resnet", "model.name=foo", "model.name=paper_resnet", "model.dropout=0.5", "model.widht=[1]",
    )),
    Section("A value of a setting", "create SMALL", (
        "epochs=0", "epochs=abc", "epochs=1.5", "epochs=9007199254740993", "workers=100000", "optim.lr=nan",
        "optim.lr=1e400", "optim.lr=0", "optim.betas=[0.9,1]", "precision=fp64", "name='a b'",
        "name=../x", "runs_dir=", "tracking.tags=5", "model.widths=16", "model.head_scale=nan",
        "data.validation_fraction=1", "deterministic=maybe",
    )),
)  # fmt: skip


def provoke(section: Section, folder: Path, data_root: Path) -> str:
    """Make each mistake of ``section`` in an own folder below ``folder``, and return its part of the page."""
    parts = [f"\n# {section.title}\n"]
    for number, mistake in enumerate(section.mistakes):
        here = folder / f"{number}"
        here.mkdir()
        command = f"{section.command} {mistake}".strip()
        sentence, code = _answer(command, here, data_root)
        parts.append(f"\nrunyard {command}".rstrip() + f"\n    {sentence}\n" + f"    exit code {code}\n" * (code != 2))
    return "".join(parts)


def _answer(command: str, here: Path, data_root: Path) -> tuple[str, int]:
    small = [*SMALL, f"data.root={data_root}", f"runs_dir={here / 'runs'}"]
    argv = [word for part in shlex.split(command) for word in (small if part == "SMALL" else [part])]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(here),
        mock.patch.dict(os.environ, COLUMNS="80"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(argv)
    left = [path for path in here.rglob("*") if path.is_file() and not path.name.endswith("lock")]
    lines = err.getvalue().splitlines()
    assert (out.getvalue(), len(lines), left) == ("", 1, []), (command, code, out.getvalue(), lines, left)
    return _masked(lines[0].removeprefix("runyard: "), here, data_root), code


def _masked(sentence: str, here: Path, data_root: Path) -> str:
    """Without what differs from one machine or version of Python to another."""
    for path, name in ((here, "HERE"), (data_root, "DATA"), (ROOT, "CHECKOUT")):
        sentence = sentence.replace(str(path), name)
    return re.sub(r"\(choose from .*?\)", lambda choices: choices[0].replace("'", ""), sentence)  # as 3.13 has it


def render() -> str:
    """The page."""
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder) / "data"
        data_root.mkdir()
        prepare_dataset(compose(*SMALL_DATA, f"data.root={data_root}").data, progress=False)
        parts = []
        for number, section in enumerate(SECTIONS):
            (Path(folder) / f"{number}").mkdir()
            parts.append(provoke(section, Path(folder) / f"{number}", data_root))
        return HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
