"""``runyard sweep``: search for better settings with Optuna, on this machine or in arrays on SLURM."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from typing import TYPE_CHECKING, Any

from runyard.cli.parser import add_overrides, add_runs_dir
from runyard.errors import ExitCode, UserError
from runyard.training.stop_signals import sigterm_as_interrupt

if TYPE_CHECKING:
    from pathlib import Path

    from runyard.cluster.search.study import SearchSettings, Study

HELP = "search for better settings with Optuna, here or in arrays on SLURM"
EXAMPLE = "runyard sweep experiment=starter 'optim.lr=log(0.1,3)' 'model.widths=choice([16,32],[32,64])' --trials 20"
SEARCH_DEFAULTS: dict[str, Any] = {"seed": 0, "sampler": "tpe", "prune": True, "measure": "auto"}
RANGE_SYNTAX = "a range is log(a,b), uniform(a,b), int(a,b), int(a,b,step), logint(a,b) or choice(x,y,...)"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.description = f"{HELP}: {RANGE_SYNTAX}"
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="total number of trials (default: 20)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="trials at the same time (default: 1)")
    parser.add_argument("--name", help="name of the search; an existing search continues with its original settings")
    parser.add_argument("--measure", choices=["auto", "val_top1", "test_top1"],
                        help="metric at the last epoch (default: val_top1 with a validation split)")  # fmt: skip
    parser.add_argument("--sampler", choices=["tpe", "random"], help="Optuna sampler (default: tpe)")
    parser.add_argument("--seed", type=int, help="seed of the sampler (default: 0)")
    parser.add_argument("--no-prune", dest="prune", action="store_const", const=False,
                        help="do not stop trials that fall below the median")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the trials as JSON at the end, and nothing else")
    add_runs_dir(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from runyard.cluster.launch import submit as launcher
    from runyard.cluster.launch.waiting import Waiting
    from runyard.cluster.search.space import lowest_point, split_search_space
    from runyard.cluster.search.study import Study, search_lock
    from runyard.cluster.search.sweep import Search
    from runyard.printable import printable
    from runyard.runs.store import runs_dir_option

    for name in ("trials", "parallel"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected a whole number at least 1")
    folder, settings = _load_or_create(args)
    fixed, space = split_search_space([*settings.overrides, *settings.space])
    console = Console(stderr=args.json, soft_wrap=True, highlight=False)

    def report(line: str) -> None:
        console.print(printable(line))

    plan = Waiting(report).until_accepted(lambda: launcher.plan_submission([*fixed, *lowest_point(space)]))
    launcher.require_no_chain(plan.config.cluster)
    config, local = plan.config, plan.config.cluster.launcher == "local"
    with search_lock(folder) as locks:
        settings.save(folder)
        study = Study(folder, settings, space, config.epochs, locks=locks)
        search = Search(study, folder, args.parallel, local, report)
        option = runs_dir_option(folder.parents[1])
        title = f"sweep {study.id}: {args.trials} trials, {args.parallel} at once; runyard status -w{option}"
        try:
            with sigterm_as_interrupt(), console.status(title):
                search.run(args.trials)
        except KeyboardInterrupt:
            search.detach()
            state = "its runs were saved and stopped" if local else "its jobs continue"
            print(f"interrupted: {state}; continue with: {_resume_command(args, study.id, option)}", file=sys.stderr)
            return ExitCode.INTERRUPTED
        return _print_result(study, fixed, folder, option, as_json=args.json)


def _load_or_create(args: argparse.Namespace) -> tuple[Path, SearchSettings]:
    """Return the search's directory and its settings: the stored ones, or new ones from the arguments.

    Raises:
        UserError: the stored settings differ from the arguments, or no settings were given.
    """
    from pathlib import Path

    from runyard.cluster.search.space import read_range
    from runyard.cluster.search.study import SearchSettings
    from runyard.config.overrides import parse_override
    from runyard.runs.run import new_id, sweeps_dir

    runs_dir_overrides = [o for o in args.overrides if _is_runs_dir(o)]
    given = parse_override(runs_dir_overrides[-1]).value() if runs_dir_overrides else args.runs_dir
    runs_dir = Path(str(given)).absolute()
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", args.name):
        raise UserError(f"--name {args.name!r}: expected letters, digits and . _ -, at most 61")
    folder = sweeps_dir(runs_dir) / (args.name or new_id("sweep"))
    stored = SearchSettings.load(folder)
    provided = {name: value for name in SEARCH_DEFAULTS if (value := getattr(args, name)) is not None}
    if not args.overrides:
        if stored is None:
            if args.name:
                raise UserError(f"--name {args.name}: no search of that name in {runs_dir}", f"start one: {EXAMPLE}")
            raise UserError(
                f"no setting was given, so there is nothing to search; {RANGE_SYNTAX}", f"example: {EXAMPLE}"
            )
        _require_unchanged(args, stored, provided)
        return folder, stored
    ranges = [o for o in args.overrides if read_range(o) is not None]
    fixed = [o for o in args.overrides if o not in ranges and not _is_runs_dir(o)]
    requested = SearchSettings(
        [*fixed, f"runs_dir={json.dumps(str(runs_dir))}"], ranges, **(SEARCH_DEFAULTS | provided)
    )
    if stored is not None:
        _require_unchanged(args, stored, vars(requested))
    return folder, requested


def _require_unchanged(args: argparse.Namespace, stored: SearchSettings, requested: dict[str, object]) -> None:
    for name, value in requested.items():
        if (stored_value := getattr(stored, name)) != value:
            raise UserError(f"--name {args.name}: was started with {name} {stored_value}, not with {value}",
                            "leave the settings out to continue it, or choose another --name")  # fmt: skip


def _is_runs_dir(override: str) -> bool:
    return override.lstrip("+").startswith("runs_dir=")


def _resume_command(args: argparse.Namespace, name: str, option: str) -> str:
    return f"runyard sweep --name {name} --trials {args.trials} --parallel {args.parallel}{option}"


def _print_result(study: Study, fixed: list[str], folder: Path, option: str, *, as_json: bool) -> int:
    from runyard.cluster.search.study import runs_by_trial

    runs, best = runs_by_trial(study.id, folder.parents[1]), study.best
    trials: list[dict[str, object]] = [
        {
            "trial": trial.number,
            "run": runs[trial.number].name if trial.number in runs else None,
            "state": trial.state.name.lower(),
            "top1": trial.value,
            "settings": trial.params,
            "why": trial.user_attrs.get("why"),
        }
        for trial in study.trials
    ]
    overrides = [o for o in fixed if option or not _is_runs_dir(o)]
    command = shlex.join([*overrides, *study.sampled_overrides(best)]) if best else ""
    if as_json:
        number = None if best is None else best.number
        print(json.dumps({"sweep": study.id, "best": number, "trials": trials}))
        return ExitCode.FAILED if best is None else 0
    states = [trial["state"] for trial in trials]
    counts = ", ".join(f"{states.count(s)} {w}" for s, w in (("complete", "finished"), ("pruned", "stopped early"),
                                                             ("fail", "failed")) if s in states)  # fmt: skip
    print(f"\nsweep {study.id}: {counts}")
    if best is None:
        print(f"runyard: no trial finished: {trials[-1]['why'] or 'all were stopped'}", file=sys.stderr)
        return ExitCode.FAILED
    bias_note = f"chosen among {len(trials)}, so this estimate is optimistic: confirm it with other seeds"
    print(f"best: trial {best.number}, {100 * (best.value or 0):.2f} %, {bias_note}")
    print(f"train it:               runyard submit {command} seed=1")
    print(f"importance of settings: runyard compare --sweep {study.id}{option}")
    return 0
