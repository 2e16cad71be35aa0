"""What lies on disk: the probe file, the plan of what is measured, one record, the archive of a run."""
