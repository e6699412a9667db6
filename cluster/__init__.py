"""The login node: composes runs, puts them on a cluster (or this machine) and watches them. Never imports torch."""
