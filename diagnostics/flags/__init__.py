"""The flags of each program, one module a program: the standard library alone, so that ``--help`` answers at once."""
