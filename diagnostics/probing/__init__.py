"""One model, one probe → one record: prompts, regions, interventions, the choice of layers."""
