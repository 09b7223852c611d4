"""Files: atomic, verified, free of code."""
