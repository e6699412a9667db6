"""Turns settings into a job. Read ``submit`` first, then ``batch_script``, ``local``, ``dry_run`` and ``checks``."""
