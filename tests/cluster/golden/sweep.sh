#!/bin/bash

# Parameters
#SBATCH --array=0-5%4
#SBATCH --error=/RUNS/.sweeps-UID/SWEEP/%A_%a_0_log.err
#SBATCH --job-name=SWEEP
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/.sweeps-UID/SWEEP/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=60

# setup
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
srun --unbuffered --output /RUNS/.sweeps-UID/SWEEP/%A_%a_%t_log.out --error /RUNS/.sweeps-UID/SWEEP/%A_%a_%t_log.err --kill-on-bad-exit=1 --open-mode=append /RUNS/RUN0/code/slurm/python.sh -m runyard.cluster.job.task -u -m submitit.core._submit /RUNS/.sweeps-UID/SWEEP


# teardown
ended=$?; exec /RUNS/RUN0/code/slurm/requeue.sh /RUNS/RUN0/code/slurm/python.sh "$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" /RUNS/.sweeps-UID/SWEEP/runs.txt)" $ended
