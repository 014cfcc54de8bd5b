"""Pure functions: tensors in, a scalar out. No state, no hooks, no devices."""
