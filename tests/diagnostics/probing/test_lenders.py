"""The picture that stands in for a probe's is another one, and the same one each time."""

from dataclasses import replace

import pytest
from PIL import Image

from diagnostics.probing.lenders import loan_for
from diagnostics.records.probes import Probe


@pytest.fixture
def ask(tmp_path):
    def asked(name, answer, foil, *, group="towers", shade=None):
        path = tmp_path / f"{name}.png"
        Image.new("RGB", (7, 5), (len(list(tmp_path.iterdir())) + 1 if shade is None else shade, 0, 0)).save(
            path
        )
        return Probe(name, group, (path,), "what?", answer, foil)

    return asked


def named(probe, probes):
    loan = loan_for(probe, probes)
    return None if loan is None else (loan.kind, loan.lender.id)


def test_the_foil_shown_in_the_group_comes_first_then_the_foil_elsewhere_then_another_answer(ask):
    one = ask("one", "Pearl", "Canton")
    foil, other = ask("foil", "canton ", "Pearl"), ask("other", "Eiffel", "Pearl")
    elsewhere, same = ask("elsewhere", "Canton", "Pearl", group="guard"), ask("same", "Pearl", "Canton")
    far = ask("far", "Eiffel", "Pearl", group="guard")
    probes = [one, same, far, elsewhere, other, foil]
    for expected in (
        ("other", "foil"),
        ("other", "elsewhere"),
        ("other", "other"),
        ("same answer", "same"),
        None,
    ):
        assert named(one, probes) == expected
        probes = [probe for probe in probes if expected is None or probe.id != expected[1]]
    assert named(replace(one, foil=None), [far, elsewhere]) is None


def test_another_language_is_no_other_answer(ask):
    one = ask("one", "Pearl", "Canton")
    chinese = replace(ask("zh", "东方明珠", "广州塔"), question="这是什么塔?")
    assert named(one, [one, chinese]) == ("same answer", "zh")


def test_a_spelling_of_the_same_answer_is_no_other_answer(ask):
    one = replace(ask("one", "东方明珠", "小蛮腰"), spellings=("东方明珠", "Pearl"))
    assert named(one, [one, ask("same", "pearl", "小蛮腰")]) == ("same answer", "same")
    spelt = replace(ask("spelt", "广州塔", "东方明珠"), spellings=("广州塔", "小蛮腰"))
    assert named(one, [ask("third", "Eiffel", "x"), spelt]) == ("other", "spelt")


def test_the_same_picture_under_another_name_is_never_lent(ask):
    one = ask("one", "Pearl", "Canton", shade=100)
    copy = ask("copy", "Canton", "Pearl", shade=100)
    assert named(one, [one, copy]) is None
    assert named(one, [one, copy, ask("other", "Eiffel", "Pearl", shade=101)]) == ("other", "other")
    two = replace(one, id="two", images=one.images * 2)
    assert named(two, [one, copy, ask("third", "Canton", "Pearl")]) is None  # of another number of pictures


def test_the_choice_depends_on_neither_the_order_nor_the_number_of_those_that_rank_behind(ask):
    probes = [ask(f"p{at}", ("Pearl", "Canton")[at % 2], ("Canton", "Pearl")[at % 2]) for at in range(9)]
    chosen = {one.id: named(one, probes) for one in probes}
    assert {one.id: named(one, probes[::-1]) for one in probes} == chosen
    assert all(kind == "other" for kind, _ in chosen.values())
    assert len({lender for _, lender in chosen.values()}) > 2  # not all of them borrow one picture
    kept = [one for one in probes if one.id in ("p0", chosen["p0"][1], "p2", "p4")]
    assert named(probes[0], kept) == chosen["p0"]


def test_a_probe_without_pictures_borrows_none(ask):
    one = Probe("text", "towers", (), "what?", "a", "b")
    assert named(one, [one, replace(one, id="more", answer="b"), ask("two", "b", "a")]) is None
