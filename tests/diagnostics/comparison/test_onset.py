"""What began when, from records whose every change is made, and in which words."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.onset import onset_of, words
from diagnostics.comparison.pairs import ProbePair, pair_all
from diagnostics.comparison.trajectory import evolution_of, read_series
from diagnostics.measures.onset import FELL, NEITHER, ROSE, Onset
from diagnostics.records.record import AttentionRecord, Intervention
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of

STEPS = (0, 10, 20, 30, 40)


def at_step(
    pair: ProbePair, step: int, *, attention: int, answers: int, cause: int, costs_at: tuple[int, ...]
) -> AttentionRecord:
    """The record of a step: each quantity is as before until its own step, and as after from there."""
    looks = pair.after if step >= attention else pair.before
    scores = (pair.after if step >= answers else pair.before).scores
    cost, control = (5.0, 0.4) if step >= cause else (0.5, 0.1)
    hidden = (
        Intervention("occlusion", name, scores.margin_nats - of, (scores.margin_nats - control,))
        for name, of in (("spheres", cost), ("podium", 0.2))
    )
    return replace(
        looks, step=step, scores=scores, interventions=tuple(hidden) if step in costs_at else (),
        picture_controls=(), patches=(), patched_from=None,
    )  # fmt: skip


def onset(folder: Path, made: Made = Made(), steps: tuple[int, ...] = STEPS, **began):
    groups = pairs_of(folder, spheres=made, neighbour=GUARDS)
    began = {"attention": 20, "answers": 40, "cause": 30, "costs_at": STEPS} | began
    records = {
        step: {
            pair.probe.id: at_step(pair, step, **began)
            if pair.probe.group == "spheres"
            else replace(pair.before, step=step)
            for pair in flat(groups)
        }
        for step in steps
    }
    probes = [pair.probe for pair in flat(groups)]
    evolution = evolution_of(records)
    pairs = pair_all(probes, records[steps[0]], records[steps[-1]])
    return onset_of(pairs, evolution.steps, read_series(probes, evolution))


def test_each_began_at_its_own_step(tmp_path):
    found = onset(tmp_path)
    spheres = found["groups"]["spheres"]
    # two groups; answers, attention and cause; four checkpoints after the base
    assert (found["unit"], found["tests"]) == ("step", 24)
    assert {name: (spheres[name]["step"], spheres[name]["after"]) for name in ("attention", "cause", "answers")} == {
        "attention": (20, 10), "cause": (30, 20), "answers": (40, 30),
    }  # fmt: skip
    assert spheres["answers"]["change"] == 1.0 and spheres["cause"]["change"] == pytest.approx(4.2)
    # 9 of before 3 times the even share in layer 3: 2 · 6 / 12, but for the noise
    assert spheres["attention"]["change"] == pytest.approx(1.0, abs=0.01)
    assert spheres["words"] == (
        "Attention led the answers by 20 steps (steps 20 and 40; checkpoints lie 10 steps apart). "
        "Cause led the answers by 10 steps (steps 30 and 40; checkpoints lie 10 steps apart)."
    )
    guards = found["groups"]["neighbour"]
    assert {guards[name]["state"] for name in ("attention", "cause", "answers")} == {NEITHER}
    assert guards["words"] == (
        "Answers did not change beyond chance. Attention did not move beyond chance. Cause did not change beyond "
        "chance."
    )


def test_what_rose_on_pictures_that_were_trained_on_shows_no_correction(tmp_path, monkeypatch):
    given = at_step

    def on_trained(*of, **began):
        return replace(given(*of, **began), trained_picture=True)

    alone = onset(tmp_path)["groups"]["spheres"]["words"]
    monkeypatch.setattr(sys.modules[__name__], "at_step", on_trained)
    found = onset(tmp_path)["groups"]
    warned = "Pictures of this group are in the training data: what rose shows no correction."
    assert found["spheres"]["words"] == f"{alone} {warned}" and translated(found["spheres"]["words"])
    assert warned not in found["neighbour"]["words"]
    still = onset(tmp_path, attention=50, answers=50, cause=50)["groups"]["spheres"]["words"]
    assert "beyond chance" in still and warned not in still


@pytest.mark.parametrize("supervised", [(3,), (1, 3)])
def test_attention_that_a_loss_asked_for_led_nothing(tmp_path, monkeypatch, supervised):
    """Layer 1 has the region at 3 times its area before and after, layer 3 at 9 after: only 3 was trained to look."""
    trained = at_step

    def watched(*given, **when):
        return replace(trained(*given, **when), supervised_layers=supervised)

    monkeypatch.setattr(f"{__name__}.at_step", watched)
    attention = onset(tmp_path)["groups"]["spheres"]["attention"]
    assert attention["state"] == (NEITHER if supervised == (3,) else "not measured")


def test_cause_that_was_measured_at_the_ends_alone_has_no_order(tmp_path):
    spheres = onset(tmp_path, costs_at=(0, 40))["groups"]["spheres"]
    assert (spheres["cause"]["step"], spheres["cause"]["after"], spheres["cause"]["looks"]) == (40, 0, 1)
    assert spheres["words"].endswith(
        "Whether cause or answers came first is not known: cause came between steps 0 and 40, answers between 30 and "
        "40."
    )
    never = onset(tmp_path, costs_at=())["groups"]["spheres"]
    assert never["cause"]["state"] == "not measured" and "Cause: not measured" in never["words"]


def test_a_small_change_of_attention_or_cost_is_no_onset(tmp_path):
    # 4 % more attention in every probe is beyond chance, and less than what counts as a move; a cost that rises by
    # 4.2 nats is more than a fifth of a margin's rise of 18, and less of one of 23
    made = Made(region=((3.0, 3.0), (3.0, 3.12)), noise=0.0, margins=(-3.0, 6.0))
    assert onset(tmp_path, made)["groups"]["spheres"]["attention"]["state"] == NEITHER
    (tmp_path / "more").mkdir()
    large = Made(margins=(-3.0, 15.0))
    assert onset(tmp_path / "more", large)["groups"]["spheres"]["cause"]["state"] == ROSE
    (tmp_path / "most").mkdir()
    larger = Made(margins=(-3.0, 20.0))
    assert onset(tmp_path / "most", larger)["groups"]["spheres"]["cause"]["state"] == NEITHER


def test_too_few_pictures_are_not_judged(tmp_path):
    few = onset(tmp_path, Made(probes=12))["groups"]["spheres"]
    assert {few[name]["state"] for name in ("answers", "attention", "cause")} == {"not measured"}
    assert few["words"] == "Not judged: too few pictures."


def test_checkpoints_that_are_numbered_by_place_are_not_called_steps(tmp_path):
    found = onset(tmp_path, steps=(0, 1, 2), attention=1, answers=2, cause=2, costs_at=(0, 1, 2))
    assert found["unit"] == "checkpoint"
    assert found["groups"]["spheres"]["words"].startswith("Attention led the answers by 1 checkpoint (")


def began(step: int, after: int, state: str = ROSE, *, stays: bool = True) -> Onset:
    return Onset(state, step, after, stays, 1.0, 0.001, 4)


def test_words():
    nothing = Onset(NEITHER, None, None, False, 0.0, 1.0, 4)
    together = {"answers": began(20, 10), "attention": began(20, 10), "cause": nothing}
    assert words(together) == (
        "Attention and answers came together, within the 10 steps between steps 10 and 20. Cause did not change "
        "beyond chance."
    )
    late = {"answers": began(10, 0), "attention": began(30, 20, stays=False), "cause": None}
    assert words(late) == (
        "Answers led attention by 20 steps (steps 10 and 30; checkpoints lie 10 steps apart). Cause: not measured on "
        "enough pictures at any checkpoint. Attention was not beyond chance at "
        "every later checkpoint."
    )
    broken = {"answers": began(30, 20, FELL), "attention": began(10, 0), "cause": began(20, 10)}
    assert words(broken) == (
        "Attention led cause by 10 steps (steps 10 and 20; checkpoints lie 10 steps apart). Answers fell beyond chance "
        "by step 30."
    )
    recovered = {"answers": began(30, 20, FELL, stays=False), "attention": nothing, "cause": nothing}
    assert words(recovered).startswith(
        "Answers fell beyond chance by step 30, and not at every later checkpoint."
    )


def test_looks_that_lie_apart_may_hide_the_order():
    sparse = {"answers": began(10, 0), "attention": began(30, 20), "cause": began(20, 0)}
    assert words(sparse) == (
        "Answers led attention by 20 steps (steps 10 and 30; checkpoints lie 10 steps apart). Whether cause or answers "
        "came first is not known: cause came between steps 0 and 20, answers between 0 and 10."
    )
    late = {"answers": began(20, 0), "attention": began(10, 0), "cause": None}
    assert words(late).startswith("Whether attention or answers came first is not known")
