# What every batch script begins with. Sourced by them, in bash.
. "${BASH_SOURCE[0]%/*}/ask.sh"

# By these runyard.cluster.job.requeue tells what this start wrote, in the journal and in this log, from what earlier ones did.
export RUNYARD_BEGAN=$(date +%s) RUNYARD_LOG_BEGAN=$(stat -Lc %s /dev/stderr)
# Where a centre has SBATCH_EXPORT=NONE, srun would pass on none of what the script exports.
export SLURM_EXPORT_ENV=ALL
# At the time limit SLURM sends TERM to this shell too, which must live to requeue the job; some sites preempt by
# another. What it starts hears them.
trap terminated=yes TERM
trap : USR1 USR2
# Before SLURM 23.02 a job is not told when its time limit ends it.
is_to_come "${SLURM_JOB_END_TIME:-}" || SLURM_JOB_END_TIME=$(end_time "$(ask scontrol show job "$job")") || :
export SLURM_JOB_END_TIME
is_to_come "$SLURM_JOB_END_TIME" || unset SLURM_JOB_END_TIME

# srun ARGUMENTS...: as SLURM's own, and begun again where it got no step because the controller was away.
srun() {
    local ended noes=0 no_step='^srun: error: Unable to (confirm allocation|create step) for job'
    while :; do
        {
            command srun "$@" 2>&1 >&3 3>&- | { trap '' TERM; tee /dev/fd/4 4>&1 >&2 | grep -E "$no_step" >/dev/null; }
            ended=("${PIPESTATUS[@]}")
        } 3>&1
        if [ "${ended[0]}" -eq 0 ] || [ "${ended[1]}" -ne 0 ] || is_refused "srun got no step"; then
            return "${ended[0]}"
        fi
    done
}
