"""A temporary SLURM cluster on this machine, and the rehearsal that runs on it. Read ``sandbox`` first."""
