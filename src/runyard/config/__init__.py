"""What a run can be told. Read ``schema`` first (every setting), then ``fields`` (how one is checked), ``validation``.

``compose`` alone imports Hydra.
"""
