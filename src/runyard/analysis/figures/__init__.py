"""The comparison as figures for a paper. Read ``build`` first."""
