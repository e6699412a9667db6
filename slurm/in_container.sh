#!/bin/sh
# Runs this project's Python on this node, or in the job's image if it is only there. A batch script with
# cluster.container_image calls it outside of the image. Use:
#   RUNYARD_TASK_PYTHON=slurm/python.sh RUNYARD_IMAGE=IMAGE RUNYARD_MOUNTS=/a:/a,/b:/b slurm/in_container.sh -m runyard ...
set -eu
if "$RUNYARD_TASK_PYTHON" -c 'import runyard.cluster.job.requeue' 2>/dev/null; then exec "$RUNYARD_TASK_PYTHON" "$@"; fi
exec srun --overlap --nodes=1 --ntasks=1 --container-image="$RUNYARD_IMAGE" --container-mounts="$RUNYARD_MOUNTS" \
    "$RUNYARD_TASK_PYTHON" "$@"
