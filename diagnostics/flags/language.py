"""The flag of the language in which a report opens, the same for every program that writes one."""

from __future__ import annotations

import argparse

LANGUAGES = ("en", "zh")
"""Those of :mod:`diagnostics.report.languages`, which takes seconds to import."""


def add_language(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--language", default="en", choices=LANGUAGES, help="what the report shows first; it has a switch"
    )
