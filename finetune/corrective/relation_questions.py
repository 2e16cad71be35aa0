"""Questions about the spatial relation of two things, from their boxes.

For each pair of categories with one box each: is the cat on the bench (yes and no equally often, for each relation), is
it to the left or to the right, on which side, where is the cat (on the bench or below it), what is on the bench, and
"find the cat on the bench", whose answer is a box. ``box_relations`` selects the pairs; ``category_names`` knows what
can carry or hold what.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random

from finetune.corrective.box_relations import OPPOSITE, RELATIONS, holds
from finetune.corrective.category_names import Name, Names, alike
from finetune.corrective.scenes import AnnotatedBox, Language, Question, Scene, either, phrases_in
from finetune.samples.formats.look_at import composed, occurrences, whole_words
from finetune.samples.markup import Box as Markup

GROUP, NEIGHBOUR = "spatial-relation", "neighbour"

_PLACES: dict[Language, dict[str, str]] = {
    "en": {
        "left of": "to the left of {o}", "right of": "to the right of {o}", "above": "above {o}", "below": "below {o}",
        "on": "on {o}", "inside": "inside {o}", "next to": "next to {o}",
    },
    "zh": {
        "left of": "{o}的左边", "right of": "{o}的右边", "above": "{o}的上方", "below": "{o}的下方", "on": "{o}上",
        "inside": "{o}里", "next to": "{o}旁边",
    },
}  # fmt: skip
_WORDS: dict[Language, dict[str, str]] = {
    "en": {"left of": "left", "right of": "right", **{one: one for one in RELATIONS[2:]}},
    "zh": {
        "left of": "左边", "right of": "右边", "above": "上方", "below": "下方", "on": "上", "inside": "里",
        "next to": "旁边",
    },
}  # fmt: skip
"""The word for the relation in questions and answers."""
_OTHER_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {},
    "zh": {
        "left of": ("左侧",), "right of": ("右侧",), "above": ("上面",), "below": ("下面",), "on": ("上面",),
        "inside": ("里面", "内"), "next to": ("旁",),
    },
}  # fmt: skip
"""What people write instead of it in questions of their own."""
_PICTURE = "(?:[图照相]片|[图影]像|图画?|画面?|镜头|视频|[场背前]景)"
_PLACE = "(?:[上下里外]面|[上下]方|[左右][边侧]|[上里][边头]|旁边|内部|[上里内旁])"
_NO_RELATION = re.compile(
    rf"{_PICTURE}的?{_PLACE}"
    rf"|(?<!x)(?:[上下][面方]|[左右][边侧])(?:的|[这那][一两几]?[张幅个段]?)(?:{_PICTURE}|问题|选项|描述|说法)"
    r"|(?<!x)[上下]面哪[个些种]|[哪那这]里(?!面)|上下"
    r"|[晚早马网天地路街楼]上|[以向往朝加穿戴关合遇碰看爱赶跟追]上|(?:基本|实际|事实|总体|整体|大体|本质|原则)上"
    r"|上(?:[午次]|周(?!围))|(?<!x)上(?:[述升班课网学]|衣(?!服))"
    r"|[手嘴怀心眼夜屋家城村公英邻]里|(?<!x)里[程脊]"
    r"|[室屋户房国境体校院店市馆年日以]内|(?<!x)内(?:[容衣裤心科外疚涵]|存(?![放在有着]))"
    r"|(?<!x)旁[观听注证若]|[偏路街]旁"
)  # fmt: skip
"""Words that hold a word for a relation, and say none of two things: 里 of 哪里, or a place in the picture. An x is of
a name (``_blanked``), which a word for its relation may follow: 桌子上网球多吗 has no 上网."""

_ASKED: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "yes or no": (
            "{Is} {s} {place} in the picture?", "In this picture, {is} {s} {place}?",
            "Is it true that {s} {is} {place} in this picture?",
        ),
        "left or right": (
            "In the picture, {is} {s} to the left or to the right of {o}?",
            "{Is} {s} to the right or to the left of {o} in the picture?",
        ),
        "above or below": (
            "In the picture, {is} {s} above or below {o}?", "{Is} {s} below or above {o} in the picture?",
        ),
        "side": ("On which side of {o} {is} {s} in the picture?", "In the picture, on which side of {o} {is} {s}?"),
        "where": ("Where {is} {s} in the picture?", "In this picture, where {is} {s}?"),
        "what": ("What is {place} in the picture?", "In this picture, what is {place}?"),
        "find": (
            "Find {s} that {is} {place} in the picture.", "In this picture, draw a box around {s} that {is} {place}.",
        ),
    },
    "zh": {
        "yes or no": ("图中的{s}在{place}吗？", "请看图：{s}在{place}吗？", "图中的{s}在不在{place}？"),
        "left or right": ("图中的{s}在{o}的左边还是右边？", "从图中看，{s}在{o}的右边还是左边？"),
        "above or below": ("图中的{s}在{o}的上方还是下方？", "从图中看，{s}在{o}的下方还是上方？"),
        "side": ("图中的{s}在{o}的哪一边？", "从图中看，{s}在{o}的哪边？"),
        "where": ("图中的{s}在哪里？", "图中的{s}在什么地方？"),
        "what": ("图中的{place}有什么？", "请看图：{place}有什么？"),
        "find": ("请框出图中{place}的{s}。", "请在图中找到{place}的{s}，并把它框出来。"),
    },
}  # fmt: skip
_YES_NO: dict[Language, tuple[str, str]] = {"en": ("yes", "no"), "zh": ("在", "不在")}
_ANSWERS: dict[Language, dict[str, dict[str, str]]] = {
    "en": {
        "left or right": {"left of": "to the left", "right of": "to the right"},
        "above or below": {"above": "above", "below": "below"},
        "side": {"left of": "on the left", "right of": "on the right"},
    },
    "zh": {
        "left or right": {"left of": "左边", "right of": "右边"},
        "above or below": {"above": "上方", "below": "下方"},
        "side": {"left of": "左边", "right of": "右边"},
    },
}  # fmt: skip
_ELSEWHERE = {"on": "below", "inside": "next to"}
"""The other answer to "where": the foil of the one, and the right answer in other pictures."""
_UNDER: dict[str, str] = {"below": "{o}下面"}  # of a table, rather than somewhere lower in the picture


def ask(
    scene: Scene, names: Names, relations: Collection[str], language: Language | None, rng: Random
) -> Iterator[Question]:
    """Every question about relations that a picture answers unambiguously.

    relations   the trained ones; the others are only probed, in the group ``neighbour``
    language    None: chosen at random
    """
    for subject, thing in names.pairs(scene):
        if alike(names[subject.category], names[thing.category]):
            continue
        for relation in RELATIONS:
            if _may(relation, subject, thing, names):
                verdict = holds(relation, subject.box, thing.box)
                where = _whereabouts(relation, scene, subject, thing, names)
                if verdict is not None or where is not None:
                    pair = _Pair(scene, subject, thing, relation, names, either(language, rng))
                    for question in pair.questions(verdict, where, rng):
                        yield _placed(question, relation in relations)


def _placed(question: Question, trained: bool) -> Question:
    if trained:
        return question
    return Question(**{**vars(question), "group": NEIGHBOUR, "trained": False})


def _may(relation: str, subject: AnnotatedBox, thing: AnnotatedBox, names: Names) -> bool:
    """Whether one can be on or in the other at all. Boxes cannot distinguish that from "in front of"."""
    if relation == "on":
        return subject.category in names[thing.category].carries
    if relation == "inside":
        return subject.category in names[thing.category].holds
    return True


def _whereabouts(
    relation: str, scene: Scene, subject: AnnotatedBox, thing: AnnotatedBox, names: Names
) -> str | None:
    """What the answer to "where is the cat" says of a bench: on it, or below it where the cat is certainly on nothing
    else; None where neither is known."""
    if relation not in _ELSEWHERE:
        return None
    if holds(relation, subject.box, thing.box):
        return relation
    if not holds(_ELSEWHERE[relation], subject.box, thing.box):
        return None
    others = [one for one in scene.things if one.category != subject.category]
    crowds = any(
        subject.category in (*names[one].carries, *names[one].holds)
        for one in scene.crowds - {subject.category}
    )
    perhaps = (
        _may(kind, subject, one, names) and holds(kind, subject.box, one.box) is not False
        for one in others
        for kind in _ELSEWHERE
        if (kind, one) != (relation, thing)
    )
    return None if crowds or any(perhaps) else _ELSEWHERE[relation]


class _Pair:
    """A subject, a thing and a relation between them: the questions about it."""

    def __init__(
        self,
        scene: Scene,
        subject: AnnotatedBox,
        thing: AnnotatedBox,
        relation: str,
        names: Names,
        language: Language,
    ) -> None:
        self.scene, self.subject, self.thing, self.relation = scene, subject, thing, relation
        self.names, self.language = names, language
        self.name, self.other = (names.word(one.category, language) for one in (subject, thing))

    def questions(self, verdict: bool | None, where: str | None, rng: Random) -> Iterator[Question]:
        """``where``: the relation that an answer to "where" names; None: it is not asked."""
        if verdict is not None:
            yield self._yes_or_no(verdict, rng)
        if verdict:
            yield from self._sides(rng)
        if where is not None:
            yield self._asked_where(where, rng)
        if not verdict:
            return
        if self.relation in _ELSEWHERE:
            other = self._not_there()
            if other is not None and self.subject.category != "person":  # "what" does not refer to people
                right, wrong = self.name.a(self.language), other.a(self.language)
                what = self._question("what", right, wrong, self.subject.category, rng)
                yield replace(what, about=(self.thing.category,), only_balanced=True)
        yield self._question("find", self._markup(), None, self.relation, rng, probed=False)

    def _yes_or_no(self, verdict: bool, rng: Random) -> Question:
        yes, no = _YES_NO[self.language]
        answer, foil = (yes, no) if verdict else (no, yes)
        label, against = ("yes", "no") if verdict else ("no", "yes")
        return self._question("yes or no", answer, foil, label, rng, against=against)

    def _sides(self, rng: Random) -> Iterator[Question]:
        """Left or right, above or below."""
        if self.relation in OPPOSITE:
            forms = ("left or right", "side") if "of" in self.relation else ("above or below",)
            for form in forms:
                answers = _ANSWERS[self.language][form]
                right, wrong = answers[self.relation], answers[OPPOSITE[self.relation]]
                yield self._question(form, right, wrong, self.relation, rng, against=OPPOSITE[self.relation])

    def _asked_where(self, where: str, rng: Random) -> Question:
        """From the thing or from below it (beside it): asked of one of them alone, the question would be the answer."""
        other = _ELSEWHERE[self.relation] if where == self.relation else self.relation
        made = self._question("where", self._where(where), self._where(other), where, rng, against=other)
        assert made.relation is not None
        word = relation_word(where, self.language, made.answer, made.text, names=self._bare())
        return replace(made, only_balanced=True, relation={**made.relation, "phrase": word})

    def _question(
        self,
        form: str,
        answer: str,
        foil: str | None,
        label: str,
        rng: Random,
        *,
        against: str | None = None,
        probed: bool = True,
    ) -> Question:
        text = rng.choice(_ASKED[self.language][form]).format(**self._words(form))
        said = self._bare()
        return Question(
            group=GROUP,
            topic=self.relation,
            form=form,
            language=self.language,
            text=text,
            answer=answer,
            label=label,
            foil=foil,
            against=against,
            probed=probed,
            about=(self.subject.category, self.thing.category),
            regions={thing.category: (thing.box,) for _, thing in self._named()},
            phrases=phrases_in(f"{text}\n{answer}", said),
            relation={
                "phrase": relation_word(self.relation, self.language, answer, text, names=said),
                "subject": self.subject.category,
                "object": self.thing.category,
            },
        )

    def _bare(self) -> dict[str, str]:
        """Name → category."""
        return {one.bare(self.language): thing.category for one, thing in self._named()}

    def _named(self) -> tuple[tuple[Name, AnnotatedBox], tuple[Name, AnnotatedBox]]:
        return (self.name, self.subject), (self.other, self.thing)

    def _words(self, form: str) -> Mapping[str, str]:
        verb = "are" if self.name.plural else "is"
        return {
            "s": self.name.the(self.language),
            "o": self.other.the(self.language),
            "is": verb,
            "Is": verb.capitalize(),
            "place": self._place(self.relation, short=form == "find"),
        }

    def _place(self, relation: str, *, short: bool = False) -> str:
        """``short``: 狗左边 of 狗左边的猫, not 狗的左边的猫."""
        place = _PLACES[self.language][relation]
        place = place.replace("{o}的", "{o}") if short else place
        return place.format(o=self.other.the(self.language))

    def _where(self, relation: str) -> str:
        """An answer to "where": "on the bench", 在长椅上."""
        if self.language == "en":
            return self._place(relation)
        return "在" + _UNDER.get(relation, _PLACES["zh"][relation]).format(o=self.other.the("zh"))

    def _not_there(self) -> Name | None:
        """A thing in the picture that is certainly not on (in) the object; None if anything else may be there too, so
        that "what is on it" would have several answers. A crowd may be anywhere; and a person sits on a bench that is
        not known to carry people."""
        ends = (self.subject.category, self.thing.category)
        others = [one for one in self.scene.things if one.category not in ends]
        if self.scene.crowds or any(
            holds(self.relation, one.box, self.thing.box) is not False for one in others
        ):
            return None
        foils = (one.category for one in others if not self.names.alike(one.category, ends))
        foil = next(foils, None)
        return None if foil is None else self.names.word(foil, self.language)

    def _markup(self) -> str:
        return boxes_markup(self.name.the(self.language), (self.subject.box,), self.scene)


def relation_word(relation: str, language: Language, *texts: str, names: Collection[str] = ()) -> str:
    """The word for a relation in a question and its answer; what the relation is called, if there is none.

    texts   in the order in which it is looked for, and read: where it is first, in the first text that has it. Where
            that is no relation (图上 of 图上的猫在桌上吗), or several words may be it, there is none
    names   of the things, in which the word may stand too: 上 of 上衣

    ``("inside", "zh", "烤箱", "猫在哪里？")`` → ``"inside"``: 里 is a part of another word.
    """
    known = {_WORDS[language][relation], *_OTHER_WORDS[language].get(relation, ())}
    in_order = [composed(text) for text in texts]
    for length in sorted({len(word) for word in known}, reverse=True):
        words = [word for word in known if len(word) == length]
        for text in in_order:
            if not any(word in text for word in words):
                continue
            found = [*whole_words(*words).finditer(_blanked(text, names))]
            if len(found) == 1 and _is_read(found[0], text, in_order):
                return found[0][0]
            if found:
                break
    return relation


def _is_read(word: re.Match[str], text: str, in_order: Sequence[str]) -> bool:
    """Is this where a reader, who knows the word alone, finds it?"""
    first = next(one for one in in_order if occurrences(word[0], one))
    return first == text and occurrences(word[0], text)[0].start() == word.start()


def _blanked(text: str, names: Collection[str]) -> str:
    """The text, as long as before, without names and without words that hold a relation's word and say none."""
    # By a letter: a space would make "on" of "Devon" a word, where something is called "Dev".
    for name in sorted(map(composed, names), key=len, reverse=True):
        text = text.replace(name, "x" * len(name))
    return _NO_RELATION.sub(lambda found: "x" * len(found[0]), text)


def boxes_markup(phrase: str, boxes: Collection[tuple[float, float, float, float]], scene: Scene) -> str:
    """``<ref>the cat</ref><box>(250,0),(500,500)</box>``, in thousandths of the picture."""
    return f"<ref>{phrase}</ref>" + "".join(Markup.from_pixels(box, *scene.size).to_markup() for box in boxes)
