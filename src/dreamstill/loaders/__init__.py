"""Open a teacher from files."""
