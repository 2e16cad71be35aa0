"""Numbers: pure functions of arrays, each with unit, range and source."""
