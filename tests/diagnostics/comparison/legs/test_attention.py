"""Attention that a loss asked for is no evidence: it is judged in other layers, on other pictures, or not at all."""

from dataclasses import replace

import pytest

from diagnostics.comparison.legs.attention import attention_leg, read_attention, unseen
from diagnostics.comparison.legs.mediation import mediated_nats
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.records.record import AttentionRecord
from tests.diagnostics.comparison.made_pairs import Made, flat, pairs_of


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Attention moved in layer 3, from 3 to 9 times; in layer 1 it stayed at 3."""
    return flat(pairs_of(tmp_path_factory.mktemp("made"), pearl=Made()))


def supervised(pairs, layers, *, pictures=lambda at: False):
    return [
        replace(pair, after=replace(pair.after, supervised_layers=layers, supervised_picture=pictures(at)))
        for at, pair in enumerate(pairs)
    ]


def leg_of(pairs):
    reading = read_attention(pairs, mediated_nats, Thresholds(), 0.95)
    chance = None if reading is None else 0.001
    return attention_leg(reading, chance, [], Thresholds(), 0.95, why_not=unseen(pairs).sentence)[0]


def test_without_supervision_every_layer_is_judged(pairs):
    leg = leg_of(pairs)
    assert leg.holds is True and "trained on" not in leg.reason and unseen(pairs) == (tuple(pairs), "")


def test_a_layer_that_was_supervised_is_not_judged(pairs):
    leg = leg_of(supervised(pairs, (3,)))
    assert leg.holds is False and abs(leg.value) < 0.1
    assert leg.reason.endswith(". Attention was trained on in layer 3; it is judged only where it was not.")
    assert leg_of(supervised(pairs, (1,))).holds is True


def test_where_every_layer_was_supervised_attention_is_not_measured(pairs):
    leg = leg_of(supervised(pairs, (1, 2, 3)))
    assert (leg.holds, leg.value) == (None, None)
    assert leg.reason == (
        "Attention was trained on in layers 1, 2 and 3, every layer that could be judged: where it looks there is what "
        "it was told to."
    )


def test_pictures_that_were_supervised_are_left_out(pairs):
    leg = leg_of(supervised(pairs, (1,), pictures=lambda at: at < 2))
    assert leg.probes == 22 and "in layer 1 and on 2 of these probes' pictures;" in leg.reason
    leg = leg_of(supervised(pairs, (1,), pictures=lambda at: True))
    assert leg.holds is None and "every picture that could be judged" in leg.reason


def test_records_say_so_on_disk(pairs, tmp_path):
    record = replace(pairs[0].after, supervised_layers=(1, 3), supervised_picture=True)
    record.save(tmp_path / "one.safetensors")
    found = AttentionRecord.load(tmp_path / "one.safetensors")
    assert (found.supervised_layers, found.supervised_picture) == ((1, 3), True)
