"""``runyard VERB``: a thin dispatch. Each verb imports what it needs, when it needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from runyard.arguments import parse
from runyard.errors import UserError

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 the training failed, 2 a mistake that can be mended, 130 stopped."""
    try:
        args = parse(argv)
        return int(VERBS[args.verb](args) or 0)
    except UserError as error:
        print(f"runyard: {error}", file=sys.stderr)
        return USER_ERROR
    except MemoryError as error:
        print(f"runyard: not enough memory ({error}): ask for less, or free some", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        return FAILED


def prepare(args: argparse.Namespace) -> None:
    from cluster.compose import compose
    from runyard.data import manifest
    from runyard.data.prepare import prepare as prepare_data

    data = compose(args.overrides).config.data
    made = prepare_data(data, progress=not args.json)
    if args.json:
        print(json.dumps(manifest.to_dict(made), indent=1))
    else:
        parts = ", ".join(f"{split.samples:,} {name}" for name, split in made.splits.items())
        print(f"{manifest.folder(data)}: {parts} images in {len(made.classes)} classes, verified{odd_files(made)}")


def odd_files(made: Any) -> str:
    """How many image files were converted or left out, and of what kinds; empty where none was."""
    said = ""
    for word in ("converted", "skipped"):
        if files := made.writer.get(word, {}).get("files", 0):
            kinds = ", ".join(f"{count} {kind}" for kind, count in made.writer[word]["kinds"].items())
            said += f"; {files:,} {word} ({kinds})"
    return said


def submit(args: argparse.Namespace) -> int:
    from cluster import submit as launcher
    from cluster.compose import compose

    wanted = (
        args.overrides
        if any(o.lstrip("+").startswith("experiment=") for o in args.overrides)
        else ["experiment=auto", *args.overrides]
    )
    if args.cfg:
        import yaml

        print(yaml.safe_dump(compose(wanted).values, sort_keys=False), end="")
        return 0
    run, job = launcher.submit(wanted)
    return follow(run, job, detach=args.detach, as_json=args.json)


def resume(args: argparse.Namespace) -> int:
    from cluster import submit as launcher
    from runyard.run import Run

    run = Run.find(args.run, args.runs_dir)
    if run.finished:
        raise UserError(
            f"run {run.id} is finished: there is nothing to go on with; start another with `runyard submit`, "
            f"or write its report again: runyard report {run.reference}"
        )
    run.lease().release()  # refuse at once what another process is writing
    return follow(run, launcher.launch(run), detach=args.detach, as_json=False)


def follow(run: Any, job: Any, *, detach: bool, as_json: bool) -> int:
    """Show a started job to its end and say what comes next."""
    from rich.console import Console

    from cluster.attach import Attached

    console = Console(quiet=as_json, soft_wrap=True)
    console.print(f"run {run.id}, job {job.job_id}, in {run.path}", highlight=False)
    if detach:
        console.print(
            f"follow it:  tail -f {run.path}/metrics.jsonl\nresume it:  runyard resume {run.reference}", highlight=False
        )
        if as_json:
            print(json.dumps({"run": run.id, "job": job.job_id, "path": str(run.path)}))
        return 0
    end = Attached(run, console).follow(job)
    code = {"finished": 0, "interrupted": INTERRUPTED}.get(
        end["reason"], USER_ERROR if end.get("user_error") else FAILED
    )
    if as_json:
        print(
            json.dumps(
                {
                    "run": run.id,
                    "job": job.job_id,
                    "path": str(run.path),
                    "outcome": end["reason"],
                    "message": end["message"],
                }
            )
        )
    elif code == 0:
        print(f"report: {run.path}/report/index.html")
    elif code == INTERRUPTED:
        print(f"stopped, saved. Go on with: runyard resume {run.reference}")
    else:
        print(f"runyard: run {run.id} failed: {end['message']} (logs: {run.path}/slurm)", file=sys.stderr)
    return code


def train(args: argparse.Namespace) -> int:
    from cluster.job import StopFlag
    from runyard.run import Run

    run = Run.find(args.run, args.runs_dir)
    stop = StopFlag()  # before torch, whose import takes seconds
    from runyard.training.distributed import from_environment
    from runyard.training.last_word import RankLost
    from runyard.training.learner import Diverged
    from runyard.training.loop import Outcome
    from runyard.training.loop import train as train_run

    try:
        outcome = train_run(run, stop)
    except (Diverged, RankLost) as error:
        print(f"runyard: {error}", file=sys.stderr)
        return FAILED
    if outcome is Outcome.INTERRUPTED:
        stop.ignore()  # all is saved, and srun ends ranks that are still leaving when rank 0 has left
    # Rank 0 speaks for all, and last: srun --kill-on-bad-exit=1 would end it, saving, at another rank's 130.
    return INTERRUPTED if outcome is Outcome.INTERRUPTED and from_environment(os.environ).rank == 0 else 0


def create(args: argparse.Namespace) -> None:
    from cluster.compose import compose
    from runyard.run import Run

    composed = compose(args.overrides)
    print(Run.create(composed.config, composed.overrides).path)


def report(args: argparse.Namespace) -> None:
    from runyard.report.page import write_report
    from runyard.run import Run

    print(write_report(Run.find(args.run, args.runs_dir)))


def predict(args: argparse.Namespace) -> None:
    from runyard.predict import predict as label
    from runyard.run import Run

    columns = tuple(args.columns.split(","))
    if len(columns) != 2 or not all(columns) or columns[0] == columns[1]:
        raise UserError(f"--columns {args.columns}: expected two different names, as ID,Labels")
    label(
        Run.find(args.run, args.runs_dir),
        args.images,
        args.out,
        which=args.which,
        flip_tta=args.flip_tta,
        columns=columns,
        labels=args.labels,
    )


def inspect(args: argparse.Namespace) -> None:
    from cluster.compose import compose
    from runyard import models
    from runyard.models import summary

    config = compose(args.overrides).config
    known = config.data.num_classes or {"cifar10": 10, "cifar100": 100}.get(config.data.kind)
    classes = known or prepared_classes(config)
    facts = summary.summarise(models.build(config.model, classes, config.data.image_size), config.data.image_size)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        from rich.console import Console

        Console().print(summary.table(facts, f"{config.model.name}, {config.data.image_size} px, {classes} classes"))


def prepared_classes(config: Any) -> int:
    """How many classes an image folder has is known once it is prepared."""
    from runyard.data import manifest

    return len(manifest.load(manifest.folder(config.data)).classes)


def settings(args: argparse.Namespace) -> None:
    from cluster.catalogue import show

    show(args.prefix, as_json=args.json)


def completion(args: argparse.Namespace) -> None:
    from cluster.completion import answer, script

    print(script(args.shell) if args.line is None else "\n".join(answer(args.line)))


_FUNCTIONS = prepare, submit, resume, train, create, report, predict, inspect, settings, completion
VERBS = {function.__name__: function for function in _FUNCTIONS}


if __name__ == "__main__":
    sys.exit(main())
