"""Whole jobs: synthesize, distill, chains, continual learning, the demo."""
