"""One page, two languages: every English text of a page gets its Chinese beside it, and a switch shows one of them.

Pages are written in English. ``in_both_languages`` looks every text up in ``diagnostics.report.chinese``, whose entries
may have places for what varies: "{n} probes" is found for "40 probes". Texts of users and models (questions, answers,
names of groups and regions) stand in elements with ``translate="no"`` and stay as they are.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html.parser import HTMLParser
from typing import Literal, NamedTuple

from diagnostics.report.chinese import CHINESE

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
TAGS: Mapping[Language, str] = {"en": "en", "zh": "zh-CN"}
"""The languages as HTML names them."""
ATTRIBUTES = ("aria-label", "alt", "title", "placeholder")
INLINE = ("b", "i", "em", "strong", "code", "br")
"""Tags inside a sentence; any other ends it."""
VOID = ("br", "img", "meta", "input", "link", "hr", "path", "rect", "line", "circle", "polyline")

SWITCH_STYLE = """
html[lang="en"] [lang="zh-CN"]:not(button), html[lang="zh-CN"] [lang="en"]:not(button) { display: none; }
.languages { float: right; display: flex; gap: 4px; margin: 0 0 8px 16px; }
.languages button { padding: 2px 12px; min-height: 30px; font-size: 14px; }
@media print { .languages { display: none; } }
"""
SWITCH_SCRIPT = """
"use strict";
/* Shows one language; the address keeps the choice (#zh), and nothing is stored. */
const speak = (language) => {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.querySelectorAll(".languages button").forEach((button) => {
    button.setAttribute("aria-pressed", button.value === language);
  });
  document.querySelectorAll("[data-said]").forEach((node) => {
    for (const [name, words] of Object.entries(JSON.parse(node.dataset.said))) {
      if (name === "text") node.textContent = words[language]; else node.setAttribute(name, words[language]);
    }
  });
};
const asked = () => { if (["#en", "#zh"].includes(location.hash)) speak(location.hash.slice(1)); };
document.querySelectorAll(".languages button").forEach((button) => button.addEventListener("click", () => {
  history.replaceState(null, "", "#" + button.value);
  speak(button.value);
}));
addEventListener("hashchange", asked);
asked();
"""


class _Entry(NamedTuple):
    """An entry of the table, ready to match.

    begins, ends   what stands before the first and after the last place
    kinds          a place's name → how its value is said in Chinese
    """

    begins: str
    ends: str
    pattern: re.Pattern[str]
    chinese: str
    kinds: Mapping[str, str]


def check_language(language: str) -> None:
    """Raises ValueError for a language that pages are not written in."""
    if language not in LANGUAGES:
        raise ValueError(f"language: found {language!r}, expected {' or '.join(LANGUAGES)}")


SWITCH_PLACE = '<nav class="languages"></nav>'
"""An element: no text of a user, in which "<" is written as an entity, can be taken for it."""


AS_WRITTEN = r'<(?P<tag>\w+)[^>]*translate="no"[^>]*>.*?</(?P=tag)>'
"""A whole element whose text stays as it is."""


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with each ``{{NAME}}`` filled once: what a part says, such as a group called "{{CASES}}", stays."""
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda name: parts[name[1]], template)


def in_both_languages(page: str, opens: Language = "en") -> str:
    """The page with both languages, the switch, and its script; ``SWITCH_PLACE`` is where the buttons stand.

    Args:
        page: a whole HTML page in English.
        opens: the language that it shows first.
    """
    writer = _Writer(opens)
    writer.feed(page)
    writer.close()
    text = "".join(writer.parts)
    text = text.replace('<html lang="en">', f'<html lang="{TAGS[opens]}">', 1)
    text = text.replace(SWITCH_PLACE, _buttons(opens), 1)
    text = text.replace("</style>", SWITCH_STYLE + "</style>", 1)
    return text.replace("</body>", f"<script>{SWITCH_SCRIPT}</script>\n</body>", 1)


def untranslated(page: str) -> list[str]:
    """The English texts of a page for which the table has no Chinese."""
    writer = _Writer("en")
    writer.feed(page)
    writer.close()
    return writer.missing


def _buttons(opens: Language) -> str:
    names = {"en": "English", "zh": "中文"}
    buttons = "".join(
        f'<button type="button" value="{one}" lang="{TAGS[one]}" translate="no" '
        f'aria-pressed="{"true" if one == opens else "false"}">{names[one]}</button>'
        for one in LANGUAGES
    )
    return f'<nav class="languages" translate="no" aria-label="Language / 语言">{buttons}</nav>'


class _Writer(HTMLParser):
    """Copies a page, and says each of its texts in both languages."""

    def __init__(self, opens: Language) -> None:
        super().__init__(convert_charrefs=False)
        self.opens, self.parts, self.missing = opens, [], []  # type: ignore[var-annotated]
        self._unit: list[str] = []
        self._open: list[tuple[str, bool]] = []  # tags that are open, and whether their text stays as it is

    @property
    def _kept(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raw = self.get_starttag_text() or ""
        if tag in INLINE and not self._kept:
            self._unit.append(raw)
            return
        self._flush()
        self._open_tag(tag, attrs, raw)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._flush()
        self.parts.append(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        if tag in INLINE and not self._kept:
            self._unit.append(f"</{tag}>")
            return
        self._flush()
        while self._open and self._open.pop()[0] != tag:
            pass
        self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        (self.parts if self._kept else self._unit).append(data)

    def handle_entityref(self, name: str) -> None:
        self.handle_data(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self.handle_data(f"&#{name};")

    def handle_comment(self, data: str) -> None:
        self._flush()
        self.parts.append(f"<!--{data}-->")

    def handle_decl(self, decl: str) -> None:
        self.parts.append(f"<!{decl}>")

    def close(self) -> None:
        super().close()
        self._flush()

    def _open_tag(self, tag: str, attrs: list[tuple[str, str | None]], raw: str) -> None:
        given = dict(attrs)
        if tag not in VOID:
            stays = self._kept or given.get("translate") == "no" or tag in ("script", "style")
            self._open.append((tag, stays))
        said = {
            name: both
            for name in ATTRIBUTES
            if given.get(name) and given.get("translate") != "no" and (both := self._both(str(given[name])))
        }
        for name, words in said.items():
            before, _, rest = raw.partition(f'{name}="')
            raw = f'{before}{name}="{html.escape(words[self.opens])}"{rest.partition(chr(34))[2]}'
        self.parts.append(_with_data(raw, said) if said else raw)

    def _both(self, text: str) -> dict[str, str] | None:
        if not _has_words(text):
            return None
        chinese = translated(text)
        if chinese is None:
            self.missing.append(text)
            return None
        return {"en": text, "zh": chinese}

    def _flush(self) -> None:
        unit, self._unit = "".join(self._unit), []
        inner = unit.strip()
        if not inner or not _has_words(_bare(inner)):
            self.parts.append(_unbroken(unit))
            return
        chinese = translated(inner)
        if chinese is None:
            self.missing.append(inner)
            self.parts.append(_unbroken(unit))
            return
        tag = self._open[-1][0] if self._open else ""
        if tag in ("title", "option"):
            both = {"en": html.unescape(inner), "zh": html.unescape(chinese)}
            self.parts[-1] = _with_data(self.parts[-1], {"text": both})
            self.parts.append(html.escape(both[self.opens], quote=False))
            return
        holder = "tspan" if tag in ("text", "tspan") else "span"
        start, end = unit[: len(unit) - len(unit.lstrip())], unit[len(unit.rstrip()) :]
        self.parts.append(
            f'{start}<{holder} lang="en">{_unbroken(inner)}</{holder}>'
            f'<{holder} lang="zh-CN">{_unbroken(chinese)}</{holder}>{end}'
        )


def _unbroken(text: str) -> str:
    """A number and its percent sign stay on one line; what a user wrote stays as it is."""
    spaces = re.compile(rf"({AS_WRITTEN})|(?<=\d) (?=%)", re.S)
    return spaces.sub(lambda found: found[0] if found[1] else "\N{NO-BREAK SPACE}", text)


def _with_data(tag: str, said: Mapping[str, Mapping[str, str]]) -> str:
    written = html.escape(json.dumps(said, ensure_ascii=False))
    return f'{tag[:-1]} data-said="{written}">'


def _bare(text: str) -> str:
    """Without elements that stay as they are, and without tags."""
    return re.sub(r"<[^>]*>", " ", re.sub(AS_WRITTEN, " ", text, flags=re.S))


def _has_words(text: str) -> bool:
    """Whether there is anything to translate: letters, beside those of entities, and of layer names and units."""
    return bool(re.search(r"[A-Za-z]", re.sub(r"&\w+;", " ", text)))


# ---------------------------------------------------------------- the table


def for_script(keys: Sequence[str]) -> dict[str, str]:
    """What a page's script says: English → Chinese. Raises KeyError for a text that the table lacks."""
    return {key: CHINESE[key] for key in keys}


@lru_cache(maxsize=4096)
def translated(text: str) -> str | None:
    """The Chinese of a text, whole or sentence by sentence; None if the table lacks any of it.

    "40 probes" with the entry "{n} probes" → "{n} 个探针": "40 个探针".
    """
    text = " ".join(text.split()).replace("&#x27;", "'")
    if _BOUND.search(text) and not _has_words(_bare(_BOUND.sub("", text))):
        return _numbers(text)
    if (whole := _whole(text)) is not None:
        return whole
    sentences = _sentences(text)
    for cut in range(len(sentences) - 1, 0, -1):
        first = _whole(" ".join(sentences[:cut]))
        rest = translated(" ".join(sentences[cut:])) if first is not None else None
        if first is not None and rest is not None:
            return first + rest
    return None


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.;:?!]) (?=[A-Z0-9<“])", text)


def _whole(text: str) -> str | None:
    if (exact := CHINESE.get(text)) is not None:
        return exact
    for entry in _entries():
        if not (text.startswith(entry.begins) and text.endswith(entry.ends)):
            continue
        if (found := entry.pattern.fullmatch(text)) is not None:
            values = {name: _value(value, entry.kinds[name]) for name, value in found.groupdict().items()}
            if None in values.values():
                continue  # another entry may know the parts
            return re.sub(r" (?=[，。；：）])", "", entry.chinese.format(**values))
    return None


def _value(text: str, kind: str) -> str | None:
    """What stands in a place, said in Chinese; None for words that should be translated and are not in the table."""
    if kind in ("t", "i"):
        known = translated(text)
        own = re.sub(r"'[^']*'|[“(].*[”)]", " ", _bare(text))
        return known if known is not None else None if _has_words(own) else _numbers(text)
    if kind == "w":
        return "、".join(re.split(_LISTS["l"].between, text))
    if kind in _LISTS:
        said = [_value(part, "t") for part in re.split(_LISTS[kind].between, text)]
        return None if None in said else _LISTS[kind].chinese.join(map(str, said))
    return _numbers(text)


def _numbers(text: str) -> str:
    """Chinese sets no space before %: "41 %" → "41%"; "3 to 5 %" → "3 至 5%"; "under 0.1 %" → "不到 0.1%"."""
    text = _BOUND.sub(lambda bound: {"under": "不到", "over": "超过"}[bound[1]] + " ", text)
    return re.sub(
        r"(?<=\d) to (?=[-+−\d不超])", " 至 ", re.sub(r"(?<=\d) %", "%", text).replace("% to ", "% 至 ")
    )


class _List(NamedTuple):
    """What stands between its parts: a pattern, and the Chinese."""

    between: str
    chinese: str


_LISTS = {"l": _List(", | and ", "、"), "s": _List("; ", "；"), "p": _List(r", (?=[a-z])", "，")}
_BOUND = re.compile(r"\b(under|over) (?=[-+−]?\d)")
_PLACE = re.compile(r"\{(\w+)(?::(\w))?\}")
_VALUES = {
    "n": r"(?:under |over )?[-+−–]?\d(?:[\d.,e+\-× %–→]|(?:under|over) (?=[-+−]?\d))*?"
    r"(?: to (?:under |over )?[-+−]?[\d.,]+ ?%?)?",
    "i": r"[\d.]+ % interval (?:under |over )?\S+(?: %)? to (?:under |over )?\S+(?: %)?|the same on every picture",
}


@lru_cache(maxsize=1)
def _entries() -> tuple[_Entry, ...]:
    made: list[_Entry] = []
    for english, chinese in CHINESE.items():
        if not _PLACE.search(english):
            continue
        kinds: dict[str, str] = {}

        def place(match: re.Match[str], kinds: dict[str, str] = kinds) -> str:
            name, kind = match[1], match[2] or ""
            if name in kinds:
                return f"(?P={name})"
            kinds[name] = kind
            return f"(?P<{name}>{_VALUES.get(kind, '.+?')})"

        parts, at = [], 0
        for found in _PLACE.finditer(english):
            parts += [re.escape(english[at : found.start()]), place(found)]
            at = found.end()
        parts.append(re.escape(english[at:]))
        first, last = english.partition("{")[0], english.rpartition("}")[2]
        made.append(_Entry(first, last, re.compile("".join(parts), re.S), chinese, kinds))
    return tuple(made)


def as_written(text: str, *, kind: str = "") -> str:
    """A text of a user or a model, as HTML that no language changes.

    kind   a class of the style sheet
    """
    named = f' class="{kind}"' if kind else ""
    return f'<b{named} translate="no">{html.escape(text)}</b>'
