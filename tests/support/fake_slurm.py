"""SLURM's commands as far as submissions and batch scripts call them: scripts on PATH that write down what they do."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

NUMBER = "4711"  # of the first job that this sbatch takes
BEGIN = """#!/bin/bash
here={folder}
printf '%s\\n' "${{0##*/}} $*" >> "$here/calls"
"""
# "down" holds for how many calls the controller is away, or nothing.
AWAY = """
if [ -e "$here/down" ]; then
    left=$(cat "$here/down")
    case $left in "") ;; 1) rm "$here/down" ;; *) echo $((left - 1)) > "$here/down" ;; esac
    echo "${0##*/}: error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
fi
"""
SBATCH = """
case $1 in --version) echo slurm 22.05.8; exit ;; --test-only) exit ;; esac
cp "$1" "$here/script"; env > "$here/sbatch.env"
[ ! -e "$here/refusal" ] || { cat "$here/refusal" >&2; [ -e "$here/queues anyway" ] || exit 1; }
number=$((4711 + $(cat "$here/taken" 2>/dev/null || echo 0)))
echo $((number - 4710)) > "$here/taken"
printf '%s|%s|%s|%s\\n' $number "$(sed -n 's/^#SBATCH --job-name=//p' "$1")" \\
    "$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")" "$1" >> "$here/queue"
[ ! -e "$here/refusal" ] || exit 1
[ ! -e "$here/banner" ] || cat "$here/banner"
[ -e "$here/silent" ] || echo "Submitted batch job $number"
"""
SQUEUE = (
    AWAY
    + """
mine= format=
for word in "$@"; do
    case $word in
    --me) mine=yes ;;
    --format=*) format=${word#--format=} ;;
    --jobs=*) cat "$here/known" 2>/dev/null ;;
    esac
done
[ "$format" != "%E" ] || { cat "$here/dependencies" 2>/dev/null; exit 0; }
[ -n "$mine" ] && [ -e "$here/queue" ] || exit 0
while IFS='|' read -r number name last script; do
    [ "$format" != "%F %o" ] || { echo "$number $script"; continue; }
    for id in $(if [ -z "$last" ]; then echo $number; else seq -f "${number}_%g" 0 "$last"; fi); do
        printf '%s|PENDING|Priority|0:00|10:00|N/A||%s\\037/\\037%s\\n' "$id" "$name" "$script"
    done
done < "$here/queue"
"""
)
SCANCEL = (
    AWAY
    + """
for word in "$@"; do
    case $word in
    --*) ;;
    *) [ ! -e "$here/queue" ] || sed -i "/^${word%%_*}|/d" "$here/queue" ;;
    esac
done
"""
)
SCONTROL = (
    AWAY
    + """
env > "$here/scontrol.env"
case "$1 $2" in
ping*) echo "Slurmctld(primary) at here is UP"; exit ;;
"show config")
    printf "%s\\n" "SLURM_VERSION = 22.05.8" "MaxArraySize = 1001" "AccountingStorageEnforce = none"; exit ;;
"show job")
    cat "$here/shown" 2>/dev/null || date -d "+1 hour" "+   StartTime=Unknown EndTime=%FT%T"; exit ;;
esac
[ ! -e "$here/broken" ] || { cat "$here/broken" >&2; exit 1; }
"""
)
SRUN = (
    AWAY.replace("error: Unable", f"error: Unable to confirm allocation for job {NUMBER}: Unable")
    + """
env > "$here/srun.env"
[ ! -e "$here/srun says" ] || cat "$here/srun says" >&2
exit "$(cat "$here/srun ends with" 2>/dev/null || echo 0)"
"""
)
# Two partitions of nodes that have everything.
SINFO = "printf '%s|up|infinite|1-infinite|100|128|2000000|gpu:h200:8|h200,l40s\\n' 'main*' short\n"
PROGRAMS = {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "scontrol": SCONTROL, "srun": SRUN,
            "sinfo": SINFO, "sacct": "", "sacctmgr": "exit 1  # no accounting"}  # fmt: skip


class FakeSlurm:
    """Commands in ``folder``. Files there say what they do: ``slurm.says("refusal", "no such partition")``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for name, body in PROGRAMS.items():
            self.program(name, body)

    def program(self, name: str, body: str) -> Path:
        """A command of this name that begins by writing down how it was called."""
        path = self.bin / name
        path.unlink(missing_ok=True)  # and not written over: bash reads a script as it runs it
        path.write_text(BEGIN.format(folder=shlex.quote(str(self.folder))) + body)
        path.chmod(0o755)
        return path

    def says(self, file: str, content: str = "") -> None:
        (self.folder / file).write_text(content)

    @property
    def path(self) -> str:
        """For PATH: these before those of the machine."""
        return f"{self.bin}:/usr/bin:/bin"

    @property
    def queue(self) -> list[str]:
        """Names of the jobs on it."""
        return [line.split("|")[1] for line in self._lines("queue")]

    @property
    def submissions(self) -> list[str]:
        """The calls of sbatch that were to submit, and did not only ask."""
        return [call for call in self.calls("sbatch") if not call.split()[1].startswith("--")]

    def calls(self, *programs: str) -> list[str]:
        """How these were called, in order; without a name, all."""
        return [line for line in self._lines("calls") if not programs or line.split()[0] in programs]

    def env(self, file: str) -> dict[str, str]:
        """The environment that ``sbatch.env`` or ``srun.env`` recorded."""
        return dict(line.split("=", 1) for line in self._lines(file) if "=" in line)

    def run_script(self, *, srun_ends_with: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run what was submitted as slurmd would, on a node that has nothing of the checkout's environment.

        But for where compiled kernels are: to compile them takes ten seconds.
        """
        kernels = {name: os.environ[name] for name in ("NUMBA_CACHE_DIR",) if name in os.environ}
        self.says("srun ends with", str(srun_ends_with))
        return subprocess.run(
            ["bash", self.folder / "script"],
            env={"PATH": self.path, "HOME": str(self.folder), "SLURM_JOB_ID": NUMBER, **kernels, **environment},
            cwd=self.folder, capture_output=True, text=True,
        )  # fmt: skip

    def _lines(self, file: str) -> list[str]:
        path = self.folder / file
        return path.read_text().splitlines() if path.exists() else []
