"""Captures attention from a running model, beside its own kernel."""
