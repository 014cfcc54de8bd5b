"""Dreamstill: data-free distillation, from a trained network alone to a small one on a device."""
