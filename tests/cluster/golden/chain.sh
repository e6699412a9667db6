#!/bin/bash

# Parameters
#SBATCH --array=0-4%1
#SBATCH --dependency=singleton
#SBATCH --error=/RUNS/RUN/slurm/%A_%a_0_log.err
#SBATCH --job-name=RUN
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/RUN/slurm/%A_%a_0_log.out
#SBATCH --signal=USR2@90
#SBATCH --time=60

# setup
set +e
umask 077
case $(stat -c %u /RUNS/RUN/code 2>/dev/null) in UID|'') ;; *) echo runyard: not run, another user owns it now: /RUNS/RUN/code >&2; exit 2 ;; esac
export PYTHONPATH=/RUNS/RUN/code"${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export RUNYARD_ROOT=/CHECKOUT
export RUNYARD_BIND=/CHECKOUT:/RUNS:/DATA
. /RUNS/RUN/code/slurm/begin.sh
ln -sf submission_TOKEN.pkl /RUNS/RUN/slurm/"$job"_submitted.pkl
export RUNYARD_CHAIN="$SLURM_ARRAY_JOB_ID"
if [ "$SLURM_ARRAY_TASK_ID" -gt 0 ] && /RUNS/RUN/code/slurm/python.sh -m runyard.cluster.job.chain /RUNS/RUN; then exit 0; fi

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/RUN/slurm/%A_%a_%t_log.out --error /RUNS/RUN/slurm/%A_%a_%t_log.err --kill-on-bad-exit=1 --open-mode=append /RUNS/RUN/code/slurm/python.sh -m runyard.cluster.job.task -u -m submitit.core._submit /RUNS/RUN/slurm


# teardown
ended=$?; exec /RUNS/RUN/code/slurm/requeue.sh /RUNS/RUN/code/slurm/python.sh /RUNS/RUN $ended
