"""Prune, share and Huffman-code weights (Han, Mao and Dally, ICLR 2016)."""
