"""Methods, one per module."""
