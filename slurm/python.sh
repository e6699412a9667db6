#!/bin/sh
# Runs this project's Python, in a container or in .venv; batch scripts and submitit start their tasks with it. Use:
#   srun slurm/python.sh -m runyard ...
#   RUNYARD_CONTAINER=runyard.sif slurm/python.sh ...    in that Apptainer/Singularity image (slurm/runyard.def)
#   RUNYARD_OVERLAY=env.ext3 in addition                 with an overlay, read-only as jobs must open it
#   RUNYARD_BIND=/scratch/me/runs:/data              with these folders in it besides the checkout
#   RUNYARD_PYTHON=/ext3/env/bin/python                  which Python: inside the container, or on the machine
#   RUNYARD_ROOT=/the/checkout                           where .venv is, for a copy of this file outside of it
# Every step is an exec, so that a signal from SLURM reaches Python, with no shell in between.
set -eu
root=${RUNYARD_ROOT:-$(cd -P "$(dirname "$0")/.." && pwd)}

fail() { echo "slurm/python.sh: $*" >&2; exit "${code:-127}"; } # 127: not found, on this node at least

# In a task's first tenth of a second a request to stop would look like a crash. Whoever sends one sends it again.
case "$*" in "-m runyard.cluster.job.task "*) trap '' TERM USR1 USR2 ;; esac

# A run that W&B's agent starts runs inside the container that the agent itself was started in.
inside=${RUNYARD_CONTAINER:+${APPTAINER_CONTAINER:-${SINGULARITY_CONTAINER:-}}}
[ -z "$inside" ] || exec "${RUNYARD_PYTHON:-/opt/runyard/.venv/bin/python}" "$@"

if [ -z "${RUNYARD_CONTAINER:-}" ]; then
    [ -z "${RUNYARD_OVERLAY:-}" ] || code=2 fail "RUNYARD_OVERLAY=$RUNYARD_OVERLAY needs RUNYARD_CONTAINER=IMAGE"
    python=${RUNYARD_PYTHON:-$root/.venv/bin/python}
    [ -x "$python" ] || fail "no Python at $python: run make setup in $root, or set RUNYARD_PYTHON or RUNYARD_CONTAINER"
    exec "$python" "$@"
fi

[ -e "$RUNYARD_CONTAINER" ] || fail "RUNYARD_CONTAINER=$RUNYARD_CONTAINER: no such image"
runner=$(command -v apptainer || command -v singularity) || fail "neither apptainer nor singularity on PATH (module load?)"
set -- "$RUNYARD_CONTAINER" "${RUNYARD_PYTHON:-/opt/runyard/.venv/bin/python}" "$@"
if [ -n "${RUNYARD_OVERLAY:-}" ]; then
    [ -e "$RUNYARD_OVERLAY" ] || fail "RUNYARD_OVERLAY=$RUNYARD_OVERLAY: no such overlay"
    set -- --overlay "$RUNYARD_OVERLAY:ro" "$@"
fi
[ ! -e /dev/nvidiactl ] || set -- --nv "$@"
# Appended to what is already set: a run's own snapshot of the code comes first, then this checkout, then the image's copy.
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$root/src"
set -- exec --bind "$root" "$@"
binds=${RUNYARD_BIND:-}:
while [ -n "$binds" ]; do
    folder=${binds%%:*} binds=${binds#*:}
    case $folder in /*) [ ! -d "$folder" ] || { shift; set -- exec --bind "$folder" "$@"; } ;; esac
done
exec "$runner" "$@"
