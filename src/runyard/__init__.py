"""runyard trains image classifiers, from a laptop to a preemptible multi-node allocation."""

__version__ = "0.2.0"
