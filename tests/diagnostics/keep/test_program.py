"""The study end to end on tiny models: what is asked, what is judged, what is written, what is refused."""

import json

import numpy as np
import pytest

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.flags import keep as flags
from diagnostics.flags import web as web_flags
from diagnostics.keep.__main__ import Settings, main, run
from diagnostics.keep.asking import Asker, ProbeAnswers
from diagnostics.keep.chart import chart_figure
from diagnostics.keep.judging import judge
from diagnostics.keep.page import keep_html
from diagnostics.keep.rankings import MAP, ORDERS, RANDOM, REGION
from diagnostics.keep.summary import Study, advice, json_of, sentence, table
from diagnostics.measures.statistics import clopper_pearson, holm
from diagnostics.probing.interventions import TrialRunner
from diagnostics.probing.prober import Prober
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.pruning import WAYS
from diagnostics.records.measurement_plan import WATCH
from diagnostics.records.probes import write_probes
from tests.diagnostics.fusion.test_program import some_probes
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

SHARES = (1.0, 0.5, 0.11)
FAMILIES = {**ALL, **LLAVAS, **SIGLIPS}


def asker_of(tiny, folder, **other):
    return Asker(
        tiny.model(), tiny.processor(folder), family=tiny.family,
        **{"shares": SHARES, "key_layer": 1, "fastv_layer": 1, "draws": 2, **other},
    )  # fmt: skip


def test_a_model_that_overflows_is_refused_and_not_called_wrong(tmp_path):
    [probe] = some_probes(tmp_path, 1)
    asker = asker_of(ALL["qwen2-vl"], tmp_path)
    asker.model.get_output_embeddings().weight.data.fill_(float("inf"))
    with pytest.raises(
        ValueError, match=f"probe {probe.id}: .* margins are not finite, expected none: does the model"
    ):
        asker.ask_all([probe])


@pytest.mark.parametrize("name", [*FAMILIES])
def test_keeping_all_is_the_plain_model_and_keeping_less_is_not(name, tmp_path):
    tiny = FAMILIES[name]
    [probe] = some_probes(tmp_path, 1)
    asker = asker_of(tiny, tmp_path)
    [answers] = asker.ask_all([probe])
    plain = Prober(
        asker.model, asker.reader.processor, key_layers=[1], probes=[probe], family=tiny.family, depth=WATCH
    )
    assert answers.whole == pytest.approx(plain.run(probe, 0, "m").scores.margin_nats, abs=1e-3)
    for order in ORDERS:
        if (order, 1.0) in answers.margins:
            assert set(answers.margins[order, 1.0]) == {answers.whole}
            assert answers.margins[order, 0.11][0] != answers.whole
            assert answers.region_kept[order, 1.0] == pytest.approx(1)
    assert len(answers.margins[RANDOM, 0.5]) == 2
    assert answers.region_kept[REGION, 0.5] >= answers.region_kept[MAP, 0.5]
    tiles = answers.image_tokens != len(asker.reader.encode(probe, "x").images[0].cell_boxes_pixels)
    assert (("tower", 0.5) in answers.margins) == (asker.why_no_tower == ""), tiles


def test_margins_of_a_padded_picture_are_dropped_with_the_first_others(tmp_path, monkeypatch):
    """A tower mixes the picture into them: an answer could be read there, whatever else is dropped."""
    [probe] = some_probes(tmp_path, 1)
    asker = asker_of(LLAVAS["llava-1.5"], tmp_path)
    [image] = asker.reader.read(probe).answer.images
    asked = []
    ask = TrialRunner.margins_without
    monkeypatch.setattr(
        TrialRunner,
        "margins_without",
        lambda self, one, cases: asked.extend(places for places, _ in cases) or ask(self, one, cases),
    )
    [answers] = asker.ask_all([probe])
    margins = set(image.margin_positions)
    assert len(margins) > 0 and len(margins) + len(image.positions) == 25
    assert (answers.image_tokens, answers.margin_tokens) == (len(image.positions), len(margins))
    some = [set(places) for places in asked if len(places)]
    assert len(some) > 5 and all(margins < places for places in some)


def test_all_kept_is_bit_for_bit_what_the_runner_says_without_a_mask(tmp_path):
    tiny = ALL["qwen2.5-vl"]
    model, reader = tiny.model(), ProbeEncoder(tiny.family, tiny.processor(tmp_path))
    asked = reader.read(some_probes(tmp_path, 1)[0])
    nothing = np.zeros(0, np.int64)
    with AttentionExtractor(model, [], family=tiny.family) as extractor:
        runner = TrialRunner(model, reader, extractor, batch_size=4)
        [plain] = runner.margins_as_asked(asked, 1)
        some = asked.answer.images[0].positions[:2]
        found = runner.margins_without(asked, [(nothing, 0), (some, 0), (some, 1), (nothing, 1)])
    assert found[0] == found[3] == plain
    assert (
        len({plain, found[1], found[2]}) == 3
    )  # dropped from the first layer is not dropped from the second


def made_answers(folder, right):
    """Four groups of nothing but margins: order → share of probes that it answers right, at every share."""
    probes = some_probes(folder, 30)
    margins = {
        (order, share): [0.5 if at < right[order] * 30 else -0.5 for at in range(30)]
        for order in ORDERS
        if order in right
        for share in SHARES[1:]
    }
    return [
        ProbeAnswers(
            probe, 9, 0, 1.0, {point: (values[at],) for point, values in margins.items()}, {},
            dict.fromkeys(margins, (1.0, -1.0)),
        )
        for at, probe in enumerate(probes)
    ]  # fmt: skip


def study_of(judgements):
    return Study(
        "m", "p.json", 16, "it was given", 2, 10, SHARES[1:], 0, "9 image tokens", "tiles", tuple(judgements)
    )


@pytest.mark.parametrize(
    ("right", "wins"),
    [
        ({"map": 0.9, "random": 0.4, "divprune": 0.5}, True),
        ({"map": 0.9, "random": 0.4, "divprune": 0.9}, False),  # diversity does as well
        ({"map": 0.9, "random": 0.9, "divprune": 0.4}, False),  # so does chance
        ({"map": 0.5, "random": 0.4, "divprune": 0.4}, False),  # 3 of 30 more may be chance
    ],
)
def test_only_what_beats_random_and_divprune_is_recommended(tmp_path, right, wins):
    found = made_answers(tmp_path, {"fastv": 0.1, "least": 0.1, **right})
    [judged] = judge(found, SHARES[1:])
    assert judged.recommended() == ([("map", 0.5), ("map", 0.11)] if wins else [])
    study = study_of([judged])
    assert ("Better than random" in advice(study)) == wins
    assert f"keep {right['map']:.0%}".replace("%", " %") in sentence(study)
    assert "[" in advice(study) and "not measured" in table(study)
    assert judged.cells["region"] is None and "no probe names a region" in keep_html(study)
    assert judged.cells["map"][0.5].first_token == (1.0, 0.0)


def test_too_few_pictures_recommend_nothing(tmp_path):
    found = made_answers(tmp_path, {"map": 1, "random": 0, "divprune": 0, "fastv": 0})[:19]
    [judged] = judge(found, SHARES[1:])
    study = study_of([judged])
    assert judged.recommended() == [] and "19 pictures are too few" in advice(study)
    assert "✓" not in table(study) and 'class="won"' not in keep_html(study)
    content = json_of(study, [])
    assert not content["scopes"]["all probes"]["orders"]["map"]["0.5"]["wins"]
    [enough] = judge(made_answers(tmp_path, {"map": 1, "random": 0, "divprune": 0, "fastv": 0}), SHARES[1:])
    assert enough.cells["map"][0.5].wins and "✓" in table(study_of([enough]))


def test_an_order_that_was_measured_on_few_pictures_does_not_win(tmp_path):
    found = made_answers(tmp_path, {"map": 1, "tower": 1, "random": 0, "divprune": 0, "fastv": 0})
    for one in found[19:]:
        for share in SHARES[1:]:
            del one.margins["tower", share]
    [judged] = judge(found, SHARES[1:])
    assert judged.measured and {name for name, _ in judged.recommended()} == {"map"}


@pytest.mark.parametrize("own", [1, 0, 0.5])
def test_where_all_pictures_agree_the_interval_is_exact(tmp_path, own):
    """A bootstrap of 30 right answers of 30 gives 100 % to 100 %."""
    found = made_answers(tmp_path, {"map": 1, "random": 0, "divprune": 1, "fastv": 0})
    for one in found:
        for share in SHARES[1:]:
            one.margins["random", share] = (0.5, -0.5) if own == 0.5 else (own - 0.5,)
    [judged] = judge(found, SHARES[1:])
    most = clopper_pearson(30, 30)[0]
    assert judged.right == (1, most, 1)
    cells = {name: judged.cells[name][0.5] for name in ("map", "random")}
    assert cells["random"].right == (own, *clopper_pearson(int(own * 30), 30))
    gain, even = (cells["map"].minus[rival].difference for rival in ("random", "divprune"))
    assert even == pytest.approx((0, most - 1, 1 - most))
    expected = even if own == 1 else (1 - own, (2 * most - 1) * (1 - own), 1 - own)
    assert gain == pytest.approx(expected)


def test_an_order_is_judged_on_the_probes_that_it_was_measured_on(tmp_path):
    found = made_answers(tmp_path, {"map": 0.9, "random": 0.4, "divprune": 0.5, "fastv": 0.1, "region": 1})
    for one in found[20:]:
        for share in SHARES[1:]:
            del one.margins["region", share]
    [judged] = judge(found, SHARES[1:])
    assert [judged.cells[name][0.5].probes for name in ("map", "region")] == [30, 20]
    assert (
        judged.cells["region"][0.5].right == (1, *clopper_pearson(20, 20))
        and not judged.cells["region"][0.5].wins
    )


def test_flags_and_what_they_set_have_the_same_defaults():
    given = flags.parser().parse_args(["m", "--probes", "p"])
    expected = {**Settings()._asdict(), "shares": [*Settings().shares]}
    assert {name: getattr(given, name) for name in Settings._fields} == expected
    keep_by = next(one for one in web_flags.parser()._actions if one.dest == "keep_by")
    assert tuple(keep_by.choices) == WAYS


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.02, 0.01, 0.04])), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(holm(np.array([[0.6, 0.3], [0.4, 0.9]])), [[1, 1], [1, 1]])
    np.testing.assert_allclose(holm(np.array([0.01, 0.2, 0.03, 0.005])), [0.03, 0.2, 0.06, 0.02])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keep")
    checkpoint = ALL["qwen-vl"].write(folder / "model")
    probes = [*some_probes(folder, 3), *some_probes(folder, 3, group="rooms")]
    write_probes(probes, folder / "probes.json")
    study = run(
        str(checkpoint),
        folder / "probes.json",
        folder / "out",
        Settings((0.5, 0.25), "1", fastv_layer=1, draws=2),
    )
    return folder, study


def test_the_three_files(written):
    folder, study = written
    content = json.loads((folder / "out/keep.json").read_text())
    assert list(content["scopes"]) == ["all probes", "towers", "rooms"]
    orders = content["scopes"]["towers"]["orders"]
    assert list(orders) == list(ORDERS) and list(orders["map"]) == ["0.5", "0.25"]
    assert len(content["probes"][0]["margin_nats"]["random"]["0.5"]) == 2
    assert content["sentence"] == sentence(study) and content["recommended"] == []
    assert "the resampler's queries" in content["drops"]
    page = (folder / "out/index.html").read_text()
    assert "http" not in page and page.count("<article") == 3
    assert (folder / "out/keep.png").read_bytes()[:4] == b"\x89PNG"
    panels = chart_figure(study).axes
    assert [panel.get_title() for panel in panels[:3]] == ["all probes (6)", "towers (3)", "rooms (3)"]
    assert [line.get_label() for line in panels[0].containers][:1] == ["layer 1's map"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shares", "0.5", "0"], "--shares: found share 0"),
        (["--shares", "1.2"], "--shares: found share 1.2"),
        (["--draws", "0"], "--draws: found 0"),
        (["--key_layer", "last"], "--key_layer: found 'last'"),
        (["--key_layer", "7"], "no language layer 7; expected 0 to 1"),
        (["--key_layer", "1"], "--fastv_layer: found 2, expected 1 to 1"),
    ],
)
def test_bad_flags_are_one_line(written, flags, message, capsys, tmp_path):
    folder, _ = written
    given = [
        str(folder / "model"),
        "--probes",
        str(folder / "probes.json"),
        "--output_dir",
        str(tmp_path),
        *flags,
    ]
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_probes_without_a_foil_or_a_picture_are_refused(written, tmp_path):
    folder, _ = written
    content = json.loads((folder / "probes.json").read_text())
    for probe in content["probes"]:
        del probe["foil"]
        probe["images"] = [str((folder / one).resolve()) for one in probe["images"]]
    (tmp_path / "probes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="none of 6 probes has both a picture and a foil"):
        run(str(folder / "model"), tmp_path / "probes.json", tmp_path / "out")


@pytest.mark.parametrize("name", [*HYBRIDS])
def test_layers_that_no_mask_reaches_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="2 of 4 language layers mix tokens by linear attention"):
        asker_of(HYBRIDS[name], tmp_path)
