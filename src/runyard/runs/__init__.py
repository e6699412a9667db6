"""A run's directory: what is in it, who may write it, how it is read. No torch.

Read ``run`` first (the directory and its identity), then ``journal`` (what happened), ``lease`` (who writes).
"""
