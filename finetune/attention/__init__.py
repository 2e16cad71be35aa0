"""Attention of a running model, exact and with gradients: kernel calls observed, rows recomputed from them."""
