"""The harness that attacks what this project promises: ``make torture``. Each module holds one promise and its attack.

Read ``promise.py`` first, then ``killed.py``. What came of the last full run stands in docs/guarantees.md.
"""
