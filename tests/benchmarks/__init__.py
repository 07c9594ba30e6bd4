"""Benchmarks: scripts that print a table. They are no tests: pytest does not collect them."""
