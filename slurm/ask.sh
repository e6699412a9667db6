# How a batch script queries SLURM. Sourced by slurm/begin.sh and slurm/requeue.sh, in bash.

# Display settings of a person's own, such as SQUEUE_STATES=PD, would hide this job or print its times differently.
unset "${!SQUEUE_@}" "${!SACCT_@}" "${!SINFO_@}" "${!SCANCEL_@}" "${!SCONTROL_@}" SLURM_TIME_FORMAT
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
terminated=  # set once SLURM ends this job, in a script that outlives the signal to requeue it

# ask COMMAND...: prints the output of a SLURM command, which is repeated until SLURM answers or ends this job.
ask() {
    local said noes=0
    command -v "$1" >/dev/null || { echo "$1: not found on this node"; return 127; }
    until said=$(timeout 60 "$@" 2>&1); do
        if is_refused "$said"; then printf '%s\n' "$said"; return 1; fi
    done
    printf '%s\n' "$said"
}

# is_refused SAID: whether SLURM refused the command that just failed with this output. A single error is no refusal: while
# the controller is down, scontrol requeue prints "Unexpected message received". So it takes two errors in a row while the
# controller is up, counted in noes. A controller that was killed may come back from a state older than this job's start,
# and takes it for pending: it ends this job as soon as the node reports it, and starts it anew. If this script ended
# first, SLURM would hold the job. Where it is no refusal, this waits a little.
is_refused() {
    case $1 in
    *"timed out"* | *"Unable to contact"* | *"Job is pending execution"*) noes=0 ;;
    *) if timeout 60 scontrol ping 2>/dev/null | grep -q 'is UP'; then noes=$((noes + 1)); else noes=0; fi ;;
    esac
    [ "$noes" -lt 2 ] && [ -z "$terminated" ] || return 0
    if [ "$noes" -eq 1 ]; then sleep 1; else sleep 5; fi
    return 1
}

# end_time SHOWN: the unix time at which the time limit ends this job, from the output of scontrol show job; fails without one.
end_time() {
    local end
    end=$(printf '%s\n' "$1" | sed -n '/ EndTime=[0-9]/{s/.* EndTime=\([0-9T:-]*\).*/\1/p;q}')
    [ -n "$end" ] && date -d "$end" +%s  # date would take an empty text for midnight
}

# is_to_come SECONDS: whether this is a time between now and a year from now.
is_to_come() {
    local now
    now=$(date +%s)
    case $1 in '' | *[!0-9]*) return 1 ;; esac
    [ "${#1}" -lt 12 ] && [ "$1" -gt "$now" ] && [ "$1" -le $((now + 366 * 86400)) ]
}
