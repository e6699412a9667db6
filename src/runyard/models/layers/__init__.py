"""Layers whose result does not depend on the number of ranks."""
