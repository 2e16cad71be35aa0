"""Training and diagnostics joined: the run with the monitor attached, and the command with the verbs of the job."""

__version__ = "0.1.0"
