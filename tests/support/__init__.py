"""What several test modules use: makers of runs, stand-ins for SLURM, W&B and a browser, processes to train in."""
