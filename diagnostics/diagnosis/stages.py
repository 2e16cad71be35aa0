"""From the tests to the stage at which the right answer is lost: which test is asked first, and what is claimed."""

from __future__ import annotations

from typing import NamedTuple

from diagnostics.diagnosis.evidence import (
    ANSWERS,
    HIDING,
    LOOKS,
    PICTURE,
    SHIFTED,
    STATE,
    TOKENS,
    TOWER,
    Evidence,
)
from diagnostics.diagnosis.thresholds import Thresholds

RIGHT, TOO_FEW = "right", "too few probes"
PRIOR, SAID_OTHERWISE = "language prior", "known, said otherwise"
NOT_SEEN, NOT_PASSED_ON = "not seen", "seen, not passed on"
NOT_LOOKED_AT, NOT_USED = "passed on, not looked at", "looked at, not used"
STAGES = (RIGHT, PRIOR, NOT_SEEN, NOT_PASSED_ON, NOT_LOOKED_AT, NOT_USED, SAID_OTHERWISE, TOO_FEW)
UNDETERMINED = "not determined"


class Stage(NamedTuple):
    """name: one of ``STAGES``, None where the tests point to none; and the sentence that says why."""

    name: str | None
    reason: str


def stage_of(found: Evidence, thresholds: Thresholds) -> Stage:
    """The first stage that the tests point to.

    Too few pictures come first: neither "right" nor a fault can be said of five. Then whether the model knows the
    answer and says another, since a strong leaning towards one answer also keeps the margin still when the picture is
    replaced. Then the way from the pixels to the words, in its order. Whether the answer is asked of the picture comes
    behind the tower and the connector: what they lose cannot move the margin either, and is no habit of the words. A
    station that follows is asked only where those before it were measured and passed.
    """
    if found.accuracy is None:
        return Stage(TOO_FEW, f"No probe has a foil; {thresholds.probes} on as many pictures are needed.")
    if found.pictures < thresholds.probes:
        return Stage(
            TOO_FEW,
            f"{found.pictures} pictures with a foil; {thresholds.probes} are needed, "
            f"{thresholds.probes - found.pictures} more.",
        )
    tests = found.tests
    if tests[ANSWERS].holds:
        return Stage(RIGHT, tests[ANSWERS].reason)
    # A shift also separates what little leaks past a cue; where the errors depend on the cue, no constant made them.
    if tests[SHIFTED].holds and found.decides is None:
        return Stage(SAID_OTHERWISE, tests[SHIFTED].reason)
    return _on_the_way(found)


def _on_the_way(found: Evidence) -> Stage:
    tower, tokens, looks, state, hiding = (
        found.tests[name] for name in (TOWER, TOKENS, LOOKS, STATE, HIDING)
    )
    # What the tokens tell, the tower told: a probe of the tower that falls short is then too weak, not the tower.
    if tower.holds is False and not tokens.holds:
        return Stage(NOT_SEEN, tower.reason)
    if tower.holds and tokens.holds is False:
        return Stage(NOT_PASSED_ON, f"{tower.reason} {tokens.reason}")
    picture = found.tests[PICTURE]
    # With an interval: a few pictures that move the margin say that something of them is asked.
    if picture.holds is False and picture.ci95 is not None and picture.ci95[1] < picture.threshold:
        return Stage(PRIOR, picture.reason)
    if not tokens.holds:
        missing = tokens if tokens.holds is None else tower
        return Stage(None, f"Not determined, since a test is missing. {missing.reason}")
    if looks.holds is None:
        return Stage(None, f"Not determined, since a test is missing. {looks.reason}")
    if not looks.holds:
        # Towers and connectors spread a region over other places. Where the answer's own state tells it and no other
        # region decides, it has arrived by one of them; and where the interval does not say whether it is looked at,
        # what has arrived says it.
        is_open = looks.ci95 is not None and looks.ci95[0] < looks.threshold <= looks.ci95[1]
        if found.decides is None or is_open:
            if state.holds is None:
                return Stage(None, f"Not determined, since a test is missing. {looks.reason} {state.reason}")
            if state.holds:
                return Stage(NOT_USED, f"{looks.reason} {state.reason}")
        return Stage(NOT_LOOKED_AT, f"{looks.reason} {hiding.reason}")
    if found.decides is not None or hiding.holds is False:
        return Stage(NOT_USED, f"{looks.reason} {hiding.reason}")
    if state.holds:
        return Stage(NOT_USED, f"{looks.reason} {state.reason}")
    needs = " and needs it" if hiding.holds else ""
    return Stage(
        None, f"Not determined: it looks at the region{needs}, and yet it answers wrong. {state.reason}"
    )
