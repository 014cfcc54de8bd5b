"""Quantize weights and activations."""
