"""One file for each article, to be read and run on its own; ``python -m examples.report`` runs them all."""
