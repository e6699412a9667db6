"""The training program: the same under submitit, torchrun and sbatch, or as a single process."""
