"""Made runs to read."""

from tests.support.comparing import compare, make, recipe, runs_dir

__all__ = ["compare", "make", "recipe", "runs_dir"]
