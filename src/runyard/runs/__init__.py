"""A run's directory: its files, who may write them, and how they are read. Nothing here imports torch.

Read ``record`` (what a run is), ``journal`` and ``events`` (what happened) and ``state`` (what that comes to) first;
``run`` makes and changes a run, ``store`` finds it, ``lease`` says who may write it. ``results`` has what runs learned,
``code`` what they were submitted with.
"""
