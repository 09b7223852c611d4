"""Example programs. ``python -m examples.report`` runs all of them."""
