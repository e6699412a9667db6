"""Figures of a comparison for a paper. Read ``build`` first."""
