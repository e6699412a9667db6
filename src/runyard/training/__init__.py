"""The training program: the same under submitit, torchrun, sbatch or alone."""
