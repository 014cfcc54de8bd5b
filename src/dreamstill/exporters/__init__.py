"""Export networks to file formats of runtimes, and verify the files there."""
