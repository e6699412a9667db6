"""What ``runyard`` may be told: its verbs, their arguments, and an example of each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from runyard import __version__
from runyard.errors import UserError


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; ``verb`` is its name. Overrides may stand before and after options.

    Raises:
        UserError: an unknown verb or option, or one that lacks its value.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    strangers = [word for word in rest if word.startswith("-") or "overrides" not in args]
    if strangers:
        raise UserError(f"{strangers[0]}: runyard {args.verb} takes no such argument; see: runyard {args.verb} --help")
    if rest:
        args.overrides += rest
    return args


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with an example of what is right."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.epilog}")


def _parser() -> _Parser:
    top = _Parser(
        prog="runyard",
        description="Take an image classifier from the laptop to a preemptible multi-node allocation.",
        epilog="example: runyard submit experiment=starter epochs=5    (every verb has its own --help)",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"runyard {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, doc: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=doc,
            description=doc,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(verb=name)
        return sub

    def overrides(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "overrides",
            nargs="*",
            metavar="SETTING=VALUE",
            help="as epochs=10, model=starter or optim.lr=1e-3; `runyard settings` lists them",
        )

    p = verb("prepare", "fetch, verify and write a data set", "runyard prepare data=cifar10")
    overrides(p)
    p.add_argument("--json", action="store_true", help="print the manifest")

    p = verb(
        "submit",
        "create a run and start it, following it to its end",
        "runyard submit experiment=auto cluster=local",
    )
    overrides(p)
    p.add_argument("--cfg", choices=["job"], help="print the composed configuration and submit nothing")
    p.add_argument("--detach", action="store_true", help="return once the job has started")
    p.add_argument("--json", action="store_true", help="print run, job and outcome as JSON, and nothing else")

    p = verb("resume", "go on with a run from its newest checkpoint", "runyard resume @last")
    _run_argument(p)
    p.add_argument("--detach", action="store_true", help="return once the job has started")

    p = verb(
        "train",
        "train a run here, in this process (what torchrun and srun start)",
        "torchrun --nproc-per-node 4 -m runyard train runs/ID",
    )
    _run_argument(p)

    p = verb(
        "create",
        "create a run and start nothing, to be trained by `runyard train`",
        "runyard create experiment=paper",
    )
    overrides(p)

    p = verb("report", "write a run's figures and page", "runyard report @last")
    _run_argument(p)

    p = verb(
        "predict",
        "label images that have no labels",
        "runyard predict @last --images test.npy --out predictions.csv",
    )
    _run_argument(p)
    p.add_argument(
        "--images",
        required=True,
        type=Path,
        help="a folder of images, a .npy or .npz array, or a pickled dict with a data array",
    )
    p.add_argument("--out", required=True, type=Path, help="the CSV to write")
    p.add_argument("--which", choices=["last", "best"], default="last", help="checkpoint (default: last)")
    p.add_argument("--flip-tta", action="store_true", help="average with the mirrored image")
    p.add_argument("--columns", default="ID,Labels", help="names of the two columns (default: ID,Labels)")
    p.add_argument(
        "--labels", choices=["index", "name"], default="index", help="write class numbers or names (default: index)"
    )

    p = verb(
        "inspect",
        "print a network's layers, shapes, parameters and multiply-adds",
        "runyard inspect model=paper_resnet",
    )
    overrides(p)
    p.add_argument("--json", action="store_true", help="as JSON")

    p = verb("settings", "list every setting, its default and what it means", "runyard settings optim")
    p.add_argument("prefix", nargs="?", default="", help="only those that begin so")
    p.add_argument("--json", action="store_true", help="as JSON")

    p = verb("completion", "print the shell's completion script", 'eval "$(runyard completion bash)"')
    p.add_argument("shell", choices=["bash", "zsh"])
    p.add_argument("--line", help=argparse.SUPPRESS)
    return top


def _run_argument(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN", help="a path, an id or its beginning, or @last")
    sub.add_argument("--runs-dir", default="runs", help="folder that holds the runs (default: runs)")
