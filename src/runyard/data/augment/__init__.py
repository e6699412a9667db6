"""Random changes to training images, pure functions of (seed, epoch, sample): numba on the CPU, torch on a GPU."""
