"""Copies the journal to W&B: ``history`` decides what is sent, ``record`` sends it, ``live`` in training."""
