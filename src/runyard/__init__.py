"""runyard: an image classifier's run, from the laptop to a preemptible multi-node allocation."""

__version__ = "0.2.0"
