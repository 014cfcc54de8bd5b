"""Open ONNX files as networks of torch: one table of operators."""
