"""What a checkpoint's probes say in one line, of groups whose every number is given."""

from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.checkpoint_line import checkpoint_line
from diagnostics.comparison.group_report import comparison_of
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of


def test_targets_have_answers_and_attention_and_guards_are_kept_or_lost(tmp_path: Path):
    """21 of 24 margins above 0 after; in the better layer 9 times the region's area, 3 before."""
    mixed = [6.0] * 21 + [-1.0] * 3
    pairs = pairs_of(
        tmp_path,
        towers=Made(margins=(-3.0, mixed), noise=0.0),
        neighbour=GUARDS,
        retention=replace(GUARDS, margins=(4.0, [4.0] * 20 + [-2.0] * 4)),
    )
    assert checkpoint_line(flat(pairs), 110) == (
        "step 110: towers 0 → 21 of 24 right, attention on spheres 3× → 9× (layer 3); neighbour kept (24 of 24); "
        "retention LOST (24 → 20 of 24)"
    )


@pytest.mark.parametrize(
    ("after", "said", "words"),
    [
        (-4.0, ("x", "x"), "0 of 24 right, nothing to keep"),
        ([4.0] * 5 + [-4.0] * 19, ("x", "x"), "0 → 5 of 24 right, nothing to keep"),
        (-4.0, (GUARDS.answer, "x"), "LOST (24 → 0 of 24 generated)"),
    ],
)
def test_guards_that_were_never_right_are_not_called_kept(tmp_path: Path, after, said, words: str):
    pairs = pairs_of(tmp_path, neighbour=replace(GUARDS, margins=(-4.0, after), said=said))
    assert checkpoint_line(flat(pairs), 7) == f"step 7: neighbour {words}"


def test_a_guard_that_says_something_else_is_lost_by_what_it_says(tmp_path: Path):
    pairs = pairs_of(tmp_path, retention=replace(GUARDS, said=(GUARDS.answer, "nonsense")))
    assert checkpoint_line(flat(pairs), 7) == "step 7: retention LOST (24 → 0 of 24 generated)"


def test_a_guard_that_is_lost_on_most_pictures_is_lost_by_picture(tmp_path: Path):
    """200 questions of one picture stay right, and of 24 with a picture each 6 do not: 97.3 % of all, 19 of 25."""
    made = replace(GUARDS, probes=224, margins=(4.0, [4.0] * 218 + [-3.0] * 6), said=("", ""))
    pairs = pairs_of(tmp_path, retention=made)["retention"]
    shared = [
        replace(pair, probe=replace(pair.probe, images=pairs[0].probe.images)) if at < 200 else pair
        for at, pair in enumerate(pairs)
    ]
    assert checkpoint_line(shared, 7) == "step 7: retention LOST (100 % → 76 % by picture)"


def test_a_guard_that_says_something_else_of_most_pictures_is_lost_by_picture(tmp_path: Path):
    """Right by margin; 216 questions of one picture are answered as before, and those of 24 others no longer."""
    made = replace(GUARDS, probes=240, said=(GUARDS.answer, GUARDS.answer))
    pairs = pairs_of(tmp_path, retention=made)["retention"]
    shared = [
        replace(pair, probe=replace(pair.probe, images=pairs[0].probe.images)) if at < 216 else pair
        for at, pair in enumerate(pairs)
    ]
    said = [
        replace(pair, after=replace(pair.after, scores=replace(pair.after.scores, generated="nonsense")))
        if at >= 216
        else pair
        for at, pair in enumerate(shared)
    ]
    assert checkpoint_line(said, 7) == "step 7: retention LOST (100 % → 4 % generated, by picture)"
    group = comparison_of(said)["groups"]["retention"]
    assert group["verdict"] == "forgot"
    [reason] = group["reasons"]
    assert reason.endswith(
        "; but 4 % of the generated answers are right with each picture counted once, 100 % before."
    )
    assert "但每张图片计一次，实际生成的回答有 4% 正确" in str(translated(reason))


def test_a_group_with_pictures_that_were_trained_on_is_not_held_out(tmp_path: Path):
    pairs = pairs_of(tmp_path, towers=Made(probes=3), retention=replace(GUARDS, probes=5), neighbour=GUARDS)
    trained = [
        replace(pair, after=replace(pair.after, trained_picture=pair.probe.id in ("towers-1", "retention-0")))
        for pair in flat(pairs)
    ]
    line = checkpoint_line(trained, 7)
    assert "towers (not held out) 0 → 3 of 3 right" in line
    assert "retention (not held out) kept (5 of 5); neighbour kept (24 of 24)" in line


def test_what_is_not_there_is_not_said(tmp_path: Path):
    """Without regions no attention; without a foil no answers."""
    probes = pairs_of(tmp_path, towers=Made(probes=3))["towers"]
    blind = [
        replace(
            pair,
            probe=replace(pair.probe, regions={}, foil=None),
            region=None,
            before=replace(pair.before, scores=replace(pair.before.scores, foil_nats=None)),
            after=replace(pair.after, scores=replace(pair.after.scores, foil_nats=None)),
        )
        for pair in probes
    ]
    assert checkpoint_line(blind, 7) == "step 7: towers no answers to judge"
