"""Batches → a trained checkpoint: the Trainer, its loss, optimizer, guards, saving, stopping and evaluation."""
