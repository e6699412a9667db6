# The beginning of every batch script. Sourced by them, in bash, after script=NAME; submitit's has no name.
. "${BASH_SOURCE[0]%/*}/ask.sh"

fail() { echo "${script:-runyard}: $*" >&2; exit 2; }

# use_run DIRECTORY: sets run to its absolute path, and Python's path to its code: the snapshot that was taken when the run
# was created, so the working directory may be edited meanwhile.
use_run() {
    run=$(readlink -e "${1:-}") && [ -e "$run/run.json" ] ||
        fail "${1:-nothing}: expected a run's directory, as runyard create prints"
    { [ -O "$run" ] && [ -O "$run/code/." ]; } ||
        fail "$run: it or its code belongs to another user, and that code would run as you"
    export PYTHONPATH="$run/code${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
    # What a container must see besides the checkout: the runs and the data.
    export RUNYARD_BIND="${RUNYARD_BIND:+$RUNYARD_BIND:}${run%/*}:$(sed -n '/^data:/,/^[^ ]/s/^  root: //p' "$run/config.yaml")"
}

# With these runyard.cluster.job.requeue separates what this start wrote to the journal and to this log from earlier starts.
export RUNYARD_BEGAN=$(date +%s) RUNYARD_LOG_BEGAN=$(stat -Lc %s /dev/stderr)
# By this runyard.cluster.job.batch_shell sees whether this shell still lives.
export RUNYARD_BATCH_SHELL=$$@$(hostname)
# On clusters with SBATCH_EXPORT=NONE, srun would pass on none of the variables that the script exports.
export SLURM_EXPORT_ENV=ALL
# At the time limit SLURM sends TERM to this shell too, which must survive to requeue the job; some sites preempt with
# another signal. The programs that it starts still receive them.
trap terminated=yes TERM
trap : USR1 USR2
# Before SLURM 23.02, SLURM does not set the time at which the job's time limit ends it.
is_to_come "${SLURM_JOB_END_TIME:-}" || SLURM_JOB_END_TIME=$(end_time "$(ask scontrol show job "$job")") || :
export SLURM_JOB_END_TIME
is_to_come "$SLURM_JOB_END_TIME" || unset SLURM_JOB_END_TIME

# srun ARGUMENTS...: SLURM's own srun, started again if it got no step because the controller was down.
srun() {
    local ended said noes=0 no_step='^srun: error: Unable to (confirm allocation|create step) for job'
    while :; do
        {
            # It survives the time limit's TERM, as this shell does, to say how srun ended.
            said=$(
                trap : TERM USR1 USR2
                command srun "$@" 2>&1 >&3 3>&- | { trap '' TERM; tee /dev/fd/4 4>&1 >&2 | grep -E "$no_step"; }
                exit "${PIPESTATUS[0]}"
            )
            ended=$?
        } 3>&1
        if [ "$ended" -eq 0 ] || [ -z "$said" ] || is_refused "$said"; then return "$ended"; fi
    done
}
