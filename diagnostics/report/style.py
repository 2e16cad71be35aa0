"""What every report looks like: the style sheet of the comparison's page."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from diagnostics.drawing.colours import heat_colours

TEMPLATE = Path(__file__).with_name("report_template.html")


def style_sheet() -> str:
    """The CSS of the comparison's page, for pages that have no script of their own."""
    page = TEMPLATE.read_text(encoding="utf-8")
    return page.split("<style>", 1)[1].split("</style>", 1)[0]


DARK = 64
"""The grey of a dimmed picture under the heat colours of a legend."""


@lru_cache(maxsize=1)
def heat_gradient() -> str:
    """The heat colours of attention maps as a CSS background, from none to most."""
    stops = []
    for red, green, blue, opacity in heat_colours()[::15].tolist():
        shown = (round((one * opacity + DARK * (255 - opacity)) / 255) for one in (red, green, blue))
        stops.append(f"rgb({' '.join(map(str, shown))})")
    return f"linear-gradient(90deg,{','.join(stops)})"
