#!/bin/bash
# The last command of a batch script: puts its job back into the queue where its run can go on by itself. Use:
#   exec slurm/requeue.sh PYTHON RUN CODE        CODE is what srun ended with
# cluster.requeue decides; SLURM is asked and told here, outside the container in which PYTHON may run without its commands.
set -u
trap '' TERM  # at the time limit SLURM sends it to what is left of the job, which then has KillWait to decide
python=$1 run=$2 ended=$3
. "${BASH_SOURCE[0]%/*}/ask.sh"
shown=$(ask scontrol show job "$job")
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
# The limit may have been raised or lowered since the job began.
if end=$(end_time "$shown"); then export SLURM_JOB_END_TIME=$end; fi

"$python" -m cluster.requeue "$run" "$ended" "$ending"
verdict=$?
[ "$verdict" -eq 75 ] || exit "$verdict"
refusal=$(ask scontrol requeue "$job") && exit 75
exec "$python" -m cluster.requeue "$run" "$ended" "$ending" "${refusal:-no word}"
