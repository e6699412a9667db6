"""One run on one page: its curves, its confusion matrix, and what it was made of. No torch here."""
