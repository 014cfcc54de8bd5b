"""Make inputs from a teacher alone."""
