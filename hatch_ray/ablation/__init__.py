"""Ablations: variants of a recipe as a file says them, trained on several seeds and compared."""
