"""Records that are not of the same measurement are refused, by the name of their probe."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from diagnostics.comparison.group_report import comparison_of, lost_groups
from diagnostics.comparison.pairs import pair_all
from diagnostics.records.probe_marks import probe_mark
from diagnostics.records.record import Scores
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of


def test_a_foil_on_one_side_only_is_refused(tmp_path: Path) -> None:
    """Its missing margin would count as a wrong answer before, and each right one after as gained."""
    pairs = pairs_of(tmp_path, towers=Made(probes=2))["towers"]
    before = {
        pair.probe.id: replace(pair.before, interventions=(), scores=Scores(-1.0, None, "")) for pair in pairs
    }
    with pytest.raises(ValueError, match=r"probe towers-0: .*scores of a foil: False before .*, True after"):
        pair_all([pair.probe for pair in pairs], before, {pair.probe.id: pair.after for pair in pairs})


def test_probes_of_other_key_layers_are_refused(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, towers=Made(probes=3))["towers"]
    sides = [{pair.probe.id: getattr(pair, side) for pair in pairs} for side in ("before", "after")]
    for side in sides:
        side["towers-2"] = replace(side["towers-2"], layers=(0, 2))
    with pytest.raises(
        ValueError, match=r"probe towers-2: layers: found \(0, 2\); expected \(1, 3\), as in probe towers-0"
    ):
        pair_all([pair.probe for pair in pairs], *sides)


@pytest.mark.parametrize("changed", ["region", "foil", "picture"])
def test_a_probe_that_was_changed_after_it_was_measured_is_refused(tmp_path: Path, changed: str) -> None:
    """Attention on the region as it is now would stand beside the cost of hiding it as it was."""
    pairs = pairs_of(tmp_path, towers=Made(probes=2))["towers"]
    probes = [pair.probe for pair in pairs]
    before, after = (
        {
            pair.probe.id: replace(getattr(pair, side), probe_mark=probe_mark(pair.probe))
            for pair in pairs
        }
        for side in ("before", "after")
    )  # fmt: skip
    assert len(pair_all(probes, before, after)) == 2
    if changed == "region":
        name = next(iter(probes[1].regions))
        probes[1] = replace(probes[1], regions={**probes[1].regions, name: ((0.0, 0.0, 5.0, 4.0),)})
    elif changed == "foil":
        probes[1] = replace(probes[1], foil="another")
    else:
        with Image.open(probes[1].images[0]) as picture:
            ImageOps.mirror(picture.convert("RGB")).save(probes[1].images[0])
            probes[1].images[0].write_bytes(probes[1].images[0].read_bytes() + b"!")
    with pytest.raises(ValueError, match=r"probe towers-1, .*: it was measured with another question"):
        pair_all(probes, before, after)


def test_probes_without_a_foil_are_no_evidence_of_answers(tmp_path: Path) -> None:
    """24 probes, three of which have a foil: what those answer says nothing of the group."""
    made = replace(GUARDS, margins=(4.0, -4.0))
    pairs = flat(pairs_of(tmp_path, towers=Made(), retention=made))
    for pair in [pair for pair in pairs if not pair.probe.id.endswith(("-1", "-2", "-3"))]:
        for side in (pair.before, pair.after):
            object.__setattr__(side, "scores", Scores(-1.0, None, ""))
            object.__setattr__(side, "interventions", ())
            object.__setattr__(side, "patches", ())
            object.__setattr__(side, "picture_controls", ())
        object.__setattr__(pair.probe, "foil", None)
    groups = comparison_of(pairs)["groups"]
    for name in ("towers", "retention"):
        assert groups[name]["probes"] == 24 and groups[name]["verdict"] == "too few probes"
        assert groups[name]["reasons"][0].startswith("3 probes cannot distinguish a change from chance")
    assert lost_groups(pairs) == [
        "retention: forgot. 0 % of the probes are answered correctly, 100 % before: less than 97 % of the accuracy "
        "before."
    ]
