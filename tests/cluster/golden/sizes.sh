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
#SBATCH --wckey=''

# setup
module purge
module load cuda/12.4
set +e
umask 077
case $(stat -c %u /RUNS/RUN/code 2>/dev/null) in UID|'') ;; *) echo runyard: not run, another user owns it now: /RUNS/RUN/code >&2; exit 2 ;; esac
export PYTHONPATH=/RUNS/RUN/code"${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export RUNYARD_ROOT=/CHECKOUT
. /RUNS/RUN/code/slurm/begin.sh
ln -sf submission_TOKEN"${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}".pkl /RUNS/RUN/slurm/"$job"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /RUNS/RUN/slurm/%j_%t_log.out --error /RUNS/RUN/slurm/%j_%t_log.err --kill-on-bad-exit=1 --open-mode=append --cpus-per-task=6 /RUNS/RUN/code/slurm/python.sh -m runyard.cluster.job.task -u -m submitit.core._submit /RUNS/RUN/slurm


# teardown
ended=$?; exec /RUNS/RUN/code/slurm/requeue.sh /RUNS/RUN/code/slurm/python.sh /RUNS/RUN $ended
