#!/bin/sh
# The last command of a batch script: puts its job back into the queue where its run can go on by itself. Use:
#   exec slurm/requeue.sh PYTHON RUN CODE        CODE is what srun ended with
# cluster.requeue decides; SLURM is asked and told here, outside the container in which PYTHON may run without its commands.
set -u
python=$1 run=$2 ended=$3
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
# Once SLURM has begun to preempt a job, it shows since when.
preempted=$(scontrol show job "$job" | grep -c ' PreemptTime=[0-9]')

"$python" -m cluster.requeue "$run" "$ended" "$preempted"
verdict=$?
[ "$verdict" -eq 75 ] || exit "$verdict"
refusal=$(scontrol requeue "$job" 2>&1) && exit 75
exec "$python" -m cluster.requeue "$run" "$ended" "$preempted" "${refusal:-no word}"
