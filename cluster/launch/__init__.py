"""From settings to a job. Read ``submit`` first, then ``batch_script``, ``local``, ``dry_run``, ``checks``."""
