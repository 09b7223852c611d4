"""What surrounds the loop: sessions, signals, state, results, files."""
