"""Mixing: how much an epoch takes of each source, in hand-computed cases, and in which order."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.data.mixture import (
    MOST_TIMES,
    Mixture,
    Source,
    SourceSpec,
    parse_source,
    spec_faults,
    unique_names,
)
from finetune.samples.conversation import Conversation, Turn


def talk(name: str, count: int) -> list[Conversation]:
    turns = (Turn("user", ("what?",)), Turn("assistant", ("that",)))
    return [Conversation(turns, f"{name} {i}") for i in range(count)]


def source(name: str, count: int, role="corrective", share=None, repeat=1) -> Source:
    return Source(name, talk(name, count), role, share, repeat)


def base(count: int) -> Source:
    return source("base", count, "base")


def seen(*sources: Source) -> list[int]:
    mixture = Mixture(sources, seed=3)
    counted = [int((mixture.source_of[mixture.order(0)] == i).sum()) for i in range(len(sources))]
    assert counted == [part.seen for part in mixture.parts]
    return counted


# --- how sources are written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.json", SourceSpec("a.json")),
        ("a.json:0.3", SourceSpec("a.json", 0.3)),
        ("a.json:.5", SourceSpec("a.json", 0.5)),
        ("a.json:5e-2", SourceSpec("a.json", 0.05)),
        ("a.json:x2", SourceSpec("a.json", None, 2)),
        ("a.json:X12", SourceSpec("a.json", None, 12)),
        (r"C:\data\a.json", SourceSpec(r"C:\data\a.json")),
        (r"C:\data\a.json:0.3", SourceSpec(r"C:\data\a.json", 0.3)),
        ("a:b.json", SourceSpec("a:b.json")),
        ("a:b.json:x3", SourceSpec("a:b.json", None, 3)),
        ("data:5:x1", SourceSpec("data:5")),
        ("a.json:", SourceSpec("a.json:")),
        ("a.json:2x", SourceSpec("a.json:2x")),
    ],
)
def test_how_a_source_is_written(text, expected):
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.json:0", "found the share 0, expected one between 0 and 1"),
        ("a.json:1", "write a.json:x2"),
        ("a.json:30", "found the share 30"),
        ("a.json:-0.2", "found the share -0.2"),
        ("a.json:x0", "found x0, expected x and a whole number, at least x1"),
        ("a.json:x1.5", "found x1.5"),
        ("a.json:x-2", "found x-2"),
        (":0.3", "found no file before the colon"),
    ],
)
def test_what_is_no_source(text, words):
    with pytest.raises(ValueError, match=words):
        parse_source(text)


def test_contradicting_flags_are_all_named(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base.json", "a.json", "b.json"):
        Path(name).touch()

    def faults(base, corrective=(), replay=()):
        return "\n".join(spec_faults(base, corrective, replay))

    assert faults("base.json", ["a.json:0.3"], ["b.json:0.1"]) == ""
    assert faults(None, ["a.json:0.7"], ["b.json:0.3"]) == ""
    assert faults(None, ["a.json:0.66"], ["b.json:0.33"]) == ""
    assert faults(None, ["a.json"], ["b.json:0.3"]) == ""
    assert "0.6 + 0.4 add up to 1, which leaves nothing" in faults("base.json", ["a.json:.6", "b.json:.4"])
    assert "0.2 + 0.3 add up to 0.5, and no source has the rest" in faults(None, ["a.json:.2", "b.json:.3"])
    assert "0.9 + 0.8 add up to 1.7" in faults(None, ["a.json:.9", "b.json:.8"])
    assert "'a.json' is given again as './a.json'" in faults("base.json", ["a.json:.1", "./a.json:.2"])
    assert "'base.json' is given --replay_data as 'base.json'" in faults("base.json", [], ["base.json:.1"])
    assert "--corrective_data: no such file or folder: 'c.json'" in faults("base.json", ["c.json:0.3"])
    assert "no such file or folder: 'a.json:30%'" in faults("base.json", ["a.json:30%"])
    assert "replay needs other training data" in faults(None, [], ["a.json"])
    several = faults("base.json", ["a.json:0", "c.json"], ["b.json:x0"])
    assert len(several.splitlines()) == 3


def test_names_are_short_and_unique(tmp_path: Path):
    assert unique_names(["x/base.json", "spheres.json"]) == ["base", "spheres"]
    assert unique_names(["old/data.json", "new/data.json", "s.json"]) == ["old-data", "new-data", "s"]
    assert unique_names(["a/d.json", "a/d.jsonl", "a/d.parquet"]) == ["a-d", "a-d-2", "a-d-3"]


# --- how much of each an epoch takes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        # One pass of the base would be 1000 / 0.7 samples; all 60 spheres were seen after 60 / 0.3 = 200.
        ([base(1000), source("s", 60, share=0.3)], [140, 60]),
        # After 1000 / 0.7 = 1428.6 samples the base is through, and 0.3 of them are 428.6 of the 900.
        ([base(1000), source("s", 900, share=0.3)], [1000, 429]),
        # The larger of the corrective ones decides: 60 / 0.2 = 300; then 0.3 of 300 are 90, of 30 samples.
        ([base(1000), source("s", 30, share=0.3), source("r", 60, share=0.2)], [150, 90, 60]),
        # Replayed data does not: 20 / 0.2 = 100, though 500 general samples are there.
        ([base(1000), source("s", 20, share=0.2), source("g", 500, "replay", 0.1)], [70, 20, 10]),
        ([base(90), source("g", 500, "replay", 0.1)], [90, 10]),
        # By count, the base is seen whole: (70 + 2 * 10) / (1 - 0.1) = 100.
        ([base(70), source("s", 10, repeat=2), source("g", 500, "replay", 0.1)], [70, 20, 10]),
        ([base(70), source("s", 10)], [70, 10]),
        # Without a base: by count and a share beside it; or shares that make up the whole.
        ([source("s", 80), source("g", 500, "replay", 0.2)], [80, 20]),
        ([source("s", 35, share=0.7), source("g", 500, "replay", 0.3)], [35, 15]),
        ([source("s", 35, share=0.7), source("t", 30, share=0.3)], [70, 30]),
        ([source("a", 33, share=0.33), source("b", 33, share=0.33), source("c", 33, share=0.33)], [33] * 3),
        # Never nothing.
        ([base(3), source("g", 5, "replay", 0.01)], [3, 1]),
    ],
)
def test_an_epoch_by_hand(sources, expected):
    assert seen(*sources) == expected


def test_what_the_table_says():
    text = Mixture([base(1000), source("s", 30, share=0.3), source("r", 600, share=0.2)], seed=0).table_text()
    lines = text.splitlines()
    assert lines[0].split() == ["source", "role", "samples", "seen", "an", "epoch", "times", "each", "share"]
    assert lines[1].split() == ["base", "base", "1,000", "1,000", "1.00", "50.0%"]
    assert lines[2].split() == ["s", "corrective", "30", "600", "20.00", "30.0%"]
    assert lines[4].split() == ["1,630", "2,000"]
    assert "s: each of its 30 samples is seen 20 times per epoch" in lines[5] and MOST_TIMES < 20
    assert "times an epoch" not in Mixture([base(100), source("s", 10, repeat=2)], seed=0).table_text()


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([], "found no source"),
        ([base(4), source("s", 0)], "source 's': found no sample"),
        ([base(4), base(4)], "given 2 times"),
        ([base(4), source("other", 4, "base")], "several bases"),
        ([source("b", 4, "base", share=0.3)], "share of the base"),
        ([base(4), source("s", 4, share=0.5), source("t", 4, share=0.5)], "leaves nothing"),
        ([source("g", 4, "replay", 1.0)], "only replay sources"),
    ],
)
def test_what_is_no_mixture(sources, words):
    with pytest.raises(ValueError, match=words):
        Mixture(sources, seed=0)


# --- the order -------------------------------------------------------------------------------------------------------


def test_one_plain_source_is_a_permutation_each_epoch():
    mixture = Mixture([base(50)], seed=0)
    first, second = mixture.order(0), mixture.order(1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist() != list(range(50))
    assert mixture.conversations is mixture.sources[0].conversations


def test_a_source_seen_in_part_goes_on_with_the_rest():
    """1000 of the base and 60 spheres by 0.3: 140 of the base an epoch, so seven epochs see 980 different ones."""
    mixture = Mixture([base(1000), source("s", 60, share=0.3)], seed=5)
    orders = [mixture.order(epoch) for epoch in range(15)]
    from_base = [order[order < 1000] for order in orders]
    early = np.concatenate(from_base[:7])
    assert len(set(early)) == 980
    # Epoch 7 has the last 20, and then the first 120 of the next pass.
    rest = set(range(1000)) - set(early.tolist())
    assert set(from_base[7][:20].tolist()) == rest
    assert sorted([*from_base[7][20:], *np.concatenate(from_base[8:14]), *from_base[14][:40]]) == list(
        range(1000)
    )
    for order in orders:
        assert sorted(order[order >= 1000]) == list(range(1000, 1060))


def test_a_small_source_is_repeated_pass_by_pass():
    """7 samples 300 times: every sevenfold stretch is a permutation, across blocks and epochs."""
    mixture = Mixture([source("s", 7, share=0.5), source("t", 2100, share=0.5)], seed=1)
    assert [part.seen for part in mixture.parts] == [2100, 2100]
    orders = [mixture.order(epoch) for epoch in range(32)]
    stream = np.concatenate([order[order < 7] for order in orders])
    assert len(stream) == 67_200  # more than a block
    assert (np.sort(stream.reshape(-1, 7), axis=1) == np.arange(7)).all()
    assert len({tuple(one) for one in stream.reshape(-1, 7).tolist()}) > 4000  # of 5040 orders


def test_each_twice_is_twice():
    mixture = Mixture([base(10), source("s", 6, repeat=2)], seed=0)
    counts = np.bincount(mixture.order(4), minlength=16)
    assert counts.tolist() == [1] * 10 + [2] * 6


def test_sources_are_interleaved():
    mixture = Mixture([base(700), source("s", 300)], seed=0)
    parts = mixture.source_of[mixture.order(0)].reshape(10, 100).sum(1)
    assert parts.min() > 10 and parts.max() < 50 and parts.sum() == 300


def test_the_order_is_the_seed_and_the_epoch_alone():
    def fresh(seed: int) -> Mixture:
        return Mixture([base(100), source("s", 30, share=0.4), source("g", 30, "replay", 0.1)], seed)

    walked = fresh(7)
    for epoch in range(3):
        walked.order(epoch)
    assert (walked.order(3) == fresh(7).order(3)).all()
    assert (pickle.loads(pickle.dumps(walked)).order(3) == fresh(7).order(3)).all()
    assert fresh(7).order(3).tolist() != fresh(8).order(3).tolist()
    code = (
        "from tests.finetune.data.test_mixture import *\n"
        "m = Mixture([base(100), source('s', 30, share=0.4), source('g', 30, 'replay', 0.1)], 7)\n"
        "print(m.order(3).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == str(fresh(7).order(3).tolist())


def test_the_order_of_today():
    """What resuming and comparing runs rests on: a change of these numbers is another order for everybody."""
    mixture = Mixture([base(6), source("s", 3, repeat=1)], seed=42)
    assert mixture.order(0).tolist() == GOLDEN[0]
    assert mixture.order(1).tolist() == GOLDEN[1]


GOLDEN = ([4, 0, 6, 1, 2, 8, 3, 5, 7], [0, 7, 4, 3, 1, 6, 2, 8, 5])


def test_conversations_stand_one_source_after_another():
    mixture = Mixture([base(4), source("s", 2), source("g", 3, "replay")], seed=0)
    joined = mixture.conversations
    names = [one.source for one in joined]
    assert names == ["base 0", "base 1", "base 2", "base 3", "s 0", "s 1", "g 0", "g 1", "g 2"]
    assert len(joined) == 9 and joined[-1].source == "g 2" and joined[4].source == "s 0"
    assert [one.source for one in joined[3:6]] == names[3:6]
    assert mixture.source_of.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    with pytest.raises(IndexError):
        joined[9]


class Blank(list):
    """A source of many samples that holds none."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def test_many_samples_are_no_more_than_their_indices():
    """Ten million took half a second to a second and a half (CPU, 2026-11-24); a list of objects would take minutes."""
    mixture = Mixture(
        [Source("base", Blank(1_000_000), "base"), Source("s", Blank(10), "corrective", None, 10_000)],
        seed=0,
    )
    order = mixture.order(2)
    assert len(order) == 1_100_000 and order.dtype == np.int64
    assert (np.bincount(order[order >= 1_000_000] - 1_000_000) == 10_000).all()
    assert (np.bincount(order[order < 1_000_000]) == 1).all()
