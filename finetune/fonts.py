"""Finds a font with Chinese glyphs, or reports that there is none, and draws text on pictures with it.

Training draws answers without matplotlib, so this uses only Pillow.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Characters that a font must cover to count as Chinese: simplified, traditional, and full-width punctuation.
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

_FOLDERS = {
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "win32": ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts"),
}

MISSING = (
    "no font with Chinese glyphs on this machine, so Chinese in pictures would be empty boxes; "
    "run `pip install mplfonts` (or `apt-get install fonts-wqy-microhei`) and draw again"
)

_NO_CHARACTER = "\uffff"  # never assigned by Unicode, so every font draws its "missing" glyph
_PROOF_SIZE = 32


@lru_cache(maxsize=1)
def chinese_font() -> Path | None:
    """The first font that has Chinese glyphs, or None.

    The package ``mplfonts`` comes first, found by its folder: importing it would rewrite matplotlib's
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
        raise ValueError(f"cannot draw {text!r}: {MISSING}")
    return latin_font()


@lru_cache(maxsize=1)
def latin_font() -> Path:
    """DejaVu Sans: matplotlib's copy where it is installed, else the system's.

    Raises ValueError if there is neither.
    """
    package = importlib.util.find_spec("matplotlib")
    bundled = "mpl-data/fonts/ttf/DejaVuSans.ttf"
    own = [Path(package.origin).parent / bundled] if package is not None and package.origin else []
    found = next((path for path in [*own, *_system_fonts()] if path.name == "DejaVuSans.ttf"), None)
    if found is None:
        raise ValueError(
            "the font DejaVu Sans is not installed; run `pip install matplotlib`, which brings it along"
        )
    return found


@lru_cache(maxsize=2048)
def drawable(text: str, font: Path) -> str:
    """``text`` with every character that ``font`` lacks written as its code point: ``a😀`` → ``a[U+1F600]``.

    A model under training may answer anything; an empty box would hide what it said.
    """
    return "".join(" " if c.isspace() else c if _has(font, c) else f"[U+{ord(c):04X}]" for c in text)


def covers(path: Path, text: str) -> bool:
    """Has the font a glyph for every character of ``text``? False for a file that is no readable font."""
    try:
        return all(_has(path, character) for character in text)
    except OSError:  # a broken font file on somebody's machine is not our error
        return False


class Pen:
    """Text of one font in several sizes, with what the font lacks spelled out."""

    def __init__(self, font: Path, colour: Colour = (0, 0, 0)) -> None:
        self.font, self.colour = font, colour

    def write(
        self,
        draw: ImageDraw.ImageDraw,
        at: tuple[float, float],
        text: str,
        size: int,
        colour: Colour | None = None,
        anchor: str = "la",
    ) -> float:
        """Write one line on a colour or grey picture, and return where it ends on the right."""
        assert draw.fontmode == "L", draw.fontmode
        text, whole = drawable(text, self.font), (int(at[0]), int(at[1]))
        within = (math.modf(at[0])[0], math.modf(at[1])[0])
        mask, offset = _mask(self.font, size, text, anchor, within)
        corner = (whole[0] + offset[0], whole[1] + offset[1])
        draw.bitmap(corner, mask, fill=self.colour if colour is None else colour)
        return at[0] + (_length(self.font, size, text) if anchor[0] == "l" else 0)

    def width(self, text: str, size: int) -> float:
        return _length(self.font, size, drawable(text, self.font))

    def fit(self, text: str, size: int, width: float) -> str:
        """``text`` cut to ``width`` pixels, with an ellipsis where something is missing."""
        text = " ".join(text.split())
        if self.width(text, size) <= width:
            return text
        while text and self.width(text + "…", size) > width:
            text = text[: -max(1, len(text) // 12)]
        return text + "…"

    def lines(self, text: str, size: int, width: float, most: int) -> list[str]:
        """``text`` broken into at most ``most`` lines of ``width`` pixels; the last one is cut where it is too long.

        Breaks fall at spaces where there are some; Chinese, which has none, breaks anywhere.
        """
        lines: list[str] = []
        rest = " ".join(text.split())
        while rest and len(lines) < most - 1:
            taken = self._head(rest, size, width)
            lines.append(rest[:taken].rstrip())
            rest = rest[taken:].lstrip()
        return [*lines, self.fit(rest, size, width)] if rest or not lines else lines

    def _head(self, text: str, size: int, width: float) -> int:
        """How many characters of ``text`` go on one line: at least one."""
        fits = next((n for n in range(1, len(text) + 1) if self.width(text[:n], size) > width), len(text) + 1)
        end = max(1, fits - 1)
        if end == len(text) or _is_east_asian(text[end]) or _is_east_asian(text[end - 1]):
            return end
        space = text.rfind(" ", 0, end + 1)
        return space if space > 0 else end


@lru_cache(maxsize=32)
def _face(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=2048)
def _length(font: Path, size: int, text: str) -> float:
    return _face(font, size).getlength(text)


# Legends, names and questions come again on every picture of a run, and drawing letters is a third of a picture's cost.
@lru_cache(maxsize=512)
def _mask(
    font: Path, size: int, text: str, anchor: str, within: tuple[float, float]
) -> tuple[Image.Image, tuple[int, int]]:
    """A line as ``ImageDraw.text`` would draw it: how much ink each pixel gets, and where its corner lies from the
    anchor. ``within``: the anchor's place within its pixel."""
    mask, offset = _face(font, size).getmask2(text, "L", anchor=anchor, start=within)
    return Image.frombytes("L", mask.size, bytes(mask)), offset


@lru_cache(maxsize=4096)
def _has(font: Path, character: str) -> bool:
    """Does the font draw this character otherwise than one that does not exist?"""
    return _drawn(font, character) != _drawn(font, _NO_CHARACTER)


def _drawn(font: Path, character: str) -> tuple[tuple[int, int], bytes]:
    mask = _face(font, _PROOF_SIZE).getmask(character)
    return mask.size, bytes(mask)


def _candidates() -> list[Path]:
    found = []
    package = importlib.util.find_spec("mplfonts")
    if package is not None and package.origin is not None:
        found += sorted((Path(package.origin).parent / "fonts").glob("*Sans*CJK*Regular*"), key=_preference)
    known = [path for path in _system_fonts() if _preference(path) < len(_KNOWN)]
    return found + sorted(
        known, key=lambda path: (_preference(path), "regular" not in path.name.lower(), path)
    )


def _system_fonts() -> list[Path]:
    folders = [Path(folder).expanduser() for folder in _FOLDERS.get(sys.platform, _FOLDERS["linux"])]
    endings = (".ttf", ".otf", ".ttc")
    return [
        path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix.lower() in endings
    ]


def _preference(path: Path) -> int:
    name = path.name.lower()
    return next((rank for rank, part in enumerate(_KNOWN) if part in name), len(_KNOWN))


def _is_east_asian(character: str) -> bool:
    code = ord(character)
    blocks = ((0x2E80, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x323AF))
    return any(first <= code <= last for first, last in blocks)
