"""A share in per cent, as cards, pages and pictures say it."""

ROUNDING = 1e-6
"""A share nearer than this to none or all is that: what single precision adds up to."""


def percent_words(share: float) -> str:
    """ "40 %", "2.5 %": 2.5 % of 40 probes is one probe.

    "0 %" and "100 %" are none and all: what would only be rounded to them is "under 0.1 %" and "over 99.9 %".
    """
    if ROUNDING < abs(share) < 0.0005:
        return "under 0.1 %"
    if 0.9995 <= share < 1 - ROUNDING:
        return "over 99.9 %"
    return f"{round(100 * share, 1) + 0.0:.1f}".removesuffix(".0") + " %"  # 0.0: no minus before zero
