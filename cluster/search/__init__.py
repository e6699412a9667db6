"""Hyperparameter searches: Optuna proposes settings, runs measure them. Read ``sweep`` first."""
