"""From a source to verified .beton files. Read ``pipeline`` first."""
