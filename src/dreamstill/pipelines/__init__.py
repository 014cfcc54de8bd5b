"""Run whole jobs in run directories: synthesize, distill, compress, learn classes, demo."""
