#!/bin/sh
# The last command of a batch script: puts its job back into the queue where its run can go on by itself. Use:
#   exec slurm/requeue.sh PYTHON RUN CODE        CODE is what srun ended with
# cluster.requeue decides; SLURM is asked and told here, outside the container in which PYTHON may run without its commands.
set -u
trap '' TERM  # at the time limit SLURM sends it to what is left of the job, which then has KillWait to decide
python=$1 run=$2 ended=$3
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
shown=$(scontrol show job "$job")
restarts=$(printf '%s\n' "$shown" | sed -n 's/.* Restarts=\([0-9]*\).*/\1/p')
case $shown in
# Once SLURM has begun to preempt a job, it shows since when.
*" PreemptTime="[0-9]*) ending=1 ;;
*" Reason=TimeLimit "*) ending=limit ;;
# Ended by SLURM for neither: a person's scancel.
*JobState=COMPLETING*) exit "$ended" ;;
*) ending=0 ;;
esac
# SLURM itself has put it back into the queue already.
[ "${restarts:-0}" -le "${SLURM_RESTART_COUNT:-0}" ] || exit "$ended"

"$python" -m cluster.requeue "$run" "$ended" "$ending"
verdict=$?
[ "$verdict" -eq 75 ] || exit "$verdict"
refusal=$(scontrol requeue "$job" 2>&1) && exit 75
exec "$python" -m cluster.requeue "$run" "$ended" "$ending" "${refusal:-no word}"
