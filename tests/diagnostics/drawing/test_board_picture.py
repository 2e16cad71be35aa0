"""The pictures of trackers: their size in a card, which probe and layer a strip shows, and which steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diagnostics.comparison.maps import Strip
from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.comparison.trajectory import evolution_of, strip_maps
from diagnostics.drawing import board_picture
from diagnostics.drawing.archive_pictures import (
    DRIFT_STEPS_MAX,
    ArchivePictures,
    draw_board_strip,
    moved_most,
    probe_sheet,
    strip_probe,
)
from diagnostics.drawing.board_picture import WIDTH, draw_drift, draw_maps
from diagnostics.drawing.colours import BAD, GOOD, end_words
from diagnostics.drawing.sink import TaggedPicture
from tests.diagnostics.show_samples import probes, records, run_folder


@pytest.fixture
def group(tmp_path: Path) -> list[ProbePair]:
    of = probes(tmp_path, per_group=5)[:5]
    return pair_all(of, records(of, 0), records(of, 10))


def strip_of(group: list[ProbePair], steps: int) -> Strip:
    probe = group[0].probe
    made = {10 * step: records([probe], 10 * step) for step in range(steps)}
    return strip_maps(probe, evolution_of(made), 3)


def test_a_strip_has_two_panels_side_by_side_and_fits_a_card_twice(group: list[ProbePair]) -> None:
    sheet = probe_sheet(group[0])
    high = [draw_drift(sheet, strip_of(group, steps)).size for steps in (1, 2, 3, 4, 6)]
    assert {width for width, _ in high} == {WIDTH} == {700}
    one, two, three, four, six = (height for _, height in high)
    assert one == two < three == four < six and six - four == four - two
    assert draw_maps(sheet, group[0].maps()[0]).width == 700
    with pytest.raises(ValueError, match="no step to draw"):
        draw_drift(sheet, replace(strip_of(group, 1), panels=()))


def test_each_panel_says_its_step(group: list[ProbePair], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Noting(board_picture.Pen):
        def write(self, draw, at, text, *more, **named):  # type: ignore[no-untyped-def]
            written.append(text)
            return super().write(draw, at, text, *more, **named)

    monkeypatch.setattr(board_picture, "Pen", Noting)
    draw_drift(probe_sheet(group[0]), strip_of(group, 3))
    assert [one for one in written if one.startswith(("base", "step", "now"))] == [
        "base",
        "step 10",
        "now · step 20",
    ]
    assert {"广州塔", "-1.50 nats", "东方明珠", "+2.00 nats", "layer 3"} <= set(written)


@pytest.mark.parametrize(
    ("said", "margin", "colours"),
    [("广州塔", 2.0, (BAD, GOOD)), ("东方明珠", -2.0, (GOOD, BAD)), ("Oriental Pearl", 2.0, (GOOD, GOOD))],
)
def test_words_have_the_colour_of_what_they_say_and_margins_that_of_their_sign(
    group: list[ProbePair],
    said: str,
    margin: float,
    colours: tuple[object, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, object] = {}

    class Noting(board_picture.Pen):
        def write(self, draw, at, text, size, colour=None, *more, **named):  # type: ignore[no-untyped-def]
            drawn[text] = colour
            return super().write(draw, at, text, size, colour or board_picture.INK, *more, **named)

    monkeypatch.setattr(board_picture, "Pen", Noting)
    pair = group[0]
    probe = replace(pair.probe, spellings=("东方明珠", "Oriental Pearl"), foil="广州塔")
    after = replace(pair.after, scores=replace(pair.after.scores, foil_nats=-1.0 - margin, generated=said))
    sheet = probe_sheet(replace(pair, probe=probe, after=after))
    sheet = replace(
        sheet, foil=None, answer="Pearl", spellings=("东方明珠", "Oriental Pearl")
    )  # written once each
    draw_maps(replace(sheet, before=replace(sheet.before, said="")), pair.maps()[0])
    assert (drawn[said], drawn[f"{margin:+.2f} nats"]) == colours


@pytest.mark.parametrize(("top", "words"), [(2.0, "2"), (2.5, "2.5"), (3.46, "3.5"), (12.0, "12")])
def test_a_scale_ends_where_its_words_say(top: float, words: str) -> None:
    assert end_words(top) == words


def test_a_strip_s_probe_is_typical_of_the_untrained_model_whatever_training_does(
    group: list[ProbePair], tmp_path: Path
) -> None:
    # Margins before are -1.5, -1.6, … -1.9 nats: the third is the median.
    assert strip_probe(group).id == "sphere-building-2"
    of = [pair.probe for pair in group]
    assert strip_probe(pair_all(of, records(of, 0), records(of, 30))).id == "sphere-building-2"


def test_a_strip_s_layer_is_the_one_that_moved_most(group: list[ProbePair]) -> None:
    still = [replace(layer, drift_jsd_nats=0.0) for layer in group[0].layers]
    moved = [replace(group[0], layers=(replace(still[0], drift_jsd_nats=0.2), still[1]))]
    assert moved_most(moved) == 1
    assert moved_most([replace(group[0], layers=tuple(still))]) == 3  # the last


def test_a_long_run_s_strip_has_the_first_the_last_and_some_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = tuple(range(0, 90, 10))
    archive = ArchivePictures.open(run_folder(tmp_path, per_group=1, steps=steps))
    (archive.record_path("sphere-building-0", 20)).write_bytes(b"cut")
    shown: list[int] = []
    draw = board_picture.draw_drift
    monkeypatch.setattr(
        board_picture, "draw_drift",
        lambda sheet, strip, **_: (shown.extend(panel.step for panel in strip.panels), draw(sheet, strip))[1],
    )  # fmt: skip
    (drawn,) = draw_board_strip(archive, archive.probes[0], steps, 1)
    assert isinstance(drawn, TaggedPicture) and drawn.tag == "1 verdict/drift strip/sphere-building"
    assert shown[0] == 0 and shown[-1] == 80 and len(shown) == DRIFT_STEPS_MAX and 20 not in shown
    assert np.all(np.diff(shown) > 0)
    archive.record_path("sphere-building-0", 80).unlink()
    archive.record_path("sphere-building-0", 0).unlink()
    (problem,) = draw_board_strip(archive, archive.probes[0], (0, 80), 1)
    assert str(problem).startswith("strip of probe sphere-building-0: evolution: found 0 steps")
