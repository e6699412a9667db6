"""Augmentation of training images as a pure function of (seed, epoch, sample): numba on the CPU, torch on a GPU."""
