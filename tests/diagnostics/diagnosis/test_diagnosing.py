"""A tiny model from its pixels to diagnosis.json: faults planted in memory are named, and wrong input is refused."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from diagnostics import AttentionMonitor
from diagnostics import diagnose as program
from diagnostics.diagnosis import Thresholds, diagnose_model
from diagnostics.diagnosis.cases import Case, SideCase
from diagnostics.diagnosis.contrasts import contrast_of
from diagnostics.diagnosis.diagnosing import ASKED, key_layers_of, others_of
from diagnostics.diagnosis.features import Features
from diagnostics.diagnosis.leaning import one_shift
from diagnostics.diagnosis.looking import attention_test, filling
from diagnostics.diagnosis.remedies import remedy_of
from diagnostics.diagnosis.stages import STAGES
from diagnostics.probing.prober import Prober
from diagnostics.records.measurement_plan import OCCLUSION, PICTURES, QUICK, MeasurementPlan
from diagnostics.records.probes import Probe, groups_of, write_probes
from diagnostics.report.diagnosis_page import chain_svg, diagnosis_html
from diagnostics.report.languages import translated
from finetune.model import look_file
from finetune.model.look_file import Supervised
from tests.diagnostics.report.test_languages import seen

SIZE = (60, 40)
LOW = Thresholds(moved=0.0)
"""An untrained model depends on its pictures little."""
FEW = replace(LOW, probes=2, each_answer=2)
NO_FEATURES = Features(None, None, ())


@pytest.fixture(scope="module")
def probes(folder):
    """40 pictures of noise with a red or a blue box somewhere; an untrained model always rates one colour higher."""
    rng = np.random.default_rng(0)
    made = []
    for at in range(40):
        picture = Image.fromarray(rng.integers(60, 120, (SIZE[1], SIZE[0], 3), np.uint8))
        x, y = int(rng.integers(4, 30)), int(rng.integers(4, 14))
        fill, said = (((220, 20, 20), "red"), ((20, 20, 220), "tan"))[at % 2]
        ImageDraw.Draw(picture).rectangle((x, y, x + 23, y + 19), fill=fill)
        picture.save(folder / f"{at}.png")
        regions = {"box": ((x, y, x + 24, y + 20),), "foot": ((0, 38, 60, 40),)}
        foil = "tan" if said == "red" else "red"
        made.append(Probe(f"p{at}", "colours", (folder / f"{at}.png",), "?", said, foil, regions))
    return tuple(made)


def nothing(module, arguments, output):
    return torch.zeros_like(output)


@pytest.fixture(scope="module")
def sound(model, processor, probes):
    return diagnose_model(model, processor, probes, thresholds=LOW, name="tiny", probe_file="probes.json")


def test_what_the_tower_tells_is_found_and_the_model_is_left_as_it_was(sound, model, processor, probes):
    tests = sound.groups["colours"].evidence.tests
    assert tests["tower"].value == tests["tokens"].value == tests["answer state"].value == 1
    assert tests["tower"].ci95[0] > 0.9
    assert not model.training and all(not module._forward_pre_hooks for module in model.modules())
    again = diagnose_model(model, processor, probes, thresholds=LOW, records=sound.records, name="tiny")
    assert again.groups["colours"].evidence == sound.groups["colours"].evidence


@pytest.mark.parametrize(
    ("part", "stage"), [("transformer", "not seen"), ("attn_pool", "seen, not passed on")]
)
def test_a_fault_that_a_hook_plants_is_named_where_it_lies(model, processor, probes, part, stage):
    hook = model.transformer.visual.get_submodule(part).register_forward_hook(nothing)
    try:
        found = diagnose_model(model, processor, probes, thresholds=LOW)
    finally:
        hook.remove()
    assert found.stage("colours") == stage


def test_a_leaning_that_one_number_explains_is_known_said_otherwise(sound, model, processor, probes):
    """log p(red) − log p(tan) is 8 on red pictures and 2 on the others, and 5 on blank ones: shifted by 5, all are
    right."""
    leaning = {}
    for probe in probes:
        sign, record = (1 if probe.answer == "red" else -1), sound.records[probe.id]
        scores = replace(record.scores, answer_nats=5.0 * sign + 3.0, foil_nats=0.0)
        controls = tuple(one._replace(margin_nats=5.0 * sign) for one in record.picture_controls)
        leaning[probe.id] = replace(record, scores=scores, picture_controls=controls, interventions=())
    found = diagnose_model(model, processor, probes, thresholds=LOW, records=leaning)
    assert found.stage("colours") == "known, said otherwise"
    assert found.groups["colours"].evidence.tests["one shift"].value == 1


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def test_the_page_and_the_file_say_the_same(sound, probes, tmp_path):
    program.write(sound, probes, tmp_path)
    content = json.loads((tmp_path / "diagnosis.json").read_text())
    group = content["groups"]["colours"]
    assert content["version"] == 1 and content["model"] == {"name": "tiny", "family": "qwen-vl"}
    assert {"probes", "accuracy", "stage", "decides", "evidence", "remedy"} <= set(group)
    assert group["probes"] == 40 and group["accuracy"] == 0.5
    assert all({"value", "ci95", "threshold", "reason"} <= set(test) for test in group["evidence"].values())
    page = (tmp_path / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open and "{{" not in page
    assert group["stage"] in page and page.count("data:image/webp;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    text = program.table(sound)
    assert "colours" in text and f"\n  $ {group['remedy']}" in text


def at_each_stage(sound, probes):
    """The diagnosis as it is, and with each stage in its place, with another region that decides and without."""
    yield sound
    group = sound.groups["colours"]
    for name in (*STAGES, None):
        for decides in (None, "foot"):
            stage = group.stage._replace(name=name)
            remedy = remedy_of(
                stage, probes, decides=decides, model="tiny", probe_file="probes.json", resampler=True
            )
            evidence = replace(group.evidence, decides=decides)
            made = replace(group, stage=stage, evidence=evidence, remedy=remedy)
            yield replace(sound, groups={"colours": made})


def test_layers_to_supervise_leave_those_that_are_judged(sound):
    record = next(iter(sound.records.values()))
    share = np.full((9, 2), 0.5)
    share[4] = np.nan  # linear attention
    assert others_of(replace(record, visual_share=share, layers=(2, 8))) == [0, 3, 5, 7]
    assert others_of(replace(record, visual_share=share[:4], layers=(0, 1, 2))) == [3]
    assert others_of(replace(record, visual_share=share[:2], layers=(1, 0))) == []


def test_attention_that_was_trained_on_is_not_what_a_diagnosis_judges(
    model, processor, probes, tmp_path, capsys, monkeypatch
):
    """look.json beside the weights: judged are other layers than it names, and table, page and file say so."""
    write_probes(probes[:6], tmp_path / "probes.json")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    evenly = key_layers_of(model, None)
    look_file.write(tmp_path / "model", evenly[-1:], [], weight=0.2, loss="mass", connector=False)
    monkeypatch.setattr(program, "load", lambda name, **options: (model, processor))
    found = program.diagnose(
        str(tmp_path / "model"), tmp_path / "probes.json", tmp_path / "out", thresholds=FEW
    )
    words = f"Attention was trained on in layer {evenly[-1]}; it is judged only where it was not."
    assert found.trained == words and f"\n{words}\n" in program.table(found)
    content = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert content["attention_trained_on"] == {"layers": [evenly[-1]], "connector": False, "words": words}
    page = (tmp_path / "out" / "index.html").read_text()
    assert words in page and translated(words) in page
    assert all(evenly[-1] not in one.layers for one in found.records.values())


def test_key_layers_are_those_that_no_loss_saw_where_there_are_any(model):
    evenly = key_layers_of(model, None)
    everything = tuple(range(1 + max(evenly)))
    assert (
        key_layers_of(model, Supervised((), None))
        == evenly
        == key_layers_of(model, Supervised(everything, None))
    )
    left = key_layers_of(model, Supervised(evenly[:1], None))
    assert left and evenly[0] not in left and set(left) <= set(everything)


def test_a_map_of_a_layer_that_was_trained_on_says_so(sound, probes):
    """Where no other layer is left to be shown."""
    layers = next(iter(sound.records.values())).layers
    records = {name: replace(one, supervised_layers=layers) for name, one in sound.records.items()}
    told = "Attention was trained on in this layer: it looks where it was told to."
    group = sound.groups["colours"]
    unmeasured = replace(group, evidence=replace(group.evidence, layer=None))
    made = replace(sound, records=records, groups={"colours": unmeasured})
    assert told in diagnosis_html(made, probes) and translated(told)
    assert told not in diagnosis_html(sound, probes)


def test_no_english_sentence_is_left_in_the_chinese_page(sound, probes):
    for diagnosis in at_each_stage(sound, probes):
        page = diagnosis_html(diagnosis, probes, language="zh")
        assert '<html lang="zh-CN">' in page
        text = re.sub("[§.,:;]", " ", seen(page, "zh"))  # names do not part the words of a sentence
        left = re.findall(r"(?:\b[A-Za-z]{2,}\b[ ]+){2,}[A-Za-z]{2,}", text)
        assert not left
        assert not re.findall("[一-鿿]+", seen(page, "en"))


def test_words_that_tell_the_answer_are_no_picture_that_reached_its_state(sound, model, processor, probes):
    """The state tells the colours when both are asked for alike; asked in other words, it would tell the words."""
    worded = [replace(one, question="Which hue?") if one.answer == "tan" else one for one in probes]
    mixed = [replace(one, question="Which hue?") if at % 4 < 2 else one for at, one in enumerate(probes)]
    alike = sound.groups["colours"].evidence.tests["answer state"]
    otherwise, both = (
        diagnose_model(model, processor, asked, thresholds=LOW, records=sound.records)
        .groups["colours"]
        .evidence.tests["answer state"]
        for asked in (worded, mixed)
    )
    assert alike.holds and "grey" not in alike.reason
    assert otherwise.holds is None and "the words up to the answer tell it" in otherwise.reason
    assert "gets 100 % right" in otherwise.reason and translated(otherwise.reason)
    assert both.holds and "; with grey pictures " in both.reason and translated(both.reason)


def test_a_region_that_fills_the_picture_is_not_judged_by_where_is_looked(sound, model, processor, probes):
    """Whatever is looked at, a whole picture gets as much as its share: that is no sign of looking elsewhere."""
    whole = [replace(one, regions={"box": ((0, 0, 59, 39),)}) for one in probes]
    records = {name: replace(one, interventions=()) for name, one in sound.records.items()}
    found = diagnose_model(model, processor, whole, thresholds=LOW, records=records).groups["colours"]
    wrong = sum(one.scores.margin_nats <= 0 for one in records.values())
    for name in ("attention", "hiding"):
        leg = found.evidence.tests[name]
        assert leg.holds is None and translated(leg.reason)
        assert f"there are none beside {wrong} probes whose region fills the picture" in leg.reason
    assert found.stage.name is None and "fills the picture" in found.stage.reason
    # the others are judged as if these were not there
    some = [*whole[:30], *probes[30:]]
    cases = [Case(one, records[one.id], None) for one in some]
    wrong = [case for case in cases if case.record.scores.margin_nats <= 0]
    assert attention_test(wrong, LOW) == attention_test(
        [case for case in wrong if "foot" in case.probe.regions], LOW
    )
    warning = filling(some, "probes.json")
    assert (
        "in 30 of 40 probes the region fills the picture (p0, p1, p2 and 27 more): over 90 % of it" in warning
    )
    assert filling(probes, "probes.json") is None


def test_the_program_warns_of_regions_that_fill_the_picture(
    sound, model, processor, probes, tmp_path, monkeypatch, capsys
):
    write_probes(
        [replace(one, regions={"box": ((0, 0, 59, 39),)}) for one in probes], tmp_path / "probes.json"
    )
    monkeypatch.setattr(program, "check", lambda name, **options: None)
    monkeypatch.setattr(program, "load", lambda name, **options: (model, processor))
    monkeypatch.setattr(program, "diagnose_model", lambda *arguments, **options: sound)
    monkeypatch.setattr(program, "write", lambda *arguments, **options: None)
    program.diagnose("tiny", tmp_path / "probes.json", tmp_path / "out")
    assert "warning: " in (said := capsys.readouterr().out)
    assert "probes.json: in 40 of 40 probes the region fills the picture (p0, p1, p2 and 37 more)" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_margins_that_are_not_finite_are_refused(sound, model, processor, probes, value):
    records = dict(sound.records)
    records["p3"] = replace(records["p3"], scores=replace(records["p3"].scores, foil_nats=value))
    controls = (records["p7"].picture_controls[0]._replace(margin_nats=value),)
    records["p7"] = replace(records["p7"], picture_controls=controls)
    with pytest.raises(
        ValueError, match=r"probe p3: found a margin of -?(nan|inf); 2 of 40 probes .* overflow"
    ):
        diagnose_model(model, processor, probes, thresholds=LOW, records=records)


def test_a_model_that_overflows_is_refused_before_regions_are_hidden(model, processor, probes, monkeypatch):
    asked, run_all = [], Prober.run_all

    def counted(self, *arguments, **options):
        asked.append(self.depth.kinds)
        return run_all(self, *arguments, **options)

    monkeypatch.setattr(Prober, "run_all", counted)
    hook = model.lm_head.register_forward_hook(lambda module, given, found: found * float("nan"))
    try:
        with pytest.raises(ValueError, match="probe p0: found a margin of nan; 4 of 4 probes"):
            diagnose_model(model, processor, probes[:4], thresholds=FEW)
    finally:
        hook.remove()
    assert asked == [ASKED.kinds]


def test_a_probe_is_judged_by_what_it_was_asked_first(model, processor, probes, monkeypatch):
    """In another batch a margin near 0 may change its sign, and what else was measured goes with the first one."""
    passes, run_all = [], Prober.run_all

    def kept(self, *arguments, **options):
        passes.append({one.probe_id: one for one in run_all(self, *arguments, **options)})
        return [*passes[-1].values()]

    monkeypatch.setattr(Prober, "run_all", kept)
    found = diagnose_model(model, processor, probes[:4], thresholds=FEW)
    first, second = passes
    assert second
    for name, record in found.records.items():
        assert record.scores is first[name].scores and record.rows is first[name].rows
        assert record.interventions == (second[name].interventions if name in second else ())


def test_guards_of_another_foil_do_not_stand_in_for_those_of_this_one(sound, probes):
    """One shift needs the pictures of probes that have the very pair, on both sides, however many others there are."""
    reds, tans = ([one for one in probes if one.answer == answer] for answer in ("red", "tan"))
    others = [replace(one, group="tans") for one in tans]
    elsewhere = [replace(one, foil="blue") for one in others]
    two_pictures = [replace(others[at % 2], id=f"copy{at}") for at in range(12)]
    german = [replace(one, id=f"de-{one.id}", answer="rot", foil="braun", spellings=("rot",)) for one in reds]
    german += [
        replace(one, id=f"de-{one.id}", answer="braun", foil="blau", spellings=("braun",)) for one in others
    ]
    found = []
    for guards in (others, [*elsewhere[2:], *two_pictures], [*others, *german]):
        contrast = contrast_of("colours", groups_of([*reds, *guards]), each_answer=10)
        assert not contrast.lack
        cases = [
            Case(side.probe, sound.records.get(side.probe.id, sound.records[tans[0].id]), None)
            for side in contrast.sides
        ]
        sides = [SideCase(*both, NO_FEATURES) for both in zip(contrast.sides, cases, strict=True)]
        found.append(one_shift(sides, contrast, LOW))
    assert found[0].holds is not None and found[0].probes == found[2].probes == 40 and found[1].holds is None
    assert "too few guards have this group's right answer as their wrong one" in found[1].reason


def test_the_chain_marks_where_it_is_lost():
    assert 'class="lost"><rect x="294"' in chain_svg("seen, not passed on")
    assert chain_svg("seen, not passed on").count('class="passed"') == 2
    assert "lost" not in chain_svg("right") and "not determined" in chain_svg(None)


def test_five_probes_are_too_few_and_cost_no_more_than_their_answers(model, processor, probes):
    found = diagnose_model(model, processor, probes[:5])
    assert found.stage("colours") == "too few probes"
    assert set(found.groups["colours"].evidence.tests) == {"answers"}
    assert all(not record.interventions for record in found.records.values())


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["MODEL", "--probes", "none.json"], "none.json"),
        (["nowhere/at/all", "--probes", "PROBES"], "nowhere/at/all"),
        (["MODEL", "--probes", "PROBES", "--least_told", "2"], "--least_told: found 2.0; expected a share"),
    ],
)
def test_wrong_input_is_one_message_and_status_2(
    arguments, fault, model, processor, probes, tmp_path, capsys
):
    write_probes(probes, tmp_path / "probes.json")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    named = {"MODEL": str(tmp_path / "model"), "PROBES": str(tmp_path / "probes.json")}
    with pytest.raises(SystemExit) as ended:
        program.main([*(named.get(one, one) for one in arguments), "--output_dir", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and fault in told and told.count("error:") == 1
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_group_to_be_kept_that_is_wrong_is_diagnosed_as_if_a_quick_probing_had_hidden_its_regions(
    model, processor, probes
):
    kept = tuple(replace(probe, group="neighbour") for probe in probes)
    found = {}
    for plan in (QUICK, replace(QUICK, kept=True)):
        prober = Prober(model, processor, key_layers=[1], probes=kept, depth=replace(plan, relations=False))
        records = {one.probe_id: one for one in prober.run_all(0, "tiny")}
        assert bool(records["p0"].interventions) is plan.kept
        [found[plan.kept]] = diagnose_model(model, processor, kept, records=records).groups.values()
    hidden, quick = (one.evidence.tests["hiding"] for one in (found[True], found[False]))
    assert quick.probes == hidden.probes > 0 and quick.value == pytest.approx(hidden.value, abs=0.2)
    assert found[False].stage.name == found[True].stage.name


def test_what_is_hidden_of_a_group_to_be_kept_is_read_in_the_precision_around(
    model, processor, probes, monkeypatch
):
    kept = tuple(replace(probe, group="retention") for probe in probes)
    made = []
    run_all = Prober.run_all
    monkeypatch.setattr(
        Prober, "run_all", lambda self, *a, **b: made.append(self.autocast) or run_all(self, *a, **b)
    )
    for precision in (None, torch.bfloat16):
        depth = replace(QUICK, relations=False, generate=False)
        prober = Prober(model, processor, key_layers=[1], probes=kept, depth=depth, autocast=precision)
        records = {one.probe_id: one for one in prober.run_all(0, "tiny")}
        with torch.autocast("cpu", precision, enabled=precision is not None):
            diagnose_model(model, processor, kept, records=records)
    assert made == [None, None, torch.bfloat16, torch.bfloat16]
    sizes = []
    monkeypatch.setattr(
        Prober, "run_all", lambda self, *a, **b: sizes.append(self.batch_size) or run_all(self, *a, **b)
    )
    diagnose_model(model, processor, kept, records=records, batch_size=2)
    assert sizes == [2]


def test_the_monitor_diagnoses_step_0(tmp_path, model, processor, probes, capsys):
    """Into diagnosis.json, the log and TensorBoard, from the records of the baseline, unless it is switched off."""
    plan = MeasurementPlan("small", generate=False, kinds=(OCCLUSION,), controls=1, pictures=PICTURES)
    monitor = AttentionMonitor(processor, probes[:20], tmp_path / "run", key_layers=(0,), depth=plan)
    monitor.probe(0, model)
    monitor.finish()
    written = json.loads((tmp_path / "run" / "attention" / "diagnosis.json").read_text(encoding="utf-8"))
    assert written["groups"]["colours"]["probes"] == 20
    assert "diagnosis of colours: " in capsys.readouterr().out
    off = AttentionMonitor(processor, probes[:2], tmp_path / "off", key_layers=(0,), diagnose=False)
    off.probe(0, model)
    off.finish()
    assert not (tmp_path / "off" / "attention" / "diagnosis.json").exists()
