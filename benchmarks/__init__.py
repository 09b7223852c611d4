"""Speed benchmarks: comparison with a plain loop and other libraries, and long runs."""
