"""Tasks: from a model, batches and settings to a new model."""
