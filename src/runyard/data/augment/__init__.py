"""Random changes to training images, each a pure function of (seed, epoch, sample): numba on the CPU, torch on a GPU."""
