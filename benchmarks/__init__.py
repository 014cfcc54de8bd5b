"""Benchmarks: the protocol of every row and the records it made."""
