"""Records what happens in a run: in its journal, always, and at Weights & Biases, which has a copy of the journal."""
