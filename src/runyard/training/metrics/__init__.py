"""Measurements during training: accuracy and loss, step times, and the load of the machines."""
