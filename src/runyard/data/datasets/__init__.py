"""Sources of images: one module per kind of source, and modules that download and safely read its files."""
