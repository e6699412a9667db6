"""The command line: ``main`` runs a command of ``commands``, one module each; ``parser`` defines their arguments."""
