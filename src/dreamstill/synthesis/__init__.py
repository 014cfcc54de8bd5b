"""Synthesize images from a teacher."""
