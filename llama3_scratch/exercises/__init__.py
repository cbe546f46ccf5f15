"""The exercises' checkers, one module per notebook: `e04_attention`, imported as `check`.

A checker, `check.mask(my_mask)`, runs the reader's function and the right one on the same seeded
inputs and prints what it found. If the two differ, it names the mistake that fits.
"""
