"""Checks of a submission before it is queued. Read ``check`` first, then ``preflight`` (quick) and ``doctor`` (all)."""
