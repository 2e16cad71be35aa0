"""A comparison → one HTML page."""
