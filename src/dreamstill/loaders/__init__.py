"""Load teachers from files."""
