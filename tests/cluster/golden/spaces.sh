#!/bin/bash

# Parameters
#SBATCH --error='/tmp/my runs/RUN/slurm/%j_0_log.err'
#SBATCH --job-name=RUN
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/tmp/my runs/RUN/slurm/%j_0_log.out'
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=60

# setup
set +e
umask 077
case $(stat -c %u '/tmp/my runs/RUN/code' 2>/dev/null) in UID|'') ;; *) echo runyard: not run, another user owns it now: '/tmp/my runs/RUN/code' >&2; exit 2 ;; esac
export PYTHONPATH='/tmp/my runs/RUN/code'"${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1
export RUNYARD_ROOT=/CHECKOUT
export RUNYARD_BIND=/CHECKOUT:'/tmp/my runs':/DATA
. '/tmp/my runs/RUN/code/slurm/begin.sh'
ln -sf submission_TOKEN"${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}".pkl '/tmp/my runs/RUN/slurm'/"$job"_submitted.pkl

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/tmp/my runs/RUN/slurm/%j_%t_log.out' --error '/tmp/my runs/RUN/slurm/%j_%t_log.err' --kill-on-bad-exit=1 --open-mode=append '/tmp/my runs/RUN/code/slurm/python.sh' -m runyard.cluster.job.task -u -m submitit.core._submit '/tmp/my runs/RUN/slurm'


# teardown
ended=$?; exec '/tmp/my runs/RUN/code/slurm/requeue.sh' '/tmp/my runs/RUN/code/slurm/python.sh' '/tmp/my runs/RUN' $ended
