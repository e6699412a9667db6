"""Analyses of runs: comparison, figures, pages and reports, from run directories alone and without torch."""
