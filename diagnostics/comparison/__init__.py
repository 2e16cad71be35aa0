"""Two or more sets of records → comparison.json: pairs, group means, enrichment, costs, verdicts."""
