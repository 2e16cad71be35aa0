"""A font that can write Chinese, for PIL and matplotlib alike, or one clear message that there is none."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

# Characters that a font must have before it may write Chinese: simplified, traditional, and full-width marks.
_PROOF = "东方明珠廣州塔,。?"

# Parts of file names of fonts known to write Chinese, in order of preference (regular weights of sans faces).
_KNOWN = (
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "wqy-microhei",
    "wqy-zenhei",
    "pingfang",
    "hiragino sans gb",
    "stheiti",
    "msyh",
    "simhei",
    "droidsansfallback",
    "ukai",
    "uming",
    "simsun",
)

MISSING = (
    "no font with Chinese glyphs on this machine, so Chinese in pictures would be empty boxes; "
    "run `pip install mplfonts` (or `apt-get install fonts-wqy-microhei`) and draw again"
)


@lru_cache(maxsize=1)
def chinese_font() -> Path | None:
    """The first font that has Chinese glyphs, or None.

    The package ``mplfonts`` is asked first, by its folder alone: importing it would rewrite matplotlib's
    configuration for the whole process. Then the fonts of the system.
    """
    return next((path for path in _candidates() if covers(path, _PROOF)), None)


def text_font(text: str) -> Path:
    """The font to write ``text`` with: the Chinese one where there is one, else DejaVu if that is enough.

    Raises:
        ValueError: ``text`` holds Chinese (or other East Asian) characters and no font here has them.
    """
    chinese = chinese_font()
    if chinese is not None:
        return chinese
    if any(_is_east_asian(character) for character in text):
        raise ValueError(f"cannot write {text!r}: {MISSING}")
    return latin_font()


def latin_font() -> Path:
    """DejaVu Sans, which matplotlib brings along."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def drawable(text: str, font: Path) -> str:
    """``text`` with every character that ``font`` lacks written as its code point: ``a😀`` → ``a[U+1F600]``.

    A model under training may answer anything; an empty box would hide what it said.
    """
    glyphs = _glyphs(font)
    return "".join(c if ord(c) in glyphs else " " if c.isspace() else f"[U+{ord(c):04X}]" for c in text)


def font_properties(text: str) -> font_manager.FontProperties:
    """The same choice for matplotlib; asks for nothing global (no rcParams, no font registry)."""
    return font_manager.FontProperties(fname=str(text_font(text)))


@lru_cache(maxsize=8)
def _glyphs(path: Path) -> frozenset[int]:
    return frozenset(FT2Font(str(path)).get_charmap())


def covers(path: Path, text: str) -> bool:
    """Has the font a glyph for every character of ``text``? False for a file that is no readable font."""
    try:
        return all(ord(character) in _glyphs(path) for character in text)
    except (OSError, RuntimeError):  # a broken font file on somebody's machine is not our error
        return False


def _candidates() -> list[Path]:
    found = []
    package = importlib.util.find_spec("mplfonts")
    if package is not None and package.origin is not None:
        found += sorted((Path(package.origin).parent / "fonts").glob("*Sans*CJK*Regular*"), key=_preference)
    known = [path for path in map(Path, font_manager.findSystemFonts()) if _preference(path) < len(_KNOWN)]
    return found + sorted(
        known, key=lambda path: (_preference(path), "regular" not in path.name.lower(), path)
    )


def _preference(path: Path) -> int:
    name = path.name.lower()
    return next((rank for rank, part in enumerate(_KNOWN) if part in name), len(_KNOWN))


def _is_east_asian(character: str) -> bool:
    code = ord(character)
    blocks = ((0x2E80, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x323AF))
    return any(first <= code <= last for first, last in blocks)
