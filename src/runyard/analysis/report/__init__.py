"""A report of one run as one page: its curves, its confusion matrix and its settings, without torch."""
