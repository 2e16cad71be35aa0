"""Attention out of a running model, beside its own kernel."""
