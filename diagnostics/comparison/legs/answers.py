"""The leg "answers": more right answers than before, enough of them, by margin and by generated answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from diagnostics.comparison.legs.leg import Leg, count, not_measured, percent, percent_interval
from diagnostics.comparison.pairs import SIDES, ProbePair, images_of
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.measures.answers import says
from diagnostics.measures.statistics import bootstrap_mean, clopper_pearson, mcnemar_p
from diagnostics.records.probes import KEPT_SHARE
from diagnostics.records.record import AttentionRecord

Json = dict[str, Any]
MORE, SAME, FEWER = "more", "as many", "fewer"


class Said(NamedTuple):
    """Shares of generated answers that are right, of probes or with each picture counted once."""

    before: float
    after: float
    by_picture: bool = False

    @property
    def change(self) -> float:
        return self.after - self.before

    @property
    def words(self) -> str:
        """ "75 % of the generated answers are right, 100 % before" """
        once = " with each picture counted once" if self.by_picture else ""
        return (
            f"{percent(self.after)} of the generated answers are right{once}, {percent(self.before)} before"
        )


class Answers(NamedTuple):
    """A group's answers, right by margin: log p(answer) above log p(foil), each through the end of the turn.

    probes, images   that have a foil, and their distinct pictures
    before, after    shares of right answers
    pictures_before, pictures_after   the same with each picture counted once, by the share of its right answers: equal
                     to them where no probes share a picture
    before_ci95, after_ci95   Clopper–Pearson intervals of these, over pictures
    gained, lost     pictures with more, and with fewer, right answers after
    p                exact McNemar test over those
    difference_ci95  interval of after − before: Clopper–Pearson of gained among gained + lost, or the bootstrap's where
                     probes share pictures
    enough           whether the share right after, of probes and of pictures, reaches the threshold
    change           ``MORE``, ``FEWER``, or ``SAME`` if chance explains the change. More are claimed where the test
                     says so and the shares of probes and of pictures rose; fewer where both fell and the test or the
                     interval says so, or where margins show no change and what is generated fell by the same test
    said             shares of generated answers that are right; None if none were generated
    disagrees        whether generated answers and margins, of probes or of pictures, differ by more than the threshold:
                     after, or in how many more are right than before, where the generated ones rose less than half as
                     much
    speech_lost      the shares of generated answers that are right, where these fell by more than that threshold, of
                     probes or of pictures, whichever fell more
    """

    probes: int
    images: int
    before: float
    after: float
    pictures_before: float
    pictures_after: float
    before_ci95: tuple[float, float]
    after_ci95: tuple[float, float]
    gained: int
    lost: int
    p: float
    difference_ci95: tuple[float, float]
    enough: bool
    change: str
    said: tuple[float, float] | None
    disagrees: bool
    speech_lost: Said | None
    leg: Leg

    def keeps(self, group: str) -> bool:
        """Did a group that must stay right stay so, by its share of the accuracy before, of probes and of pictures, and
        by what it says?"""
        if not keeps(group, self.pictures_before, self.pictures_after):
            return False
        return keeps(group, self.before, self.after) and not self.speech_lost

    def speech_json(self) -> Json | None:
        """ "speech_lost" in comparison.json."""
        return None if self.speech_lost is None else self.speech_lost._asdict()

    def json(self) -> Json:
        """ "accuracy" in comparison.json."""
        return {
            "probes": self.probes,
            "images": self.images,
            "before": self.before,
            "after": self.after,
            "pictures_right": {"before": self.pictures_before, "after": self.pictures_after},
            "difference": self.after - self.before,
            "ci95": list(self.difference_ci95),
            "before_ci95": list(self.before_ci95),
            "after_ci95": list(self.after_ci95),
            "gained": self.gained,
            "lost": self.lost,
            "p_mcnemar": self.p,
        }


def answers_of(pairs: Sequence[ProbePair], thresholds: Thresholds, level: float) -> Answers | None:
    """A group's answers; None if no probe has a foil."""
    scored = [pair for pair in pairs if pair.after.scores.margin_nats is not None]
    if not scored:
        return None
    images = images_of(scored)
    right = np.array([[is_right(getattr(pair, side)) for pair in scored] for side in SIDES], float)
    by_image = [by_picture(one, images) for one in right]
    gained, lost, p = test = _test(*by_image)
    shares = [float(one.mean()) for one in right]
    of_images = [float(one.mean()) for one in by_image]
    intervals = [interval_over_pictures(one, level) for one in by_image]
    difference = _difference_interval(right[1] - right[0], images, level)
    by_margin = _change(shares, of_images, test, difference, level)
    most = thresholds.disagreement + 1e-9
    spoken = _spoken(scored)
    said = _said(spoken, images)
    speech_lost = max((one for one in said if -one.change > most), key=lambda one: -one.change, default=None)
    change = by_margin
    if by_margin == SAME and speech_lost is not None and _fell(spoken, images, level):
        change = FEWER
    apart = next(
        (one for one, right in zip(said, (shares, of_images), strict=False) if _is_apart(right, one, most)),
        None,
    )
    judged = min(shares[1], of_images[1])
    enough = judged >= thresholds.right - 1e-9
    holds = change == MORE and enough and apart is None
    return Answers(
        len(scored),
        len(by_image[0]),
        shares[0],
        shares[1],
        of_images[0],
        of_images[1],
        intervals[0],
        intervals[1],
        gained,
        lost,
        p,
        difference,
        enough,
        change,
        said[0][:2] if said else None,
        apart is not None,
        speech_lost,
        Leg(
            holds,
            len(scored),
            judged,
            (min(intervals[1][0], judged), max(intervals[1][1], judged)),
            thresholds.right,
            _reason(
                shares,
                of_images[1] if len(by_image[0]) < len(scored) else None,
                (intervals[1][0], max(intervals[1][1], of_images[1])),
                test,
                apart,
                thresholds,
                level,
                in_all=_unlike_the_test(test, by_margin, level),
                otherwise=_said_otherwise(said, most) if by_margin == SAME else "",
            ),
        ),
    )


def is_right(record: AttentionRecord) -> bool:
    """Whether the answer is likelier than the foil."""
    return (record.scores.margin_nats or 0.0) > 0


def _test(before: np.ndarray, after: np.ndarray) -> tuple[int, int, float]:
    """Pictures with more and with fewer right answers after, and the exact McNemar test over them; of each picture's
    share before and after."""
    gained, lost = int((after > before).sum()), int((after < before).sum())
    return gained, lost, mcnemar_p(gained, lost)


def _by_test(test: tuple[int, int, float], level: float) -> str:
    """``MORE``, ``FEWER`` or ``SAME``, as the test alone says."""
    gained, lost, p = test
    return SAME if p >= 1 - level or gained == lost else MORE if gained > lost else FEWER


def _change(
    shares: Sequence[float],
    of_images: Sequence[float],
    test: tuple[int, int, float],
    difference: tuple[float, float],
    level: float,
) -> str:
    """``MORE``, ``FEWER`` or ``SAME`` by margin.

    The test counts a picture that gained one of ten right answers as one that lost all ten: where few pictures turn the
    mean against it, it is no evidence of more. A fall of the mean beyond chance is one, whatever the test counts.
    """
    told = _by_test(test, level)
    if told == MORE and shares[1] > shares[0] and of_images[1] > of_images[0]:
        return MORE
    fell = shares[1] < shares[0] and of_images[1] < of_images[0]
    return FEWER if fell and (told == FEWER or difference[1] < 0) else SAME


def _unlike_the_test(test: tuple[int, int, float], change: str, level: float) -> str:
    """A clause where the change is not what the test alone would say; else ""."""
    told = _by_test(test, level)
    if change == told:
        return ""
    if change == FEWER:
        return "; in all, fewer answers are right, beyond chance"
    return f"; in all, right answers did not become {told}"


def _spoken(pairs: Sequence[ProbePair]) -> list[Float[np.ndarray, " probes"]]:
    """Which generated answers are right before and after; empty if none were generated.

    If any answer was generated, an empty reply counts as wrong: the model ended its turn at once.
    """
    if not any(getattr(pair, side).scores.generated for pair in pairs for side in SIDES):
        return []
    return [
        np.array(
            [says(getattr(p, side).scores.generated, p.probe.spellings, p.probe.foil) for p in pairs], float
        )
        for side in SIDES
    ]


def _said(spoken: Sequence[Float[np.ndarray, " probes"]], images: Sequence[str]) -> tuple[Said, ...]:
    """Shares of generated answers that are right, of probes and of pictures; empty if none were generated."""
    if not spoken:
        return ()
    before, after = (float(by_picture(one, images).mean()) for one in spoken)
    return Said(float(spoken[0].mean()), float(spoken[1].mean())), Said(before, after, by_picture=True)


def _fell(spoken: Sequence[Float[np.ndarray, " probes"]], images: Sequence[str], level: float) -> bool:
    """Did generated answers become wrong on more pictures than right, beyond chance?"""
    return _by_test(_test(*(by_picture(one, images) for one in spoken)), level) == FEWER


def _said_otherwise(said: Sequence[Said], most: float) -> str:
    """A clause on generated answers that changed by more than this, of probes or of pictures; else ""."""
    moved = [one for one in said if abs(one.change) > most]
    return f"; {max(moved, key=lambda one: abs(one.change)).words}" if moved else ""


def _is_apart(margins: Sequence[float], said: Said, most: float) -> bool:
    """Do shares that are right by margin and by what was generated, (before, after), tell different stories?"""
    rose, spoke = margins[1] - margins[0], said.after - said.before
    said_already = spoke < rose / 2 and rose - spoke > most
    return said_already or abs(said.after - margins[1]) > most


def no_answers(thresholds: Thresholds) -> Leg:
    """The leg of a group without foils."""
    return not_measured(thresholds.right, "No probe of this group has a foil to compare with its answer.")


def by_picture(right: Shaped[np.ndarray, " probes"], images: Sequence[str]) -> Float[np.ndarray, " pictures"]:
    """Each picture's share of right answers, pictures in the order in which they appear."""
    return np.array([right[[one == i for one in images]].mean() for i in dict.fromkeys(images)])


def interval_over_pictures(by_image: Float[np.ndarray, " pictures"], level: float) -> tuple[float, float]:
    """Interval over pictures, not probes; a picture counts by its share of right answers, sum rounded down."""
    return clopper_pearson(int(by_image.sum() + 1e-9), len(by_image), level=level)


def keeps(group: str, before: float, after: float) -> bool:
    """Whether the accuracy after is at least the share of that before which this kind of group must keep."""
    return after >= KEPT_SHARE[group] * before - 1e-9


def _difference_interval(change: np.ndarray, images: Sequence[str], level: float) -> tuple[float, float]:
    """The interval of a change of the share of right answers; ``change`` of each probe is −1, 0 or 1."""
    if len(set(images)) == len(images):
        return difference_interval(int((change > 0).sum()), int((change < 0).sum()), len(images), level)
    return bootstrap_mean(change, images, level=level)[1:]


def difference_interval(gained: int, lost: int, images: int, level: float) -> tuple[float, float]:
    """The interval of a change of the share of right answers: Clopper–Pearson of gained among gained + lost."""
    moved = gained + lost
    if not moved:
        high = clopper_pearson(0, images, level=level)[1]
        return -high, high
    low, high = clopper_pearson(gained, moved, level=level)
    return (2 * low - 1) * moved / images, (2 * high - 1) * moved / images


def _reason(
    shares: Sequence[float],
    of_images: float | None,
    after: tuple[float, float],
    changed: tuple[int, int, float],
    apart: Said | None,
    thresholds: Thresholds,
    level: float,
    *,
    in_all: str,
    otherwise: str,
) -> str:
    """``of_images``: the share after with each picture counted once, which the interval ``after`` is of; None where no
    probes share a picture. ``in_all``, ``otherwise``: clauses on all answers together, and on what was generated."""
    gained, lost, p = changed
    words = f"{percent(shares[1])} of the answers are right"
    interval, least = percent_interval(after, level).replace("+", ""), percent(thresholds.right)
    if of_images is None:
        words += f" ({interval}; at least {least} must be), {percent(shares[0])} before: "
        words += f"{gained} became right and {lost} wrong"
    else:
        words += (
            f", {percent(of_images)} with each picture counted once ({interval} of these; at least {least} of both "
            f"must be), {percent(shares[0])} of the answers before: on {count(gained, 'picture')} more became right "
            f"and on {lost} fewer"
        )
    words += f" (exact McNemar p = {p:.2g}){in_all}"
    if apart is not None:
        return f"{words}; but {apart.words}, which differs by more than {percent(thresholds.disagreement)}."
    return f"{words}{otherwise}."
