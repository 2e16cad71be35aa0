"""The Chinese and English names of categories, and which of them can carry or hold which.

The 80 categories of COCO (Lin et al., arXiv 1405.0312) are known. Others come from ``--names``:

    {"pearl tower": {"zh": "东方明珠", "en": "the Oriental Pearl Tower", "foil": "canton tower",
                     "evidence": ["sphere"]},
     "canton tower": {"zh": "广州塔", "en": "the Canton Tower", "foil": "pearl tower"},
     "sphere": {"zh": "球体", "en": "sphere"},
     "shelf": {"zh": "架子", "en": "shelf", "en_plural": "shelves", "carries": ["book", "vase"]}}
"""

import difflib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.corrective.scenes import AnnotatedBox, Language, Scene


@dataclass(frozen=True)
class Name:
    """The names of a category, and what questions about it need.

    zh, en      as used in a sentence; en with "the" for a proper name
    en_a        with its indefinite article, if that does not follow from the first letter ("broccoli")
    en_plural   if irregular; the same as ``en`` for plural words ("skis")
    carries     categories that may be on it; holds: categories that may be inside it
    foil        the name a building is mistaken for, by language; only buildings have one
    evidence    categories of the parts that identify a building
    kind        the type of building, by language
    group       group of the probes for its name
    """

    zh: str
    en: str
    en_a: str | None = None
    en_plural: str | None = None
    carries: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    foil: Mapping[Language, str] | None = None
    evidence: tuple[str, ...] = ()
    kind: Mapping[Language, str] = field(default_factory=lambda: {"zh": "塔", "en": "tower"})
    group: str | None = None

    @property
    def plural(self) -> bool:
        """Whether its English name takes "are"."""
        return self.en_plural == self.en

    @property
    def many(self) -> str:
        """English plural: sphere → spheres, box → boxes, lorry → lorries."""
        if self.en_plural is not None:
            return self.en_plural
        if self.en.endswith(("s", "x", "ch", "sh")):
            return f"{self.en}es"
        return (
            f"{self.en[:-1]}ies" if self.en.endswith("y") and self.en[-2:-1] not in "aeo" else f"{self.en}s"
        )

    def bare(self, language: Language) -> str:
        """The bare noun, which occurs in every sentence about it: 猫, cat."""
        return self.zh if language == "zh" else self.en.removeprefix("the ")

    def the(self, language: Language) -> str:
        """猫, the cat."""
        return self.zh if language == "zh" else f"the {self.bare(language)}"

    def a(self, language: Language) -> str:
        """猫, a cat, an apple, skis, the Oriental Pearl Tower."""
        if language == "zh":
            return self.zh
        if self.en.startswith("the ") or self.plural:
            return self.en
        return self.en_a or f"{'an' if self.en[0].lower() in 'aeiou' else 'a'} {self.en}"

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """One and several of it in English, as words in small letters: cat, cats."""
        given = (self.bare("en").casefold(), self.many.casefold().removeprefix("the "))
        return tuple(dict.fromkeys(re.sub(r"[\W_]+", " ", one).strip() or one for one in given))


def alike(one: Name, other: Name) -> bool:
    """Whether one name contains the other in either language, of one thing or of several: "bear" and "teddy bear",
    "cat" and "two cats", 狗 and 热狗. A question about the one may be about the other, and its answer then wrong."""
    pairs = itertools.product(one.forms, other.forms)
    return any(a in b or b in a for a, b in (*pairs, (one.zh.casefold(), other.zh.casefold())))


def _covers(one: Name, other: Name) -> bool:
    """Whether what ``other`` names may be called ``one`` too: a black cat "the cat", a 热狗 狗, but no 网球拍 球."""
    words = (f" {a} " in f" {b} " for a, b in itertools.product(one.forms, other.forms))
    return any(words) or other.zh.casefold().endswith(one.zh.casefold())


_FOOD = (
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake",
)  # fmt: skip
_SMALL = (
    *_FOOD, "backpack", "handbag", "frisbee", "sports ball", "bottle", "wine glass", "cup", "fork", "knife", "spoon",
    "bowl", "laptop", "mouse", "remote", "keyboard", "cell phone", "book", "vase", "scissors", "teddy bear",
    "toothbrush", "hair drier", "cat", "bird",
)  # fmt: skip
_HOUSEHOLD = (*_SMALL, "potted plant", "tv", "clock", "toaster", "microwave", "suitcase")
_RIDER = ("person",)

_COCO: dict[str, tuple[str, str]] = {
    "person": ("人", "person"), "bicycle": ("自行车", "bicycle"), "car": ("汽车", "car"),
    "motorcycle": ("摩托车", "motorcycle"), "airplane": ("飞机", "airplane"), "bus": ("公交车", "bus"),
    "train": ("火车", "train"), "truck": ("卡车", "truck"), "boat": ("船", "boat"),
    "traffic light": ("红绿灯", "traffic light"), "fire hydrant": ("消防栓", "fire hydrant"),
    "stop sign": ("停车标志", "stop sign"), "parking meter": ("停车计时器", "parking meter"),
    "bench": ("长椅", "bench"), "bird": ("鸟", "bird"), "cat": ("猫", "cat"), "dog": ("狗", "dog"),
    "horse": ("马", "horse"), "sheep": ("绵羊", "sheep"), "cow": ("牛", "cow"), "elephant": ("大象", "elephant"),
    "bear": ("熊", "bear"), "zebra": ("斑马", "zebra"), "giraffe": ("长颈鹿", "giraffe"),
    "backpack": ("双肩包", "backpack"), "umbrella": ("雨伞", "umbrella"), "handbag": ("手提包", "handbag"),
    "tie": ("领带", "tie"), "suitcase": ("行李箱", "suitcase"), "frisbee": ("飞盘", "frisbee"),
    "skis": ("滑雪双板", "skis"), "snowboard": ("滑雪单板", "snowboard"), "sports ball": ("球", "ball"),
    "kite": ("风筝", "kite"), "baseball bat": ("棒球棒", "baseball bat"),
    "baseball glove": ("棒球手套", "baseball glove"), "skateboard": ("滑板", "skateboard"),
    "surfboard": ("冲浪板", "surfboard"), "tennis racket": ("网球拍", "tennis racket"), "bottle": ("瓶子", "bottle"),
    "wine glass": ("酒杯", "wine glass"), "cup": ("杯子", "cup"), "fork": ("叉子", "fork"), "knife": ("刀", "knife"),
    "spoon": ("勺子", "spoon"), "bowl": ("碗", "bowl"), "banana": ("香蕉", "banana"), "apple": ("苹果", "apple"),
    "sandwich": ("三明治", "sandwich"), "orange": ("橙子", "orange"), "broccoli": ("西兰花", "broccoli"),
    "carrot": ("胡萝卜", "carrot"), "hot dog": ("热狗", "hot dog"), "pizza": ("披萨", "pizza"),
    "donut": ("甜甜圈", "donut"), "cake": ("蛋糕", "cake"), "chair": ("椅子", "chair"), "couch": ("沙发", "couch"),
    "potted plant": ("盆栽", "potted plant"), "bed": ("床", "bed"), "dining table": ("餐桌", "dining table"),
    "toilet": ("马桶", "toilet"), "tv": ("电视", "TV"), "laptop": ("笔记本电脑", "laptop"),
    "mouse": ("鼠标", "computer mouse"), "remote": ("遥控器", "remote control"), "keyboard": ("键盘", "keyboard"),
    "cell phone": ("手机", "cell phone"), "microwave": ("微波炉", "microwave"), "oven": ("烤箱", "oven"),
    "toaster": ("烤面包机", "toaster"), "sink": ("水槽", "sink"), "refrigerator": ("冰箱", "refrigerator"),
    "book": ("书", "book"), "clock": ("时钟", "clock"), "vase": ("花瓶", "vase"), "scissors": ("剪刀", "scissors"),
    "teddy bear": ("泰迪熊", "teddy bear"), "hair drier": ("吹风机", "hair dryer"),
    "toothbrush": ("牙刷", "toothbrush"),
}  # fmt: skip
_CARRIES: dict[str, tuple[str, ...]] = {
    "dining table": _HOUSEHOLD, "bench": (*_SMALL, "dog"), "couch": (*_SMALL, "dog"),
    "bed": (*_SMALL, "dog", "suitcase"), "chair": _SMALL,
    **dict.fromkeys(("suitcase", "laptop", "keyboard", "tv"), ("cat",)),
    "car": ("cat", "bird"), "refrigerator": ("cat", "microwave", "toaster", "potted plant", "vase"),
    **dict.fromkeys(("skateboard", "surfboard", "snowboard", "skis", "horse", "elephant", "motorcycle"), _RIDER),
    "bicycle": ("person", "cat", "bird"),
}  # fmt: skip
# Not the oven: COCO's box includes the stove on top, and pans on it.
_HOLDS: dict[str, tuple[str, ...]] = {
    "bowl": (*_FOOD, "spoon"), "cup": ("spoon", "toothbrush"), "sink": ("cup", "bowl", "fork", "knife", "spoon", "cat"),
    "microwave": _FOOD, "refrigerator": (*_FOOD, "bottle"), "suitcase": ("cat", "teddy bear", "book", "laptop"),
}  # fmt: skip
_ODD = {
    "broccoli": {"en_a": "broccoli"}, "skis": {"en_plural": "skis"}, "scissors": {"en_plural": "scissors"},
    "knife": {"en_plural": "knives"}, "person": {"en_plural": "people"},
}  # fmt: skip

COCO: dict[str, Name] = {
    category: replace(
        Name(zh, en, carries=_CARRIES.get(category, ()), holds=_HOLDS.get(category, ())),
        **_ODD.get(category, {}),  # type: ignore[arg-type]
    )
    for category, (zh, en) in _COCO.items()
}


class Names:
    """Names by category: given ones, then COCO's, then the category itself.

    without_chinese   categories used in a Chinese question that have no Chinese name
    """

    def __init__(self, given: Mapping[str, Name] | None = None) -> None:
        self.given = dict(given or {})
        self.without_chinese: set[str] = set()

    def __getitem__(self, category: str) -> Name:
        known = self.given.get(category) or COCO.get(category)
        return known or Name(category, category)

    def word(self, category: str, language: Language) -> Name:
        """The name for a sentence in this language; a missing Chinese name is recorded."""
        if language == "zh" and category not in self.given and category not in COCO:
            self.without_chinese.add(category)
        return self[category]

    def alike(self, category: str, others: Iterable[str]) -> bool:
        """Whether the name of a category is alike to that of one of the others."""
        return any(alike(self[category], self[other]) for other in others)

    def unshared(self, category: str, scene: Scene) -> bool:
        """Whether its name means nothing of another category that is there: with "sphere" and "small sphere" annotated,
        "the spheres" are both."""
        others = scene.categories - {category}
        return not any(_covers(self[category], self[other]) for other in others)

    def single(self, scene: Scene) -> tuple[AnnotatedBox, ...]:
        """Things that "the cat" identifies: one of its category, and no black cat or cats beside it."""
        return tuple(one for one in scene.single if self.unshared(one.category, scene))

    def pairs(self, scene: Scene) -> Iterator[tuple[AnnotatedBox, AnnotatedBox]]:
        """Every ordered pair of ``single`` things."""
        return itertools.permutations(self.single(scene), 2)

    @property
    def buildings(self) -> dict[str, Name]:
        """Categories with a foil."""
        return {category: name for category, name in self.given.items() if name.foil is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Reading --names
# ---------------------------------------------------------------------------------------------------------------------

_TEXTS = ("zh", "en", "en_a", "en_plural", "group")
_LISTS = ("carries", "holds", "evidence")
_KEYS = (*_TEXTS, *_LISTS, "foil", "kind")


def read_names(path: Path, categories: Iterable[str]) -> Names:
    """Read a file of names.

    categories   of the annotations: any other category in the file is a fault, usually a misspelling

    Raises ValueError with every fault: category and field, found, expected.
    """
    content = load_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f'{path}: expected an object of categories: {{"sphere": {{"zh": "球体", "en": "sphere"}}}}'
        )
    known = {*categories, *content, *COCO}
    faults = [
        f"{category!r}: {fault}"
        for category, entry in content.items()
        for fault in _entry_faults(category, entry, content, known, set(categories))
    ]
    if faults:
        raise ValueError(listed(path, faults))
    return Names({category: _name(category, entry, content) for category, entry in content.items()})


def named_categories(path: Path) -> frozenset[str]:
    """The categories of a file of names, before those of the annotations are known; ``read_names`` checks the file."""
    content = load_json(path)
    return frozenset(content) if isinstance(content, dict) else frozenset()


def load_json(path: Path) -> Any:
    """A JSON file's content. Raises ValueError naming file and position."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def listed(path: Path, faults: list[str], most: int = 50) -> str:
    """Faults of a file, one per line, at most ``most``."""
    shown = [f"  {fault}" for fault in faults[:most]]
    more = [f"  ... and {len(faults) - most:,} more"] if len(faults) > most else []
    return "\n".join([f"{path}: {len(faults):,} fault{'' if len(faults) == 1 else 's'}", *shown, *more])


def unknown_word(word: str, known: Iterable[str]) -> str:
    """``found 'catt', expected one of the categories: cat (closest), dog, ...``"""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=1)
    shown = ", ".join(words[:20]) + (f" and {len(words) - 20} more" if len(words) > 20 else "")
    return f"found {word!r}, expected one of {shown}" + (f"; did you mean {close[0]!r}?" if close else "")


def _entry_faults(
    category: str, entry: Any, content: Mapping[str, Any], known: set[str], annotated: set[str]
) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f'expected an object {{"zh": ..., "en": ...}}, found {entry!r:.80}'
        return
    for key in sorted(set(entry) - set(_KEYS)):
        yield f"{key}: unknown, expected {', '.join(_KEYS)}"
    for key in _TEXTS:
        needed = key in ("zh", "en")
        if (needed or key in entry) and not _is_text(entry.get(key)):
            yield f"{key}: found {entry.get(key)!r}, expected text"
    for key in _LISTS:
        words = entry.get(key, [])
        if not isinstance(words, list) or not all(_is_text(word) for word in words):
            yield f"{key}: found {words!r:.80}, expected a list of categories"
            continue
        for word in words:
            if word not in known:
                yield f"{key}: {unknown_word(word, annotated | set(content))}"
    yield from _pair_faults("kind", entry.get("kind"), ())
    yield from _pair_faults("foil", entry.get("foil"), [other for other in content if other != category])
    if "evidence" in entry and "foil" not in entry:
        yield "evidence: needs a foil too, the name the building is mistaken for"
    if "foil" in entry and category not in annotated and category not in _mistaken_for(content, annotated):
        yield f"not in the annotations: {unknown_word(category, annotated)}"


def _mistaken_for(content: Mapping[str, Any], annotated: set[str]) -> set[str]:
    """What annotated buildings are taken for. It may have no picture of its own: it is only the wrong answer."""
    foils = (
        entry.get("foil") for name, entry in content.items() if name in annotated and isinstance(entry, dict)
    )
    return {foil for foil in foils if isinstance(foil, str)}


def _pair_faults(key: str, value: Any, others: Iterable[str]) -> Iterator[str]:
    others = list(others)
    if value is None or (isinstance(value, str) and value in others):
        return
    if isinstance(value, dict) and set(value) == {"zh", "en"} and all(map(_is_text, value.values())):
        return
    also = " or another category of this file" if key == "foil" else ""
    yield f'{key}: found {value!r:.80}, expected {{"zh": ..., "en": ...}}{also}'


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _name(category: str, entry: Mapping[str, Any], content: Mapping[str, Any]) -> Name:
    known = COCO.get(category)
    foil = entry.get("foil")
    if isinstance(foil, str):
        foil = {"zh": content[foil]["zh"], "en": content[foil]["en"]}
    fields = {key: entry[key] for key in (*_TEXTS, "kind") if key in entry}
    fields |= {key: tuple(entry[key]) for key in _LISTS if key in entry}
    inherited = {"carries": known.carries, "holds": known.holds} if known else {}
    return Name(**{**inherited, **fields, "foil": foil})
