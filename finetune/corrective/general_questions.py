"""Questions whose answers a correction must not change: is there a dog in the picture?

Used only in probes of the group ``retention``, never trained: whether a category is present, yes and no equally often
(the random setting of POPE: Li et al., "Evaluating object hallucination in large vision-language models", arXiv
2305.10355). A category without annotation counts as absent, so absent categories are drawn from those in the annotation
file, except the ones being corrected and those whose name is alike to one that is there: where a teddy bear is
annotated, nothing says that there is no bear.
"""

import itertools
from collections.abc import Collection, Iterator
from random import Random

from finetune.corrective.category_names import Names
from finetune.corrective.scenes import Language, Question, Scene, either

GROUP = "retention"
ABSENT_ASKED = 2
"""Absent categories asked about per picture; the choice of probes balances yes and no."""

_ASKED: dict[Language, tuple[str, ...]] = {
    "en": ("{Is} there {a} in the picture?", "Can you see {a} in this picture?"),
    "zh": ("图中有{a}吗？", "这张图中有没有{a}？"),
}
_ANSWERS: dict[Language, tuple[str, str]] = {"en": ("yes", "no"), "zh": ("有", "没有")}


def ask(
    scene: Scene, names: Names, categories: Collection[str], language: Language | None, rng: Random
) -> Iterator[Question]:
    """Questions about the presence of every category in a picture, and of some absent ones.

    categories   those that questions may use
    """
    there = {thing.category for thing in scene.things}
    asked = set(categories)
    unseen = sorted(scene.not_there(asked))
    absent = (one for one in rng.sample(unseen, len(unseen)) if not names.alike(one, scene.perhaps))
    for category in [*sorted(there & set(categories)), *itertools.islice(absent, ABSENT_ASKED)]:
        chosen = either(language, rng)
        name, (yes, no) = names.word(category, chosen), _ANSWERS[chosen]
        verb = "Are" if name.plural else "Is"
        seen = category in there
        yield Question(
            group=GROUP,
            topic="presence",
            form="presence",
            language=chosen,
            text=rng.choice(_ASKED[chosen]).format(Is=verb, a=name.a(chosen)),
            answer=yes if seen else no,
            label="yes" if seen else "no",
            against="no" if seen else "yes",
            foil=no if seen else yes,
            about=(category,),
            trained=False,
            regions={category: scene.boxes_of(category)} if seen else {},
            phrases={name.bare(chosen): category} if seen else {},
        )
