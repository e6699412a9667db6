#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --error=/RUNS/RUN/slurm/%j_0_log.err
#SBATCH --gres=gpu:rtx8000:1
#SBATCH --job-name=RUN
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/RUNS/RUN/slurm/%j_0_log.out
#SBATCH --requeue
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
ln -sf submission_TOKEN"${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}".pkl /RUNS/RUN/slurm/"$job"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/RUN/slurm/%j_%t_log.out --error /RUNS/RUN/slurm/%j_%t_log.err --kill-on-bad-exit=1 --open-mode=append --cpus-per-task=8 /RUNS/RUN/code/slurm/python.sh -m runyard.cluster.job.task -u -m submitit.core._submit /RUNS/RUN/slurm


# teardown
ended=$?; exec /RUNS/RUN/code/slurm/requeue.sh /RUNS/RUN/code/slurm/python.sh /RUNS/RUN $ended
