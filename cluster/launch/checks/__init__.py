"""What is asked before a queue slot is spent. Read ``check`` first, then ``preflight`` (quick) and ``doctor`` (all)."""
