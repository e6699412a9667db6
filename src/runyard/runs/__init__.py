"""A run's directory: its files, who may write them, and how they are read. Nothing here imports torch.

Read ``run`` first (the directory and its identity), then ``journal`` (what happened) and ``lease`` (who may write).
"""
