"""What every report looks like: the style sheet of the comparison's page."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = Path(__file__).with_name("report_template.html")


def style_sheet() -> str:
    """The CSS of the comparison's page, for pages that have no script of their own."""
    page = TEMPLATE.read_text(encoding="utf-8")
    return page.split("<style>", 1)[1].split("</style>", 1)[0]
