"""Networks, their layers, and hooks on them."""
