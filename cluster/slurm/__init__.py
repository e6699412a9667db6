"""What SLURM says and is told: its queue, job states in words, what a cluster is made of, a run's submissions."""
