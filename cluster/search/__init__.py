"""Searches over settings: Optuna asks, runs answer. Read ``sweep`` first."""
