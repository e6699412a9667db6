"""Pending and running jobs: their status, logs and cancellation."""
