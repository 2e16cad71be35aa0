"""A real case: a trained vision tower and a trained language model, photographs, and exact boxes."""
