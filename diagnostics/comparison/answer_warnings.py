"""Warns of foils that the model before does not actually answer, and of right answers that it says already: both weaken
a group's margins."""

from __future__ import annotations

from collections.abc import Sequence

from diagnostics.comparison.pairs import ProbePair
from diagnostics.measures.answers import says

MOST_NAMED = 3
LEAST_SAID = 0.5


def answer_warnings(pairs: Sequence[ProbePair]) -> list[str]:
    """One line if the model before answers the foil in less than half of its wrong probes, but something else, or the
    right answer.

    The margin compares the right answer with one wrong one. If the model's actual mistake is another answer, the margin
    may rise above 0 while the answer stays wrong; if it makes none, the margin may rise while the answer stays right.
    """
    wrong = [
        pair
        for pair in pairs
        if (pair.before.scores.margin_nats or 0.0) < 0 and pair.before.scores.generated and pair.probe.foil
    ]
    foil, right, other = list[ProbePair](), list[ProbePair](), list[ProbePair]()
    for pair in wrong:
        said, probe = pair.before.scores.generated, pair.probe
        if says(said, (str(probe.foil),), probe.answer):
            foil.append(pair)
        else:
            (right if says(said, probe.spellings, probe.foil) else other).append(pair)
    if not wrong or len(foil) >= LEAST_SAID * len(wrong):
        return []
    if len(right) > len(other):
        return [
            f"In {len(right)} of the {len(wrong)} probes that the model before gets wrong by margin, it generates the "
            f"right answer ({_named(right)}); put first the spelling that it uses."
        ]
    return [
        f"In {len(other)} of the {len(wrong)} probes that the model before gets wrong, it does not answer the foil "
        f"({_named(other)}); use its actual answer as the foil."
    ]


def _named(pairs: Sequence[ProbePair]) -> str:
    """The first answers, in no language; how many there are stands before them."""
    said = ", ".join(f"{p.probe.id}: {p.before.scores.generated[:40]!r}" for p in pairs[:MOST_NAMED])
    return f"{said}, …" if len(pairs) > MOST_NAMED else said
