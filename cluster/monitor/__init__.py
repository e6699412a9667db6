"""Runs that wait and run: their status, logs, and end."""
