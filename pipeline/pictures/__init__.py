"""Which picture goes into which split, and pictures that look the same in two of them."""
