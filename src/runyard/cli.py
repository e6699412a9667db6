"""``runyard VERB``: a thin dispatch. Each verb imports what it needs, when it needs it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from runyard import __version__
from runyard.errors import UserError

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 the training failed, 2 a mistake that can be mended, 130 stopped."""
    args = parser().parse_args(argv)
    try:
        return int(args.verb(args) or 0)
    except UserError as error:
        print(f"runyard: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        return FAILED


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="runyard",
        description="Take an image classifier from the laptop to a preemptible multi-node allocation.",
        epilog="example: runyard submit experiment=starter epochs=5    (every verb has its own --help)",
    )
    top.add_argument("--version", action="version", version=f"runyard {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, function: Any, doc: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name,
            help=doc,
            description=doc,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(verb=function)
        return sub

    def overrides(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "overrides",
            nargs="*",
            metavar="SETTING=VALUE",
            help="as epochs=10, model=starter or optim.lr=1e-3; `runyard settings` lists them",
        )

    p = verb("prepare", prepare, "fetch, verify and write a data set", "runyard prepare data=cifar10")
    overrides(p)
    p.add_argument("--json", action="store_true", help="print the manifest")

    p = verb(
        "submit",
        submit,
        "create a run and start it, following it to its end",
        "runyard submit experiment=auto cluster=local",
    )
    overrides(p)
    p.add_argument("--cfg", choices=["job"], help="print the composed configuration and submit nothing")
    p.add_argument("--detach", action="store_true", help="return once the job has started")
    p.add_argument("--json", action="store_true", help="print run, job and outcome as JSON, and nothing else")

    p = verb("resume", resume, "go on with a run from its newest checkpoint", "runyard resume @last")
    run_argument(p)
    p.add_argument("--detach", action="store_true", help="return once the job has started")

    p = verb(
        "train",
        train,
        "train a run here, in this process (what torchrun and srun start)",
        "torchrun --nproc-per-node 4 -m runyard train runs/ID",
    )
    run_argument(p)

    p = verb(
        "create",
        create,
        "create a run and start nothing, to be trained by `runyard train`",
        "runyard create experiment=paper",
    )
    overrides(p)

    p = verb("report", report, "write a run's figures and page", "runyard report @last")
    run_argument(p)

    p = verb(
        "predict",
        predict,
        "label images that have no labels",
        "runyard predict @last --images test.npy --out predictions.csv",
    )
    run_argument(p)
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
        inspect,
        "print a network's layers, shapes, parameters and multiply-adds",
        "runyard inspect model=paper_resnet",
    )
    overrides(p)
    p.add_argument("--json", action="store_true", help="as JSON")

    p = verb("settings", settings, "list every setting, its default and what it means", "runyard settings optim")
    p.add_argument("prefix", nargs="?", default="", help="only those that begin so")
    p.add_argument("--json", action="store_true", help="as JSON")

    p = verb("completion", completion, "print the shell's completion script", 'eval "$(runyard completion bash)"')
    p.add_argument("shell", choices=["bash", "zsh"])
    p.add_argument("--line", help=argparse.SUPPRESS)
    return top


def run_argument(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", metavar="RUN", help="a path, an id or its beginning, or @last")
    sub.add_argument("--runs-dir", default="runs", help="folder that holds the runs (default: runs)")


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
        print(f"{manifest.folder(data)}: {parts} images in {len(made.classes)} classes, verified")


def submit(args: argparse.Namespace) -> int:
    from cluster import submit as launcher
    from cluster.compose import compose

    wanted = (
        args.overrides
        if any(o.startswith("experiment=") for o in args.overrides)
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
            f"follow it:  tail -f {run.path}/metrics.jsonl\nresume it:  runyard resume {run.id}", highlight=False
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
        print(f"stopped, saved. Go on with: runyard resume {run.id}")
    else:
        print(f"runyard: run {run.id} failed: {end['message']} (logs: {run.path}/slurm)", file=sys.stderr)
    return code


def train(args: argparse.Namespace) -> int:
    from cluster.job import StopFlag

    stop = StopFlag()
    from runyard.run import Run
    from runyard.training.distributed import RankLost
    from runyard.training.learner import Diverged
    from runyard.training.loop import Outcome
    from runyard.training.loop import train as train_run

    try:
        outcome = train_run(Run.find(args.run, args.runs_dir), stop)
    except (Diverged, RankLost) as error:
        print(f"runyard: {error}", file=sys.stderr)
        return FAILED
    return 0 if outcome is Outcome.FINISHED else INTERRUPTED


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
    if len(columns) != 2 or not all(columns):
        raise UserError(f"--columns {args.columns}: expected two names, as ID,Labels")
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


if __name__ == "__main__":
    sys.exit(main())
