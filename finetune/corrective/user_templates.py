"""User templates: a JSON file of questions about things in pictures, single or in a relation.

    {"version": 1, "templates": [{
       "group": "cat-place",
       "subject": ["cat", "dog"], "relation": "on", "object": ["bench", "couch"],
       "question": {"en": ["What is {the subject} lying on?"], "zh": ["{subject}趴在什么上面？"]},
       "answer": {"en": "{a object}", "zh": "{object}"},
       "foil": {"en": "the floor", "zh": "地板"},
       "look_at": "object"}]}

subject, object    categories, or "*" for any; the picture must have exactly one of each. A question is asked only
                   where nothing else in the picture that fits, or may fit, would give it another answer
relation, object   optional, only together: without them the question is about the subject
question           one wording or several per language; answer and foil in the same languages
look_at            subject or object: where the probe's right answer should look (default: subject)
{subject} {the subject} {a subject}   its name: cat, the cat, a cat (in Chinese all three are 猫); the same for object
{box subject}      <ref>the cat</ref><box>...</box>; a question with a box in its answer is trained and never probed
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from finetune.corrective.box_relations import RELATIONS, holds
from finetune.corrective.category_names import Names, listed, load_json, unknown_word
from finetune.corrective.relation_questions import boxes_markup, relation_word
from finetune.corrective.scenes import LANGUAGES, AnnotatedBox, Language, Question, Scene, phrases_in

VERSION = 1
ENDS = ("subject", "object")
_KEYS = ("group", "subject", "relation", "object", "question", "answer", "foil", "look_at")
_NEEDED = ("group", "subject", "question", "answer")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FORMS = ("", "the ", "a ", "box ")

Ends = Mapping[str, AnnotatedBox]
"""subject, and object where there is a relation."""


@dataclass(frozen=True)
class Template:
    """One template. ``subject`` and ``object`` are None for any category.

    left_out   digest of a picture and question of each that was not asked, as it has several answers there
    """

    name: str
    group: str
    subject: frozenset[str] | None
    relation: str | None
    object: frozenset[str] | None
    question: Mapping[str, tuple[str, ...]]
    answer: Mapping[str, str]
    foil: Mapping[str, str] | None
    look_at: str
    left_out: set[tuple[str, str]] = field(default_factory=set, compare=False)

    def ask(self, scene: Scene, names: Names, language: Language | None, rng: Random) -> Iterator[Question]:
        """The template's question about each matching thing or pair in a picture."""
        languages = [one for one in LANGUAGES if one in self.question and language in (None, one)]
        fitting = list(self._fitting(scene, names))
        answers = self._answers(scene, names, languages) if fitting else {}
        for ends in fitting:
            texts = [text for text, _ in self._filled(scene, ends, names, languages)]
            if any(len(answers[text]) > 1 for text in texts):
                self.left_out.add((scene.digest, texts[0]))
            else:
                yield _question(self, scene, ends, names, rng.choice(languages), rng)

    def said(self) -> str | None:
        """How many questions were left out, and why; None if none was."""
        if not self.left_out:
            return None
        pictures = len({digest for digest, _ in self.left_out})
        return (
            f"{self.name}: left out {len(self.left_out):,} questions of {pictures:,} pictures that have, or may have, "
            f"several right answers there, such as {min(text for _, text in self.left_out)!r}; expected one: name "
            "both things in the question, or fewer categories in the template"
        )

    def _fitting(self, scene: Scene, names: Names) -> Iterator[Ends]:
        if self.relation is None:
            yield from ({"subject": one} for one in names.single(scene) if _fits(one, self.subject))
            return
        for one, other in names.pairs(scene):
            fits = _fits(one, self.subject) and _fits(other, self.object)
            if fits and holds(self.relation, one.box, other.box):
                yield {"subject": one, "object": other}

    def _perhaps(self, scene: Scene) -> Iterator[Ends]:
        """All that a question might be about: also things that there are several of, that may be in the relation, or
        that are a crowd, whose place is not known."""
        crowds = {AnnotatedBox(one, (0, 0, *scene.size)) for one in scene.crowds}
        things = [*scene.things, *sorted(crowds)]
        if self.relation is None:
            yield from ({"subject": one} for one in things if _fits(one, self.subject))
            return
        for one, other in itertools.permutations(things, 2):
            if _fits(one, self.subject) and _fits(other, self.object):
                unknown = not crowds.isdisjoint((one, other))
                if unknown or holds(self.relation, one.box, other.box) is not False:
                    yield {"subject": one, "object": other}

    def _answers(self, scene: Scene, names: Names, languages: Sequence[Language]) -> Mapping[str, set[str]]:
        """Every answer that may be right, by question."""
        found: dict[str, set[str]] = defaultdict(set)
        unseen = Names(names.given)  # a name that no question uses is not missing
        for ends in self._perhaps(scene):
            for text, answer in self._filled(scene, ends, unseen, languages):
                found[text].add(answer)
        return found

    def _filled(
        self, scene: Scene, ends: Ends, names: Names, languages: Sequence[Language]
    ) -> Iterator[tuple[str, str]]:
        """Each wording in each language, and its answer."""
        for language in languages:
            filled = _Words(scene, ends, names, language).filled
            for wording in self.question[language]:
                yield filled(wording), filled(self.answer[language])


def _fits(thing: AnnotatedBox, categories: frozenset[str] | None) -> bool:
    return categories is None or thing.category in categories


def _question(
    template: Template,
    scene: Scene,
    ends: Ends,
    names: Names,
    language: Language,
    rng: Random,
) -> Question:
    filled = _Words(scene, ends, names, language).filled
    wording = rng.choice(template.question[language])
    text, answer = filled(wording), filled(template.answer[language])
    named = {placeholder.rpartition(" ")[2] for placeholder in _PLACEHOLDER.findall(wording)}
    look_at = ends[template.look_at].category
    bare = {names[one.category].bare(language): one.category for one in ends.values()}
    said = {answer: look_at} | {phrase: one for phrase, one in bare.items() if phrase != answer}
    first, second = ends["subject"].category, ends.get("object", ends["subject"]).category
    return Question(
        group=template.group,
        topic=template.name,
        form=template.name,
        language=language,
        text=text,
        answer=answer,
        label=answer,
        foil=None if template.foil is None else filled(template.foil[language]),
        about=tuple(ends[end].category for end in ENDS if end in named),
        own=True,
        probed="{box " not in template.answer[language],
        regions={one.category: (one.box,) for one in ends.values()},
        phrases=phrases_in(f"{text}\n{answer}", said),
        relation=(
            None
            if template.relation is None
            else {
                "phrase": relation_word(template.relation, language, answer, text, names=bare),
                "subject": first,
                "object": second,
            }
        ),
    )


class _Words(Mapping[str, str]):
    """Values of placeholders, looked up lazily so that only names in use can be reported missing."""

    def __init__(self, scene: Scene, ends: Ends, names: Names, language: Language) -> None:
        self.scene, self.ends, self.names, self.language = scene, ends, names, language

    def __getitem__(self, placeholder: str) -> str:
        """``"the subject"`` → ``"the cat"``."""
        form, _, end = placeholder.rpartition(" ")
        thing = self.ends[end]
        name = self.names.word(thing.category, self.language)
        if form == "box":
            return boxes_markup(name.the(self.language), (thing.box,), self.scene)
        return {"": name.bare, "the": name.the, "a": name.a}[form](self.language)

    def filled(self, text: str) -> str:
        return _PLACEHOLDER.sub(lambda match: self[match[1]], text)

    def __iter__(self) -> Iterator[str]:
        return (f"{form}{end}" for end in self.ends for form in _FORMS)

    def __len__(self) -> int:
        return len(self.ends) * len(_FORMS)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_templates(path: Path, categories: Collection[str], language: Language | None) -> list[Template]:
    """Read a template file.

    categories   of the annotations
    language     of the questions; None: either

    Raises ValueError with every fault: template and field, found, expected.
    """
    content = load_json(path)
    entries = content.get("templates") if isinstance(content, dict) else None
    if not isinstance(content, dict) or content.get("version") != VERSION or not isinstance(entries, list):
        raise ValueError(f'{path}: expected {{"version": {VERSION}, "templates": [...]}}')
    if not entries:
        raise ValueError(f"{path}: templates: found none, expected at least one")
    faults = [
        f"templates[{index}]{fault}"
        for index, entry in enumerate(entries)
        for fault in _faults(entry, categories, language)
    ]
    if faults:
        raise ValueError(listed(path, faults))
    return [_template(f"{path.stem}-{index}", entry) for index, entry in enumerate(entries)]


def _template(name: str, entry: Mapping[str, Any]) -> Template:
    def categories(key: str) -> frozenset[str] | None:
        value = entry.get(key, "*")
        return None if value == "*" else frozenset(value)

    wordings = {
        one: (text,) if isinstance(text, str) else tuple(text) for one, text in entry["question"].items()
    }
    return Template(
        name,
        entry["group"],
        categories("subject"),
        entry.get("relation"),
        categories("object"),
        wordings,
        entry["answer"],
        entry.get("foil"),
        entry.get("look_at", "subject"),
    )


def _faults(entry: Any, categories: Collection[str], language: Language | None) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f": expected an object with {', '.join(_NEEDED)}, found {entry!r:.80}"
        return
    for key in sorted(set(entry) - set(_KEYS)):
        yield f".{key}: unknown, expected {', '.join(_KEYS)}"
    for key in _NEEDED:
        if not entry.get(key):
            yield f".{key}: missing"
    if "group" in entry and (not isinstance(entry["group"], str) or not entry["group"].strip()):
        yield f".group: found {entry['group']!r}, expected text"
    for end in ENDS:
        yield from _category_faults(end, entry.get(end, "*"), categories)
    if ("relation" in entry) != ("object" in entry):
        yield ": relation and object belong together; give both, or neither for a question about the subject only"
    if "relation" in entry and entry["relation"] not in RELATIONS:
        yield f".relation: found {entry['relation']!r}, expected one of {', '.join(RELATIONS)}"
    ends = ENDS if "object" in entry else ENDS[:1]
    if entry.get("look_at", "subject") not in ends:
        yield f".look_at: found {entry['look_at']!r}, expected {' or '.join(ends)}"
    if entry.get("question") and entry.get("answer"):
        yield from _text_faults(entry, ends, language)


def _category_faults(end: str, value: Any, categories: Collection[str]) -> Iterator[str]:
    if value == "*":
        return
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        yield f'.{end}: found {value!r:.80}, expected a list of categories, or "*"'
        return
    for one in value:
        if one not in categories:
            yield f".{end}: {unknown_word(one, categories)}"


def _text_faults(entry: Mapping[str, Any], ends: Collection[str], language: Language | None) -> Iterator[str]:
    question = entry["question"]
    if not isinstance(question, dict) or not set(question) <= set(LANGUAGES):
        yield f'.question: found {question!r:.80}, expected {{"en": ..., "zh": ...}}'
        return
    if language is not None and language not in question:
        yield f".question: found none in {language!r}, expected a wording in it for --language {language}"
    allowed = {f"{form}{end}" for end in ends for form in _FORMS}
    for key in ("question", "answer", "foil"):
        texts = entry.get(key)
        if texts is None:
            continue
        if not isinstance(texts, dict) or set(texts) != set(question):
            yield f".{key}: found {texts!r:.80}, expected text in the languages of question: {', '.join(question)}"
            continue
        for one, text in texts.items():
            yield from _wording_faults(f".{key}.{one}", text, allowed, several=key == "question")


def _wording_faults(at: str, text: Any, allowed: Collection[str], *, several: bool) -> Iterator[str]:
    wordings = text if several and isinstance(text, list) else [text]
    if not wordings or not all(isinstance(one, str) and one.strip() for one in wordings):
        yield f"{at}: found {text!r:.80}, expected text" + (" or a list of it" if several else "")
        return
    for wording in wordings:
        for placeholder in _PLACEHOLDER.findall(wording):
            if placeholder not in allowed:
                shown = ", ".join(f"{{{one}}}" for one in sorted(allowed))
                yield f"{at}: found {{{placeholder}}} in {wording!r}, expected one of {shown}"
