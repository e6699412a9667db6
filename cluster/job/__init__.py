"""What a job runs: ``train_job`` in each task, ``controller`` beside local tasks, ``requeue`` after they have ended."""
