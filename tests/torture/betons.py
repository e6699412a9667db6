"""Row 8: damaged data is refused in words, or it was harmless: never a hang, and never other images without a word."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from runyard.data import manifest
from runyard.runs.run import Run
from tests.support.zygote import First
from tests.torture.ground import Ground, discard
from tests.torture.promise import Attacker, Promise, hold

KINDS = {
    "raw": ("loader=ffcv", "epochs=1"),
    "jpg": ("loader=ffcv", "epochs=1", "data.write_mode=jpg", "data.jpeg_quality=90"),
    "arrays": ("epochs=1",),
}
HEADER, FIELDS = 24, 2 * 1041  # bytes of an FFCV file's header and of its two field descriptors


def strike(a: Attacker) -> str:
    """A mutant of a prepared data set, submitted and learned from by one rank."""
    kind = a.rng.choice(list(KINDS))
    ways: dict[str, Any] = {"beton": beton, "beton ": beton, "manifest": of_manifest, "no file": no_file}
    way = a.rng.choice([*ways, "while mapped"])
    run, folder = mutable(a.ground, kind)
    first: First = [] if way != "while mapped" else [while_mapped(a.rng, folder)]
    words = ways[way](a.rng, folder) if way in ways else "while mapped"
    train_on(a.ground, run, kind, first, f"{kind}: {words}")
    shutil.rmtree(folder.parent)
    discard(run)
    return f"{kind} {way.strip()}"


def mutable(ground: Ground, kind: str) -> tuple[Run, Path]:
    """A run on a copy of the data set of that kind, and the folder that holds the copy."""
    from runyard.data.prepare.pipeline import prepare_dataset

    config = ground.config(*KINDS[kind])
    prepare_dataset(config.data, progress=False)
    root = ground.scratch()
    folder = Path(shutil.copytree(manifest.dataset_dir(config.data), root / manifest.dataset_dir(config.data).name))
    overrides = [*KINDS[kind], f"data.root={root}"]
    return Run.create(_at(ground, tuple(KINDS[kind]), root), overrides), folder


def _at(ground: Ground, overrides: tuple[str, ...], root: Path) -> Any:
    import dataclasses

    config = ground.config(*overrides)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))


def train_on(ground: Ground, run: Run, kind: str, first: First, words: str) -> None:
    """Submit's own checks, then a start: refused by name, or the same bits as on the data that was prepared."""
    whole = ground.undisturbed(1, *KINDS[kind])
    pid = ground.start(run, 1, {0: [*first, ("tests.torture.betons:as_submit", str(run.path))]})
    (code,), said = pid.wait(), pid.said
    if code == 0:
        other = whole.differences(run)
        hold(not other, f"{words}: learned from it without a word; {other} differ")
        return
    lines = [line for line in said.splitlines() if line.startswith("runyard: ") and "warning" not in line]
    hold(code > 0, f"{words}: ended by signal {-code}: {said[-200:]}")
    hold("Traceback" not in said, f"{words}: a traceback: {said[-300:]}")
    hold(lines, f"{words}: exit {code} without a word")
    hold(run.config.data.root in lines[-1] or "beton" in lines[-1], f"{words}: names no file: {lines[-1]}")


def as_submit(run_dir: str) -> None:
    """In the rank, before it trains: what ``runyard submit`` looks at before it puts a job on the queue."""
    import sys

    from runyard.cluster.launch.checks import preflight
    from runyard.cluster.launch.submit import check_context
    from runyard.errors import ExitCode, UserError

    try:
        preflight.data_prepared(check_context([Run.open(run_dir).config], "runyard prepare"))
    except UserError as error:
        print(f"runyard: {error}", file=sys.stderr)
        sys.exit(ExitCode.USER_ERROR)


def beton(rng: random.Random, folder: Path) -> str:
    """Some bytes of a part of the file are others, or its end is missing, or something follows it."""
    path = folder / rng.choice(("train.beton", "test.beton"))
    content = bytearray(path.read_bytes())
    samples = int.from_bytes(content[8:16], "little")
    table = int.from_bytes(content[16:24], "little")
    records = HEADER + FIELDS
    part, begin, end = rng.choice((
        ("header", 0, HEADER), ("fields", HEADER, records), ("records", records, records + 24 * samples),
        ("pixels", records + 24 * samples, table), ("table", table, len(content)), ("cut", 0, len(content)),
        ("grown", 0, len(content)),
    ))  # fmt: skip
    at = rng.randrange(begin, end)
    if part == "cut":
        del content[at:]
    elif part == "grown":
        content += bytes(rng.randrange(1, 1 << 16))
    else:
        for _ in range(rng.choice((1, 1, 8))):
            at = min(end - 1, at + rng.randrange(4))
            content[at] = rng.choice((0, 1, 255, rng.randrange(256), content[at] ^ 1 << rng.randrange(8)))
    path.write_bytes(content)
    return f"{path.name}, {part} at byte {at}"


def of_manifest(rng: random.Random, folder: Path) -> str:
    """One value is another, of another type, or gone; or the text is no JSON."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    if rng.random() < 0.2:
        text = path.read_text()
        path.write_text(text[: rng.randrange(len(text))])
        return "manifest.json cut"
    within: Any = rng.choice((values, *values["splits"].values(), values["splits"]))
    key = rng.choice(list(within))
    if rng.random() < 0.3:
        del within[key]
    else:
        within[key] = rng.choice((None, 0, -1, 10**9, 1.5, "", "../x", [], {}, True, "0" * 64, [0.0, 0.0, 0.0]))
    path.write_text(json.dumps(values))
    return f"manifest.json, {key}={within.get(key, 'gone')!r}"


def no_file(rng: random.Random, folder: Path) -> str:
    """Where a file is expected there is something else."""
    path = folder / rng.choice(sorted(file.name for file in folder.iterdir() if file.is_file()))
    path.unlink()
    kind = rng.choice(("missing", "directory", "fifo", "device", "dangling", "loop"))
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind in ("dangling", "loop"):
        path.symlink_to(path if kind == "loop" else folder / "nowhere")
    return f"{path.name} {kind}"


def while_mapped(rng: random.Random, folder: Path) -> tuple[Any, ...]:
    """At a step, the file that is being read is cut, or another takes its place."""
    return ("tests.torture.betons:change_at_step", str(folder), rng.randint(1, 8), rng.choice(("cut", "replaced")))


def change_at_step(folder: str, step: int, way: str) -> None:
    """In a rank."""
    from tests.torture.moments import around

    def change(number: int) -> None:
        if number == step:
            for path in Path(folder).glob("train.*"):
                if way == "cut":
                    os.truncate(path, 4096)
                else:
                    (path.parent / "new").write_bytes(bytes(path.stat().st_size))
                    os.replace(path.parent / "new", path)

    around("runyard.training.train_state:TrainState.train_step", before=change)


def unlooked_at(a: Attacker) -> str:
    """A label is another, and nobody looks at the file before learning from it."""
    run, folder = mutable(a.ground, "arrays")
    import numpy as np

    labels = folder / json.loads((folder / "manifest.json").read_text())["splits"]["train"]["labels"]
    changed = np.load(labels)
    np.save(labels, (changed + 1) % 4)
    train_on(a.ground, run, "arrays", [("tests.torture.betons:believe_everything",)], "labels changed")
    return ""


def believe_everything() -> None:
    """In a rank: whatever a file holds is what was prepared."""
    from runyard.cluster.launch.checks import preflight
    from runyard.training import trainer

    preflight.data_prepared = lambda context: ""  # type: ignore[assignment]
    trainer.check_content = lambda *_, **__: None  # type: ignore[attr-defined]


PROMISE = Promise(
    number=8,
    promise="Data that is not what was prepared is refused by name, before the queue or at the start; whatever is "
    "accepted gives the same bits.",
    attack="Mutants of raw and JPEG betons (header, fields, records, pixels, table, ends), of arrays and of the "
    "manifest; a directory, FIFO, device or loop in a file's place; files cut or replaced while they are read.",
    at_least=500,
    short=6,
    strike=strike,
    control=unlooked_at,
    switched_off="no file is looked at",
)
