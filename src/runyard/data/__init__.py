"""Data sets: sources, prepared and verified files, the sampler, loaders and augmentation."""
