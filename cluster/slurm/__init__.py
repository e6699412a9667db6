"""SLURM as this program sees it: its queue, job states explained, the cluster's resources, and a run's submissions."""
