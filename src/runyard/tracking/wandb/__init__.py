"""Weights & Biases: a copy of the journal. ``history`` says what is sent, ``record`` sends it, ``live`` meanwhile."""
