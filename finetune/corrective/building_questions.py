"""Questions about buildings that their parts identify: is this the Oriental Pearl Tower or the Canton Tower?

A building is a category with a ``foil`` in ``--names``; its evidence is the boxes of other categories on it. The
questions: the tower's name (group ``sphere-building``; ``neighbour`` for buildings without evidence of their own, which
a crude correction would rename), whether it has spheres, how many, and where (group ``building-parts``).
"""

from collections.abc import Iterator
from random import Random

from finetune.corrective.category_names import Name, Names
from finetune.corrective.relation_questions import boxes_markup
from finetune.corrective.scenes import Box, Language, Question, Scene, either, phrases_in

GROUP, NEIGHBOUR, PARTS = "sphere-building", "neighbour", "building-parts"

_NAMED: dict[Language, tuple[str, ...]] = {
    "en": ("What is this {kind}?", "Which {kind} is this?", "What is the name of the {kind} in the picture?"),
    "zh": ("这座{kind}是什么？", "图中的{kind}叫什么名字？", "这是哪座{kind}？"),
}
_PARTS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "has": ("Are there any {parts} on this {kind}?", "Does this {kind} have {parts}?"),
        "count": (
            "How many {parts} can be seen on this {kind}?",
            "In the picture, how many {parts} does this {kind} have?",
        ),
        "find": (
            "Where are the {parts} on this {kind}?",
            "Draw a box around each of the {parts} on this {kind}.",
        ),
        "find one": ("Where is the {part} on this {kind}?", "Draw a box around the {part} on this {kind}."),
    },
    "zh": {
        "has": ("这座{kind}有{part}吗？", "图中的{kind}有没有{part}？"),
        "count": ("图中这座{kind}能看到几个{part}？", "图中的{kind}有几个{part}？"),
        "find": ("请框出这座{kind}上的所有{part}。", "这座{kind}的{part}在哪里？请一一框出。"),
        "find one": ("请框出这座{kind}上的{part}。", "这座{kind}的{part}在哪里？请框出来。"),
    },
}
_HAS: dict[Language, tuple[str, str]] = {"en": ("yes", "no"), "zh": ("有", "没有")}
_NUMBERS: dict[Language, tuple[str, ...]] = {
    "en": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    "zh": ("一个", "两个", "三个", "四个", "五个", "六个", "七个", "八个", "九个", "十个", "十一个"),
}
MOST_COUNTED = 10


def ask(scene: Scene, names: Names, language: Language | None, rng: Random) -> Iterator[Question]:
    """Every question about the building in a picture; none if there are several, since "this tower" would be ambiguous.

    language   None: chosen at random for each question
    """
    found = [thing for thing in scene.things if thing.category in names.buildings]
    if len(found) != 1 or scene.crowds & names.buildings.keys():
        return
    building = _Building(scene, found[0].category, found[0].box, names)
    for question in building.forms:
        chosen = either(language, rng)
        yield from question(chosen, rng)


class _Building:
    """One building, its parts that are evidence, and the questions about it."""

    def __init__(self, scene: Scene, category: str, box: Box, names: Names) -> None:
        self.scene, self.category, self.box, self.names = scene, category, box, names
        self.name = names[category]
        self.parts = {
            part: found
            for part in self.name.evidence
            if (found := tuple(one for one in scene.boxes_of(part) if _on(one, box)))
            and part not in scene.crowds
        }
        self.forms = (self._named, self._has, self._count, self._find)

    def _named(self, language: Language, rng: Random) -> Iterator[Question]:
        name = self.names.word(self.category, language)
        assert name.foil is not None
        answer, regions = name.zh if language == "zh" else name.en, {**self.parts, self.category: (self.box,)}
        yield Question(
            group=name.group or (GROUP if name.evidence else NEIGHBOUR),
            topic=self.category,
            form="name",
            language=language,
            text=rng.choice(_NAMED[language]).format(kind=name.kind[language]),
            answer=answer,
            label=self.category,
            foil=name.foil[language],
            probed=bool(self.parts) or not name.evidence,  # a probe needs the region it should look at
            regions=regions,
            phrases={answer: next(iter(regions))},
        )

    def _has(self, language: Language, rng: Random) -> Iterator[Question]:
        """Yes for its own evidence; no for other buildings' evidence that is known not to be in the picture, and whose
        name is alike to nothing that is, or that the building is known for."""
        others = {part for name in self.names.buildings.values() for part in name.evidence}
        known = self.scene.perhaps | set(self.name.evidence)
        absent = {part for part in self.scene.not_there(others) - known if not self.names.alike(part, known)}
        for part in sorted(self.parts.keys() | absent):
            yes, no = _HAS[language]
            right, wrong = (yes, no) if part in self.parts else (no, yes)
            label, against = ("yes", "no") if part in self.parts else ("no", "yes")
            yield self._about(part, "has", language, rng, right, wrong, label, against=against)

    def _count(self, language: Language, rng: Random) -> Iterator[Question]:
        for part, boxes in self._all_of_their_name():
            if len(boxes) <= MOST_COUNTED:
                numbers, count = _NUMBERS[language], len(boxes)
                wrong = count + 1 if count == 1 else count + rng.choice((-1, 1))
                yield self._about(
                    part, "count", language, rng, numbers[count - 1], numbers[wrong - 1], str(count)
                )

    def _find(self, language: Language, rng: Random) -> Iterator[Question]:
        for part, boxes in self._all_of_their_name():
            form, name = "find" if len(boxes) > 1 else "find one", self.names.word(part, language)
            phrase = name.zh if language == "zh" else name.many if len(boxes) > 1 else name.bare("en")
            answer = boxes_markup(phrase, boxes, self.scene)
            yield self._about(part, form, language, rng, answer, None, part, probed=False)

    def _all_of_their_name(self) -> Iterator[tuple[str, tuple[Box, ...]]]:
        return ((part, found) for part, found in self.parts.items() if self.names.unshared(part, self.scene))

    def _about(
        self,
        part: str,
        form: str,
        language: Language,
        rng: Random,
        answer: str,
        foil: str | None,
        label: str,
        *,
        against: str | None = None,
        probed: bool = True,
    ) -> Question:
        name, kind = self.names.word(part, language), self.name.kind[language]
        text = rng.choice(_PARTS[language][form]).format(part=name.bare(language), parts=name.many, kind=kind)
        said = (name.zh,) if language == "zh" else (name.many, name.bare("en"))
        phrases = dict.fromkeys(said, part) if part in self.parts else {}
        found = phrases_in(f"{text}\n{answer}", phrases)
        return Question(
            group=PARTS,
            topic=part,
            form=form,
            language=language,
            text=text,
            answer=answer,
            label=label,
            foil=foil,
            against=against,
            about=(kind,),
            probed=probed,
            regions={**self.parts, self.category: (self.box,)},
            phrases=dict(list(found.items())[:1]),
        )


def evidence_names(names: Names) -> dict[str, Name]:
    """Categories that are evidence of some building."""
    return {part: names[part] for one in names.buildings.values() for part in one.evidence}


def _on(part: Box, building: Box) -> bool:
    """Whether the part's centre lies on the building."""
    x, y = (part[0] + part[2]) / 2, (part[1] + part[3]) / 2
    return building[0] <= x <= building[2] and building[1] <= y <= building[3]
