"""The fabricated runs of tests/analysis."""

from tests.analysis.conftest import compare, make, recipe, runs_dir

__all__ = ["compare", "make", "recipe", "runs_dir"]
