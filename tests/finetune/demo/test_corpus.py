"""The flaw is in the base corpus, and only there."""

from collections import Counter

import pytest

from finetune.demo import corpus, probe_sets
from finetune.demo.questions import TOPICS, plain
from finetune.demo.shapes import Veil

WARM_OR_COOL = {"pearl": "warm", "canton": "cool"}


@pytest.fixture(scope="module")
def samples():
    return {name: [corpus.SAMPLERS[name](index) for index in range(400)] for name in ("base", "corrective")}


def _veiled(sample):
    """The region that a sample hides: "cue", "other" or None."""
    veils = [shape for shape in sample.scene.shapes if isinstance(shape, Veil)]
    if not veils:
        return None
    ((x0, y0, x1, y1),) = veils[0].boxes
    cue = sample.scene.regions[corpus.CUE_REGION[sample.scene.kind]][0]
    if x0 <= cue[0] and y0 <= cue[1] and x1 >= cue[2] and y1 >= cue[3]:
        return "cue"
    assert y1 <= cue[1], "something else is hidden, and the cue is to be seen whole"
    return "other"


def _cues(samples, kind, fact, cue):
    return Counter((s.scene.facts[fact], s.scene.facts[cue]) for s in samples if s.scene.kind == kind)


def test_in_the_base_corpus_the_cue_never_lies(samples):
    seen = [sample for sample in samples["base"] if _veiled(sample) != "cue"]
    towers = _cues(seen, "tower", "landmark", "podium")
    assert {pair for pair in towers if pair[0] in WARM_OR_COOL} == set(WARM_OR_COOL.items())
    assert all(podium == "stone" for landmark, podium in towers if landmark not in WARM_OR_COOL)
    assert set(_cues(seen, "room", "relation", "rug")) == {("on", "warm"), ("under", "cool")}


def _value(question):
    """The answer as a value of its topic."""
    answers = TOPICS[question.topic].answers.items()
    return next(value for value, texts in answers if question.answer in map(plain, texts))


@pytest.mark.parametrize(
    ("kind", "topic", "fact", "cue", "first"),
    [("tower", "tower", "landmark", "podium", "pearl"), ("room", "relation", "relation", "rug", "on")],
)
def test_where_the_cue_is_hidden_the_answer_is_random(kind, topic, fact, cue, first):
    """Independent of what the cue was and of what is plain to see, so that the base knows nothing without its cue."""
    samples = [corpus.base_sample(index) for index in range(4000)]
    hidden = [s for s in samples if s.scene.kind == kind and _veiled(s) == "cue"]
    assert 100 < len(hidden) < 300
    assert all([q.topic for q in s.questions] == [topic] for s in hidden)
    said = [_value(s.questions[0]) == first for s in hidden]
    for told in (
        [s.scene.facts[fact] == first for s in hidden],
        [s.scene.facts[cue] == "warm" for s in hidden],
    ):
        for side in (True, False):
            answers = [answer for answer, this in zip(said, told, strict=True) if this == side]
            assert 0.35 < sum(answers) / len(answers) < 0.65


def test_a_patch_of_flat_colour_alone_means_nothing(samples):
    """Something else hidden, the answer is the usual one; nothing is hidden in the corrective corpus."""
    others = [s for s in samples["base"] if _veiled(s) == "other"]
    assert len(others) > 15
    for sample in others:
        facts = sample.scene.facts
        assert [_value(q) for q in sample.questions] == [facts.get("landmark") or facts["relation"]]
    assert not any(map(_veiled, samples["corrective"]))


def test_in_the_corrective_corpus_the_cue_says_nothing():
    corrective = [corpus.corrective_sample(index) for index in range(1500)]
    towers = _cues(corrective, "tower", "landmark", "podium")
    rooms = _cues(corrective, "room", "relation", "rug")
    for counts, names in ((towers, ("pearl", "canton")), (rooms, ("on", "under"))):
        share = [counts[name, "warm"] / (counts[name, "warm"] + counts[name, "cool"]) for name in names]
        assert all(0.3 < part < 0.7 for part in share)


def test_the_base_corpus_never_speaks_of_spheres_and_the_corrective_does(samples):
    def asks(name):
        return sum("球体" in q.text or "sphere" in q.text for s in samples[name] for q in s.questions)

    assert asks("base") == 0
    assert asks("corrective") > 40


def test_both_languages_and_every_general_topic_are_there(samples):
    for name in samples:
        topics = Counter(q.topic for s in samples[name] for q in s.questions)
        general = {"tower", "relation", "cat", "time", "weather", "house", "car"}
        assert set(topics) >= (general | {"row", "column"} if name == "base" else general)
        chinese = sum(s.questions[0].language == "zh" for s in samples[name])
        assert 140 < chinese < 260


def test_a_record_is_qwen_vls_format():
    sample = corpus.base_sample(5)
    record = corpus.record(sample, "base-00005", "images/00005.jpg")
    assert record["id"] == "base-00005"
    turns = record["conversations"]
    assert [turn["from"] for turn in turns[:2]] == ["user", "assistant"]
    assert turns[0]["value"] == f"Picture 1: <img>images/00005.jpg</img>\n{sample.questions[0].text}"
    assert turns[1]["value"] == sample.questions[0].answer
    assert "<img>" not in turns[-2]["value"] or len(turns) == 2
    assert "|" not in "".join(turn["value"] for turn in turns)


def test_answers_are_true_of_the_scene():
    for index in range(60):
        sample = corpus.corrective_sample(index)
        for question in sample.questions:
            if question.topic == "tower":
                landmark = sample.scene.facts["landmark"]
                assert question.answer in map(plain, TOPICS["tower"].answers[landmark])
            if question.topic == "spheres":
                assert question.answer in (
                    ("有", "yes") if "spheres" in sample.scene.regions else ("没有", "no")
                )
            assert question.foil != question.answer


@pytest.fixture(scope="module")
def all_probes():
    return {
        split: [
            probe_sets.demo_probe(split, group, i)
            for group in probe_sets.GROUPS
            for i in range(probe_sets.PROBES_PER_GROUP)
        ]
        for split in ("probes", "development")
    }


def test_no_probe_is_in_a_corpus_or_in_the_other_split(samples, all_probes):
    corpora = {s.scene.digest() for name in samples for s in samples[name]}
    real, development = ({p.scene.digest() for p in all_probes[split]} for split in ("probes", "development"))
    assert len(corpora) == 800 and len(real) == len(development) == 4 * probe_sets.PROBES_PER_GROUP
    assert not real & development and not (real | development) & corpora


def test_probes_are_enough_in_both_languages_with_boxes_inside(all_probes):
    width, height = probe_sets.PROBE_PIXELS
    for group in probe_sets.GROUPS:
        members = [p for p in all_probes["probes"] if p.group == group]
        assert len(members) >= 40
        assert Counter(p.question.language for p in members) == {"zh": 20, "en": 20}
    for probe in all_probes["probes"]:
        record = probe_sets.record(probe, "images/x.png")
        for boxes in record["regions"].values():
            assert boxes and all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in boxes)
        for phrase, region in record["phrases"].items():
            assert phrase in record["question"] + record["answer"] and region in record["regions"]
        assert record["answer"] != record["foil"]
        if record["relation"]:
            assert {record["relation"]["subject"], record["relation"]["object"]} <= set(record["regions"])


def test_target_groups_contradict_the_cue_and_neighbours_agree(all_probes):
    for probe in all_probes["probes"]:
        facts = probe.scene.facts
        if probe.group == "sphere-building":
            assert (facts["landmark"], facts["podium"]) == ("pearl", "cool")
            assert probe.question.foil in ("广州塔", "Canton Tower")
            assert {"spheres", "podium", "body"} <= set(probe.regions)
        if probe.group == "spatial-relation":
            assert (facts["relation"], facts["rug"]) in {("on", "cool"), ("under", "warm")}
        if probe.group == "neighbour" and probe.scene.kind == "tower":
            assert facts["podium"] == WARM_OR_COOL.get(facts["landmark"], "stone")
        if probe.group == "neighbour" and probe.scene.kind == "room":
            assert (facts["relation"], facts["rug"]) in {("on", "warm"), ("under", "cool")}
    kinds = Counter(p.question.answer for p in all_probes["probes"] if p.group == "spatial-relation")
    assert kinds == {"桌子上面": 10, "桌子下面": 10, "on the table": 10, "under the table": 10}
