#!/bin/bash
# The last command of a batch script: requeues its job if its run can continue by itself. Use:
#   exec slurm/requeue.sh PYTHON RUNS CODE       CODE is srun's exit code, and RUNS the run, or several with tabs between
# runyard.cluster.job.requeue decides. SLURM's commands are called here, because PYTHON may run in a container without them.
set -u
# At the time limit SLURM sends TERM to what is left of the job, which then has KillWait to decide; some sites preempt with
# another signal.
trap '' TERM USR1 USR2
python=$1 runs=$2 run=${2%%$'\t'*} ended=$3
. "${BASH_SOURCE[0]%/*}/ask.sh"
# Whether a later job of the chain may go on (runyard.cluster.job.chain).
job_follows() { [ "${RUNYARD_CHAIN:-}" = "${SLURM_ARRAY_JOB_ID:-none}" ] && [ "$SLURM_ARRAY_TASK_ID" -lt "$SLURM_ARRAY_TASK_MAX" ]; }
# finish CODE: this job ends. Once its run is over, the chain's jobs that wait would take nodes only to end: they are cancelled,
# unless another job waits for the chain, for which a cancelled job counts as a failed one.
finish() {
    if job_follows && "$python" -m runyard.cluster.job.chain "$run" >/dev/null &&
        waited_for=$(ask squeue --me --noheader --format=%E) &&
        ! printf '%s\n' "$waited_for" | grep -Eq ":$SLURM_ARRAY_JOB_ID([^0-9]|$)"; then
        ask scancel --state=PENDING "${SLURM_ARRAY_JOB_ID}_[$((SLURM_ARRAY_TASK_ID + 1))-$SLURM_ARRAY_TASK_MAX]" >&2
    fi
    exit "$1"
}

shown=$(ask scontrol show job "$job")
restarts=$(printf '%s\n' "$shown" | sed -n 's/.* Restarts=\([0-9]*\).*/\1/p')
case $shown in
# Once SLURM has begun to preempt a job, it shows the time since when.
*" PreemptTime="[0-9]*) ending=1 ;;
*" Reason=TimeLimit "*) ending=limit ;;
# Ended by SLURM for neither reason: a person's scancel, unless a task calls this because the batch script's shell was killed.
*JobState=COMPLETING*)
    if [ -z "${RUNYARD_BATCH_SHELL_KILLED:-}" ]; then
        [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ] || "$python" -m runyard.cluster.job.requeue "$runs" "$ended" cancelled
        finish "$ended"
    fi
    ending=0 ;;
*) ending=0 ;;
esac
# SLURM itself has requeued the job already.
[ "${restarts:-0}" -le "${SLURM_RESTART_COUNT:-0}" ] || exit "$ended"
# The limit may have been raised or lowered since the job began. Of a job that has ended SLURM shows when that was.
if [ -z "${RUNYARD_BATCH_SHELL_KILLED:-}" ] && end=$(end_time "$shown"); then export SLURM_JOB_END_TIME=$end; fi

field() { printf '%s\n' "$shown" | sed -n "s/.* $1=\([^ ]*\).*/\1/p" | sed 's/(null)//'; }
nodes() { ask sinfo --noheader --Node ${SLURM_JOB_PARTITION:+--partition="$SLURM_JOB_PARTITION"} --format='%N|%t|%f|%G'; }
# requeue NODES: requeues the job; NODES are all nodes that it is to exclude from now on, or "" to change nothing. SLURM
# changes this list for a pending job, not for a running one. Returns only if SLURM refuses; its message is in $refusal.
# In a chain the next job goes on instead, and this one has done its part.
requeue() {
    if job_follows; then
        [ -z "$1" ] || ask scontrol update JobId="$SLURM_ARRAY_JOB_ID" ExcNodeList="$1" >&2
        exit 0
    fi
    refusal=$(ask scontrol requeue "$job") || return 1
    [ -z "$1" ] || ask scontrol update JobId="$job" ExcNodeList="$1" >&2
    exit 75
}

# If Python itself fails on this node it can decide nothing: other nodes are tried, three at most.
if [ "$ended" -ne 0 ] && ! "$python" -c 'import runyard.cluster.job.requeue'; then
    node=${SLURMD_NODENAME:-$(hostname -s)} list=$(field ExcNodeList)
    tried=$(grep -c '^{"event": "exclude", .*"job": "'"$SLURM_JOB_ID"'"' "$run/metrics.jsonl" 2>/dev/null)
    up=$(nodes | grep -Ec '^[^|]*\|(idle|mix|alloc|comp|resv|plnd|pow)[^|*]*\|')
    said="runyard: Python failed on $node"
    if [ "${tried:-${SLURM_RESTART_COUNT:-0}}" -ge 3 ]; then said="$said, as on other nodes before"
    elif { [ "$(field Requeue)" = 0 ] && ! job_follows; } || [ -n "$(field ReqNodeList)" ]; then
        said="$said, and the job may not move to another node"
    elif [ "$up" -le "${SLURM_JOB_NUM_NODES:-1}" ]; then said="$said, and no other node is up"
    else
        while IFS= read -r each; do
            printf '\n{"event": "exclude", "t": %s, "node": "%s", "why": "Python itself failed there", "job": "%s"}\n' \
                "$(date +%s)" "$node" "$SLURM_JOB_ID" >>"$each/metrics.jsonl"
        done <<<"${runs//$'\t'/$'\n'}"
        if job_follows; then echo "$said: the next job of the chain takes other nodes" >&2
        else echo "$said: back into the queue, for other nodes" >&2; fi
        requeue "${list:+$list,}$node"
        said="$said, and the job could not be requeued (${refusal:-no reason given})"
    fi
    echo "$said: fix cluster.python or cluster.env_setup, or exclude the node (cluster.exclude)" >&2
    exit "$ended"
fi

exclude=$run/slurm/exclude-$job
rm -f "$exclude"
{ printf '%s\n' "$shown"; nodes; } | "$python" -m runyard.cluster.job.requeue "$runs" "$ended" "$ending" "$exclude"
verdict=$?
[ "$verdict" -eq 75 ] || finish "$verdict"
requeue "$(cat "$exclude" 2>/dev/null)"
exec "$python" -m runyard.cluster.job.requeue "$runs" "$ended" refused "${refusal:-no reason given}"
