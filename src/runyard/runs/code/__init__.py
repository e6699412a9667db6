"""The code that a run was submitted with: ``snapshot`` copies and verifies it, ``own_code`` runs it."""
