#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --error=/RUNS/.sweeps-UID/SWEEP/%A_%a_job.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=SWEEP
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/.sweeps-UID/SWEEP/%A_%a_job.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=60

# setup
setup_failed() { setup_message="cluster.env_setup ended the job with exit code $?: $setup_line"; echo "runyard: $setup_message" >&2; umask 077; setup_message=${setup_message//\\/\\\\}; setup_message=${setup_message//\"/\\\"}; tr '\t' '\n' <<<"$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" /RUNS/.sweeps-UID/SWEEP/runs.txt)" | while IFS= read -r run; do if ! grep -qs '^{"event": "stop".*"reason": "finished"' "$run/metrics.jsonl"; then printf '\n{"event": "stop", "t": %s, "reason": "failed", "user_error": true, "retry": false, "message": "%s"}\n' $(date +%s.%N) "$setup_message" >>"$run/metrics.jsonl"; fi; done; exit 2; }
setup_ended() { [ $1 -eq 0 ] || exit $1; }
trap setup_failed EXIT
trap 'trap - EXIT; exit 143' TERM  # cancelled
setup_line='module load cuda'
module load cuda
setup_ended $?
trap - EXIT TERM
set +e
umask 077
case $(stat -c %u /RUNS/RUN0/code 2>/dev/null) in UID|'') ;; *) echo runyard: not run, another user owns it now: /RUNS/RUN0/code >&2; exit 2 ;; esac
export PYTHONPATH=/RUNS/RUN0/code"${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export RUNYARD_ROOT=/CHECKOUT
export RUNYARD_BIND=/CHECKOUT:/RUNS:/DATA
. /RUNS/RUN0/code/slurm/begin.sh
ln -sf submission_TOKEN"${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}".pkl /RUNS/.sweeps-UID/SWEEP/"$job"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/.sweeps-UID/SWEEP/%A_%a_%t_log.out --error /RUNS/.sweeps-UID/SWEEP/%A_%a_%t_log.err --kill-on-bad-exit=0 --open-mode=append --wait=0 /RUNS/RUN0/code/slurm/python.sh -m runyard.cluster.job.task -u -m submitit.core._submit /RUNS/.sweeps-UID/SWEEP


# teardown
ended=$?; exec /RUNS/RUN0/code/slurm/requeue.sh /RUNS/RUN0/code/slurm/python.sh "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" /RUNS/.sweeps-UID/SWEEP/runs.txt)" $ended
