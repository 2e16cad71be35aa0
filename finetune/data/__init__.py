"""Conversations → batches: mixture, lengths, schedule, packing, dataset."""
