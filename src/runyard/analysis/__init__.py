"""Everything that reads finished runs: comparison, figures, pages, reports, export. From run directories, no torch."""
