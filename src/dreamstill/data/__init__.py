"""Images: read, stored, replayed, augmented."""
