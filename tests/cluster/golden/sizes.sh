#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=6
#SBATCH --error=/RUNS/RUN/slurm/%j_0_log.err
#SBATCH --gpus-per-node=2
#SBATCH --job-name=RUN
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=32GB
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/RUN/slurm/%j_0_log.out
#SBATCH --signal=USR2@180
#SBATCH --time=600

# setup
setup_failed() { setup_message="cluster.env_setup ended the job with exit code $?: $setup_line"; echo "runyard: $setup_message" >&2; umask 077; setup_message=${setup_message//\\/\\\\}; setup_message=${setup_message//\"/\\\"}; tr '\t' '\n' <<</RUNS/RUN | while IFS= read -r run; do if ! grep -qs '^{"event": "stop".*"reason": "finished"' "$run/metrics.jsonl"; then printf '\n{"event": "stop", "t": %s, "reason": "failed", "user_error": true, "retry": false, "message": "%s"}\n' $(date +%s.%N) "$setup_message" >>"$run/metrics.jsonl"; fi; done; exit 2; }
setup_ended() { [ $1 -eq 0 ] || exit $1; }
trap setup_failed EXIT
trap 'trap - EXIT; exit 143' TERM  # cancelled
setup_line='module purge'
module purge
setup_ended $?
setup_line='module load cuda/12.4'
module load cuda/12.4
setup_ended $?
trap - EXIT TERM
set +e
umask 077
case $(stat -c %u /RUNS/RUN/code 2>/dev/null) in UID|'') ;; *) echo runyard: not run, another user owns it now: /RUNS/RUN/code >&2; exit 2 ;; esac
export PYTHONPATH=/RUNS/RUN/code"${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export RUNYARD_ROOT=/CHECKOUT
export RUNYARD_BIND=/CHECKOUT:/RUNS:/DATA
. /RUNS/RUN/code/slurm/begin.sh
ln -sf submission_TOKEN"${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}".pkl /RUNS/RUN/slurm/"$job"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/RUN/slurm/%j_%t_log.out --error /RUNS/RUN/slurm/%j_%t_log.err --kill-on-bad-exit=1 --open-mode=append --cpus-per-task=6 /RUNS/RUN/code/slurm/python.sh -m runyard.cluster.job.task -u -m submitit.core._submit /RUNS/RUN/slurm


# teardown
ended=$?; exec /RUNS/RUN/code/slurm/requeue.sh /RUNS/RUN/code/slurm/python.sh /RUNS/RUN $ended
