"""Reads prepared files into batches on the device. Read ``loaders`` first; all readers give the same images."""
