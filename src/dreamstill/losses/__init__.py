"""Loss functions: pure functions of tensors that return a scalar."""
