"""Sources, verified files on disk, the sample order, loaders and augmentation."""
