"""Where images come from: a file per kind of source, and how its files are fetched and read safely."""
