"""Prepares a data set: from a source to verified .beton files. Read ``pipeline`` first."""
