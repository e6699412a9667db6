"""What a job runs: ``train_job`` in each task, ``controller`` beside them here, ``requeue`` once they have ended."""
