"""What a run's journal says that it learned, as the comparison, the report, the export and W&B read it.

Read ``metrics`` (every metric that is measured) first; ``reading`` reads a directory into a ``history``.
"""
