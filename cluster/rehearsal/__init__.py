"""A throwaway SLURM on this machine, and what is tried on it. Read ``sandbox`` first."""
