"""From prepared files to batches on the device. Read ``loaders`` first; the readers all give the same images."""
