"""Make a network smaller: prune, merge, factorize, quantize, pack."""
