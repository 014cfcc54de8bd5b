"""Trace a network and find its structure."""
