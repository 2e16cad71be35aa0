"""Warns of foils that the model before does not actually answer, which weakens a group's margins."""

from __future__ import annotations

from collections.abc import Sequence

from diagnostics.comparison.pairs import ProbePair
from diagnostics.measures.answers import says

MOST_NAMED = 3
LEAST_SAID = 0.5


def answer_warnings(pairs: Sequence[ProbePair]) -> list[str]:
    """One line if the model before answers something other than the foil in at least half of its wrong probes.

    The margin compares the right answer with one wrong one. If the model's actual mistake is another answer, the margin
    may rise above 0 while the answer stays wrong.
    """
    wrong = [
        pair
        for pair in pairs
        if (pair.before.scores.margin_nats or 0.0) < 0 and pair.before.scores.generated and pair.probe.foil
    ]
    unsaid = [
        pair
        for pair in wrong
        if not says(pair.before.scores.generated, (str(pair.probe.foil),), pair.probe.answer)
    ]
    if not wrong or len(wrong) - len(unsaid) >= LEAST_SAID * len(wrong):
        return []
    said = ", ".join(f"{p.probe.id}: {p.before.scores.generated[:40]!r}" for p in unsaid[:MOST_NAMED])
    more = f" and {len(unsaid) - MOST_NAMED} more" if len(unsaid) > MOST_NAMED else ""
    return [
        f"In {len(unsaid)} of the {len(wrong)} probes that the model before gets wrong, it does not answer the foil "
        f"({said}{more}); use its actual answer as the foil."
    ]
