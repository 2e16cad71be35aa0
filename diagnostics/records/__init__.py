"""Files on disk: the probe file, the measurement plan, one record, the archive of a run."""
