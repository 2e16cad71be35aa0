"""When training has corrected enough: ``stop_when="corrected"``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import ProbePair
from diagnostics.comparison.verdicts import (
    CORRECTED,
    NOT_MEDIATED,
    UNGUARDED,
    requirement,
    shortfalls,
    verdict_words,
)
from diagnostics.measures.statistics import alpha_of_look


def why_unjudged(key_layers: Collection[int], layers: Collection[int], *, connector: bool) -> str:
    """Why attention will not be judged, and what to do; "" where some key layer is left.

    layers     whose attention is trained on
    connector  so is that of the resampler, through which the model looks
    """
    if connector:
        return (
            "the attention of the resampler is trained on, through which every layer looks at the picture; to have it "
            "judged, train the language model alone (--vision frozen --connector frozen), from a model of which this "
            "was not trained on"
        )
    if {*key_layers} <= {*layers}:
        listed = ", ".join(map(str, sorted(key_layers)))
        return (
            f"it is trained on in every key layer ({listed}); to have it judged, name layers with --look_layers that "
            "leave some of --key_layers"
        )
    return ""


class Stopping:
    """Counts looks at checkpoints, and those in a row at which every group was corrected.

    patience   checkpoints in a row that end training
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.looks = 0
        self._corrected = 0

    def look(self, pairs: Sequence[ProbePair], *, earlier: int = 0) -> bool:
        """Should training end here? Says what was found.

        Every look is one more chance of a false positive, so the level is adjusted for the number of looks
        (``statistics.alpha_of_look``).

        earlier   checkpoints before this one that were looked at, by processes before this one too
        """
        self.looks = max(self.looks, earlier) + 1
        groups = comparison_of(pairs, level=1 - alpha_of_look(self.looks))["groups"]
        if not groups:
            return False
        # Stopping is no claim: what a run cannot measure while it trains does not keep it running.
        short = shortfalls(requirement(CORRECTED, groups), groups, as_good=(NOT_MEDIATED, UNGUARDED))
        self._corrected = 0 if short else self._corrected + 1
        print(f"look {self.looks}: {verdict_words(groups)}", flush=True)
        if self._corrected < self.patience:
            return False
        print(f"corrected at {self._corrected} checkpoints in a row: training ends here", flush=True)
        return True
