"""The configuration of a run. Read ``schema`` first (all settings), then ``fields`` (checks of one), ``validation``.

Only ``compose`` imports Hydra.
"""
