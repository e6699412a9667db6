"""The command line: ``main`` dispatches to ``commands``, one file each; ``parser`` says what may be typed."""
