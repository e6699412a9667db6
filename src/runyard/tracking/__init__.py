"""What happened in a run: the journal (always), and Weights & Biases (a copy of it)."""
