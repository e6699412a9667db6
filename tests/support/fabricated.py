"""A folder of runs as their jobs leave them, and SLURM's answers about those, written by the test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runyard.cluster.slurm.queue import SEPARATOR
from tests.support import fake_runs
from tests.support.fake_runs import BEGAN, Row
from tests.support.fake_slurm import FakeSlurm


def row(event: str, at_s: float, **fields: Any) -> Row:
    """A row of the journal, ``at_s`` after its run was made."""
    return {"event": event, "t": at_s, **fields}


def start(at_s: float, step: int = 0, **fields: Any) -> Row:
    began = {"job_id": "12", "nodelist": "node[1-2]", "nodes": 2, "hostname": "node1", "epoch": 0}
    return fake_runs.start(step, t=at_s, **(began | fields))


def epoch(at_s: float, number: int, top1: float, **fields: Any) -> Row:
    measured = {"step": 100 * number, "test_top1": top1, "images_per_s": 1000.0 * number, "data_wait_pct": 2.5}
    return fake_runs.epoch(number, t=at_s, **(measured | fields))


def stop(at_s: float, reason: str, **fields: Any) -> Row:
    return fake_runs.stop(reason, t=at_s, **fields)


def runs(run: Path) -> str:
    """The end of squeue's line of a job that a submission of ``run`` made."""
    return f"{SEPARATOR}/{SEPARATOR}{run}/slurm/submission_0.sh"


class Folder:
    """A folder of runs, and a SLURM whose squeue and sacct answer what it is told to."""

    def __init__(self, path: Path, slurm: FakeSlurm) -> None:
        self.path, self.slurm, self.made = path, slurm, 0
        for program in ("squeue", "sacct"):
            slurm.program(program, f'cat "$here/{program}.txt" 2>/dev/null; exit 0')

    def run(
        self,
        *rows: Row,
        job: str | None = "12",
        launcher: str = "slurm",
        name: str = "paper",
        progress: Row | None = None,
        submitted: float = 0.0,
        **record: Any,
    ) -> Path:
        """One more run, made a minute after the one before. Its rows' times count from then, its job's as well."""
        made = BEGAN + 60 * self.made
        run_id = f"20260921-{self.made:06d}-{name}-ab12"
        self.made += 1
        folder = self.path / run_id
        noted = {"id": job, "launcher": launcher, "cluster": "x", "nodes": 2, "tasks_per_node": 2,
                 "gpus_per_node": 0, "submitted": made + submitted, "logs": "slurm"}  # fmt: skip
        known = {"name": name, "created": made, "jobs": [noted] if job else []}
        fake_runs.write_run(folder, **(known | record))
        (folder / "slurm").mkdir()
        (folder / "code").mkdir()
        self.append(folder, *rows)
        if progress is not None:
            (folder / "progress.json").write_text(json.dumps({"t": made} | progress))
        return folder

    def append(self, run: Path, *rows: Row) -> None:
        made = json.loads((run / "run.json").read_text())["created"]
        fake_runs.append_rows(run, [row | {"t": made + row["t"]} for row in rows])
        for saved in (row["step"] for row in rows if row["event"] == "checkpoint"):
            place = run / "checkpoints" / f"step_{saved:08d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / "state.pt").touch()
            (place / "manifest.json").write_text(json.dumps({"bytes": 0}))

    def queue(self, *lines: str) -> None:
        """What squeue answers; ``@`` in a line becomes the newest run's id. Its jobs they are."""
        newest = max((path for path in self.path.iterdir()), default=self.path)
        self._answer("squeue.txt", tuple(line if SEPARATOR in line else line + runs(newest) for line in lines))

    def accounting(self, *lines: str) -> None:
        """What sacct answers."""
        self._answer("sacct.txt", lines)

    def _answer(self, file: str, lines: tuple[str, ...]) -> None:
        newest = max((path.name for path in self.path.iterdir()), default="")
        self.slurm.says(f"{file}.new", "".join(line.replace("@", newest) + "\n" for line in lines))
        (self.slurm.folder / f"{file}.new").replace(self.slurm.folder / file)  # whoever asks meanwhile is answered
