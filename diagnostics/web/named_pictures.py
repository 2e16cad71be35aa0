"""Which of a conversation's pictures a question is about: "Picture 1", "the second picture", "第二张图", "图三"."""

from __future__ import annotations

import re

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CHINESE = "一二三四五六七八九"
_VALUES = {
    word: number for words in (_ORDINALS, _CARDINALS, _CHINESE) for number, word in enumerate(words, start=1)
}
_ORDINAL = rf"({'|'.join(_ORDINALS)}|1st|2nd|3rd|[4-9]th)"
_PICTURE = r"(?:picture|image|photo)"
_MARK = r"(?:\s*#|\s+no\.|\s+number(?=\s))?\s*"
_POINTERS = (
    "the", "this", "that", "an", "a", "one", "last", "next", "other", "whole", "my", "your", "our",
    "first", "second", "third",
)  # fmt: skip
_UNPOINTED = "".join(rf"(?<!\b{word} )" for word in _POINTERS)
_COUNTED_WORD = (
    r"(?!(?:is|was|has|does|shows|looks|sees|contains|as|this|its|us)\b)"
    r"(?:men|women|people|children|man|woman|person|boy|girl|child|[a-z]{2,}s)\b"
)
_COUNTED = "个個只隻人条條张張名位匹头頭辆輛座棵朵本件双雙把根块塊群种種"
_PHRASE_ENDS = r"(?=\s*(?:$|[^\w\s]|(?:and|or|with|in|is|to|from)\b))"
_PHRASE_ENDS_ZH = r"(?=\s*(?:$|[^\w\s]|[中里裡内內上的和与與跟及或是有显顯呢吗嗎]))"
_ALONE = r"(?![A-Za-z\d])(?!\s*(?:[-–—/:.~到至]|to\b)\s*\d)"
"""Behind a number: it is no part of "3D", "2.5" or "1-5"."""
_OTHER_SHEETS = (
    r"(?!\s*(?:[桌椅床嘴脸臉纸紙票卡牌网網弓毯饼钞鈔画畫]|沙发|沙發|名片|唱片|海报|海報|报纸|證件|证件|邮|郵|挂|掛"
    r"|[地油国國壁漫版][图圖画畫]|水彩))"
)
_NAMED = re.compile(
    "|".join(
        (
            # Not of "in the last image 2 men": behind an article and its kind, a number may count what follows.
            rf"{_UNPOINTED}\b{_PICTURE}{_MARK}(\d){_ALONE}",
            rf"\b{_PICTURE}{_MARK}(\d){_ALONE}(?!\s+{_COUNTED_WORD})",
            rf"{_PICTURE}s\s*(\d(?!\d)(?:\s*(?:,|&|and|or)\s*\d(?!\d))*)",
            # Not of "in this picture two people": words need a picture without an article, and an end.
            rf"{_UNPOINTED}\b{_PICTURE}{_MARK}"
            rf"({'|'.join(_CARDINALS)})\b(?!\s+of\b){_PHRASE_ENDS}",
            rf"\b{_ORDINAL}(?:\s+(?:and|or)\s+(?:the\s+)?{_ORDINAL})?\s+{_PICTURE}s?\b",
            # Not of 这张图片2个人.
            rf"(?<![张張幅这這那此每该該])(?:[图圖]片?|照片)\s*(\d){_ALONE}",
            rf"(?:[图圖]片?|照片)\s*(\d){_ALONE}(?!\s*[{_COUNTED}])",
            # Not of 图一共, 图一样, 图三个人.
            rf"(?:[图圖]片?|照片)\s*([{_CHINESE}]){_PHRASE_ENDS_ZH}",
            # 张 counts tables too, and 幅 paintings, which may hang in the picture.
            # 个 counts icons (图标) and patterns (图案) too.
            rf"第\s*([\d{_CHINESE}])\s*(?:[张張幅]{_OTHER_SHEETS}"
            rf"|个\s*(?:[图圖](?:[片像]|{_PHRASE_ENDS_ZH})|[照相]片))",
        )
    ),
    re.IGNORECASE,
)


def numbers_of_pictures(question: str) -> list[int]:
    """The numbers of the pictures that a question names, from 1, in its order.

    "Is the tower of picture 2 in the first image?" → [2, 1]. A picture that is named otherwise ("the other one") has
    none.
    """
    named = [word for match in _NAMED.finditer(question) for word in match.groups() if word]
    digits = [re.findall(r"\d", word) for word in named]  # of "2nd", and of the list "1, 2 and 3"
    return [
        number
        for word, found in zip(named, digits, strict=True)
        for number in (map(int, found) if found else (_VALUES[word.lower()],))
    ]


def about(question: str, pictures: int) -> int:
    """Index of the picture that a question is about: the first that it names and that there is, else the last."""
    named = (number - 1 for number in numbers_of_pictures(question))
    return next((number for number in named if 0 <= number < pictures), max(pictures - 1, 0))
