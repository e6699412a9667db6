"""Comparison of many runs: their differences, the significance of these and their cost, without torch."""
