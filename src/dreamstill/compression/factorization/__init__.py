"""Split layers into products of smaller ones."""
