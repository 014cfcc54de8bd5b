"""Read, store, replay and augment images."""
