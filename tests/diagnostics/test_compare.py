"""What a comparison says, from made-up records whose numbers are known."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from diagnostics.compare import compare, compare_sources, main, table
from diagnostics.comparison.group_report import comparison_of
from diagnostics.comparison.pairs import cost, decisive_region, pair_all, pair_records
from diagnostics.drawing.board import AttentionBoard
from diagnostics.drawing.tensorboard import TensorBoardSink
from diagnostics.probing.prober import Prober
from diagnostics.records.archive import load_records
from diagnostics.records.measurement_plan import WATCH
from diagnostics.records.probes import Relation, write_probes
from diagnostics.records.record import AttentionRecord, Intervention
from finetune.model import look_file, seen_file
from finetune.model.checkpoint import load
from tests.diagnostics.comparison.legs.test_answers import FEW_PICTURES_WRONG, on_shared_pictures
from tests.diagnostics.comparison.made_pairs import GUARDS, Made, flat, pairs_of
from tests.diagnostics.show_samples import probes, records, run_folder
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes, tiny_processor
from tests.finetune.model.a_run import a_run


def test_the_numbers_of_a_group(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=20, guards=20)
    comparison = comparison_of(pair_all(of, records(of, 0), records(of, 10)))
    assert comparison["version"] == 1 and comparison["key_layers"] == [1, 3]
    assert comparison["before"] == {"model": "base", "step": 0}
    assert comparison["after"] == {"model": "checkpoint-10", "step": 10}
    group = comparison["groups"]["sphere-building"]
    assert group["probes"] == 20 and group["verdict"] == "corrected"
    assert (group["accuracy"]["before"], group["accuracy"]["after"]) == (0.0, 1.0)
    margins = [(-1.5 - i / 10, 2.0 + i / 10) for i in range(20)]
    assert group["margin_nats"]["before"] == pytest.approx(sum(m[0] for m in margins) / 20)
    assert group["margin_nats"]["after"] == pytest.approx(sum(m[1] for m in margins) / 20)
    low, high = group["margin_nats"]["ci95"]
    assert low < group["margin_nats"]["difference"] < high
    assert group["margin_nats"]["difference"] == pytest.approx(3.5 + 1.9)
    enrichment = group["enrichment"]
    assert enrichment["region"] == "spheres" and enrichment["layer"] in (1, 3)
    assert enrichment["before"] == pytest.approx(0.5 / 23 * 24) and enrichment["after"] == pytest.approx(12.0)
    assert enrichment["ci95"][0] > 11 and enrichment["p_adjusted"] < 0.001
    assert [one["layer"] for one in group["enrichment_by_layer"]] == [1, 3]
    # the sample's region costs 1.75 nats after training and nothing before; random regions always a tenth
    occlusion = group["occlusion_nats"]
    assert (occlusion["before"], occlusion["after"]) == pytest.approx((0.0, 1.75))
    assert occlusion["control"] == pytest.approx({"before": 0.1, "after": 0.1})
    assert group["knockout_nats"]["control"]["after"] == pytest.approx(0.1)
    assert set(group["drift_jsd_nats"]) == {"1", "3"} and group["drift_jsd_nats"]["1"] > 0.1
    assert group["visual_share"]["3"]["after"] == pytest.approx(5 / 12)
    assert group["said_the_answer"] == {"before": 0.0, "after": 1.0}
    assert group["legs"]["answers"]["reason"] == group["reasons"][0]
    assert len(group["reasons"]) == len(group["legs"]) == 6
    kept = comparison["groups"]["retention"]
    assert kept["verdict"] == "kept" and kept["enrichment"] is None and kept["occlusion_nats"] is None


def test_the_numbers_of_a_probe(tmp_path: Path) -> None:
    of = probes(tmp_path)
    entry = comparison_of(pair_all(of, records(of, 0), records(of, 10)))["probes"][1]
    assert entry["id"] == "sphere-building-1" and entry["region"] == "spheres"
    assert entry["said"] == {"before": "广州塔", "after": "东方明珠"}
    assert entry["margin_nats"] == pytest.approx({"before": -1.6, "after": 2.1})
    assert entry["correct"] == {"before": False, "after": True}
    mass = entry["layers"][0]["regions"]["spheres"]["mass"]
    assert mass == pytest.approx({"before": 0.5 / 23, "after": 0.5})
    # the body covers the cells of rows 1 to 3 in column 2, the bottom one of them (number 20) seen before
    assert entry["layers"][1]["regions"]["body"]["mass"]["before"] == pytest.approx(0.5 + 2 * 0.5 / 23)


def test_few_probes_decide_nothing(tmp_path: Path) -> None:
    of = probes(tmp_path)
    groups = comparison_of(pair_all(of, records(of, 0), records(of, 10)))["groups"]
    assert {group["verdict"] for group in groups.values()} == {"too few probes"}


def test_without_a_foil_nothing_is_claimed(tmp_path: Path) -> None:
    of = [replace(probe, foil=None) for probe in probes(tmp_path)]
    groups = comparison_of(pair_all(of, records(of, 0), records(of, 10)))["groups"]
    assert groups["sphere-building"]["verdict"] == "answers not measured"
    assert (
        groups["sphere-building"]["accuracy"] is None and groups["sphere-building"]["occlusion_nats"] is None
    )


def test_both_ends_of_a_relation_are_reported(tmp_path: Path) -> None:
    of = [
        replace(probe, relation=Relation("on", "spheres", "body")) if probe.regions else probe
        for probe in probes(tmp_path)
    ]
    relation = comparison_of(pair_all(of, records(of, 0), records(of, 10)))["groups"]["sphere-building"][
        "relation_enrichment"
    ]
    assert relation["subject"][0]["after"] == pytest.approx(12.0)
    assert relation["object"][1]["layer"] == 3 and relation["object"][1]["difference"] == pytest.approx(
        0.0, abs=1e-6
    )


def test_a_cost_is_margin_lost(tmp_path: Path) -> None:
    record = records(probes(tmp_path), 10)["sphere-building-0"]
    assert cost(record, "occlusion", "spheres") == pytest.approx((1.75, 0.1))
    assert cost(record, "occlusion", "body") is None


def test_the_smallest_of_the_regions_that_cost_most_decides(tmp_path: Path) -> None:
    probe = replace(
        probes(tmp_path)[0],
        regions={"body": ((0, 0, 50, 80),), "spheres": ((10, 10, 20, 30),), "sky": ((60, 0, 90, 20),)},
    )
    record = records([probe], 10)[probe.id]
    margin = record.scores.margin_nats
    assert margin is not None and margin > 0

    def costing(**costs: float) -> AttentionRecord:
        tried = (Intervention("occlusion", name, margin - cost, ()) for name, cost in costs.items())
        return replace(record, interventions=tuple(tried))

    assert decisive_region(probe, costing(body=5.0, spheres=4.6, sky=0.1), "occlusion") == "spheres"
    assert decisive_region(probe, costing(body=5.0, spheres=4.0, sky=0.1), "occlusion") == "body"
    assert decisive_region(probe, costing(body=-1.0, spheres=-2.0), "occlusion") == "spheres"
    assert (
        decisive_region(probe, costing(body=0.15, spheres=0.1), "occlusion") is None
    )  # below 10 % of the margin
    assert (
        decisive_region(probe, costing(body=5.0, spheres=1.0, sky=4.5), "occlusion") is None
    )  # no clear lead
    assert decisive_region(probe, costing(body=5.0), "occlusion") is None
    assert decisive_region(probe, costing(body=5.0, spheres=4.6), "knockout") is None
    led_by_the_foil = replace(
        costing(),
        scores=replace(record.scores, answer_nats=-2.0, foil_nats=0.0),
        interventions=(
            Intervention("occlusion", "body", -1.9, ()),
            Intervention("occlusion", "sky", 0.5, ()),
        ),
    )
    assert decisive_region(probe, led_by_the_foil, "occlusion") == "sky"


def test_records_that_cannot_be_set_against_each_other_are_an_error(tmp_path: Path) -> None:
    of = probes(tmp_path)
    before, after = records(of, 0), records(of, 10)
    other = replace(after["retention-0"], layers=(1, 2))
    with pytest.raises(
        ValueError, match=r"retention-0: records differ in layers: \(1, 3\) before .* \(1, 2\) after"
    ):
        pair_records(of[3], before["retention-0"], other)
    del after["retention-1"]
    with pytest.raises(ValueError, match="1 of 6 probes lack a record before or after .retention-1."):
        compare(before, after, tmp_path, probes=of)


def test_the_command_compares_folders_of_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attention = run_folder(tmp_path, per_group=20, guards=20)
    folders = ["--before", str(attention / "step-000000"), "--after", str(attention / "step-000010")]
    main([*folders, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "0 % → 100 %" in printed and "sphere-building: corrected" in printed
    assert str(tmp_path / "out" / "comparison" / "index.html") in printed
    comparison = json.loads((tmp_path / "out" / "comparison" / "comparison.json").read_text())
    assert set(comparison) == {
        *("version", "before", "after", "key_layers", "thresholds", "collapse", "groups", "probes")
    }
    assert (tmp_path / "out" / "comparison" / "index.html").stat().st_size > 20_000


def test_a_pipeline_can_gate_on_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attention = run_folder(tmp_path, per_group=20)
    same = ["--before", str(attention / "step-000000"), "--output_dir", str(tmp_path / "out")]
    after = ["--after", str(attention / "step-000010")]
    with pytest.raises(SystemExit) as stopped:
        main([*same, *after, "--require", "corrected"])
    assert stopped.value.code == 1
    assert 'must be "corrected", is "corrected, unguarded". No guards' in capsys.readouterr().err
    main([*same, *after, "--require", "corrected", "--allow_unguarded"])
    assert "required: corrected; met" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*same, *after, "--least_mediated", "10"])
    assert stopped.value.code == 2
    assert "--least_mediated: found 10.0; expected a share from 0 to 1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*same, "--after", str(attention / "step-000000"), "--require", "sphere-building=corrected"])
    assert stopped.value.code == 1
    assert 'sphere-building: must be "corrected", is "it did not move"' in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*same, *after, "--require", "towers=corrected"])
    assert stopped.value.code == 2 and "found no group 'towers'" in capsys.readouterr().err


def test_other_measures_of_the_same_maps(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=3)
    before, after = records(of, 0), records(of, 10)
    group = comparison_of(pair_all(of, before, after))["groups"]["sphere-building"]
    found = group["localisation"]["3"]
    assert set(found) == {"pointing_game", "iou", "auc", "nss", "entropy", "trained_on"}
    assert found["nss"]["after"] > found["nss"]["before"] and found["auc"]["after"] > found["auc"]["before"]
    assert group["further_maps"] is None and group["sink_share"] is None
    retention = comparison_of(pair_all(of, before, after))["groups"]["retention"]
    assert retention["localisation"] is None

    def with_more(record: AttentionRecord) -> AttentionRecord:
        sinks = np.zeros((2, record.rows.shape[-1]), bool)
        sinks[:, 0] = True
        cells = record.image_tokens[0].grid[0] * record.image_tokens[0].grid[1]
        region = np.zeros(cells)
        region[0] = -1.0
        return replace(
            record, sinks=sinks, maps={"relative": np.stack([region, region]), "rollout": region[None]}
        )

    more = [{name: with_more(record) for name, record in side.items()} for side in (before, after)]
    group = comparison_of(pair_all(of, *more))["groups"]["sphere-building"]
    record = more[1]["sphere-building-0"]
    assert group["sink_share"]["1"]["after"] == pytest.approx(
        np.mean([more[1][f"sphere-building-{i}"].rows[0, :, 0, 0].mean() for i in range(3)])
    )
    assert set(group["further_maps"]) == {"relative", "rollout"} and record.layers == (1, 3)
    assert set(group["further_maps"]["relative"]) == {"1", "3"}
    assert set(group["further_maps"]["rollout"]) == {"all"}
    more[1] = {name: replace(one, supervised_layers=(3,)) for name, one in more[1].items()}
    group = comparison_of(pair_all(of, *more))["groups"]["sphere-building"]
    marked = {layer: one["trained_on"] for layer, one in group["further_maps"]["relative"].items()}
    assert marked == {layer: one["trained_on"] for layer, one in group["localisation"].items()}
    assert marked == {"1": False, "3": True} and group["further_maps"]["rollout"]["all"]["trained_on"]


def test_a_checkpoint_against_itself_gives_no_finding(tmp_path: Path) -> None:
    of = probes(tmp_path, per_group=20)
    comparison = comparison_of(pair_all(of, records(of, 10), records(of, 10)))
    for group in comparison["groups"].values():
        assert group["verdict"] in ("it did not move", "kept")
        assert group["heads"] is None or group["heads"]["count"] == 0
        assert set(group["drift_jsd_nats"].values()) == {0.0}


def test_the_best_model_of_a_run_is_no_point_on_the_way(capsys, tmp_path: Path) -> None:
    """Its records stand at the last step, in place of that step's own."""
    attention = run_folder(tmp_path, per_group=3, steps=(0, 5, 10, 20))
    folders = [str(attention / f"step-0000{step:02}") for step in (0, 5, 10, 20)]
    way = compare_sources(folders[0], folders[-1], tmp_path / "way", between=folders[1:-1])
    assert way["series"]["steps"] == [0, 5, 10, 20]
    (attention / "step-000020" / "complete.json").write_text('{"best": "checkpoint-5"}')
    best = compare_sources(folders[0], folders[-1], tmp_path / "best", between=folders[1:-1])
    assert best["series"]["steps"] == [0, 5, 10] and best["groups"] == way["groups"]
    said = capsys.readouterr().out
    assert f"leaves out {folders[-1]}: its records are of checkpoint-5, the best model" in said
    places = compare_sources(folders[2], folders[-1], tmp_path / "places", between=folders[:2])  # in no order
    assert places["series"]["steps"] == [0, 1, 2]
    (attention / "step-000000" / "complete.json").write_text('{"best": "checkpoint-9"}')  # of another run
    base = compare_sources(folders[0], folders[2], tmp_path / "base", between=folders[1:2])
    assert base["series"]["steps"] == [0, 5, 10]


def test_the_way_between_two_checkpoints(tmp_path: Path) -> None:
    attention = run_folder(tmp_path, per_group=3)
    ends = str(attention / "step-000000"), str(attention / "step-000010")
    plain = compare_sources(*ends, tmp_path / "plain")
    assert "series" not in plain
    of = probes(tmp_path, per_group=3)
    for name, record in records(of, 10).items():
        replace(record, step=5).save(attention / "step-000005" / f"{name}.safetensors")
    way = compare_sources(*ends, tmp_path / "way", between=[str(attention / "step-000005")])
    assert way["series"]["steps"] == [0, 5, 10] and way["groups"] == plain["groups"]
    assert way["series"]["drift_jsd_nats"]["3"][0] == 0.0
    # What began when is shown on the page, in the table and in TensorBoard.
    assert (
        "onset" not in plain
        and "What came first" not in (tmp_path / "plain/comparison/index.html").read_text()
    )
    words = way["onset"]["groups"]["sphere-building"]["words"]
    assert words == "Not judged: too few pictures."
    page = (tmp_path / "way" / "comparison" / "index.html").read_text()
    named = '<li><span><b translate="no">sphere-building</b>:</span> '
    assert f'{named}<span><span lang="en">{words}</span>' in page and f"  onset: {words}" in table(way)
    texts: dict[str, str] = {}
    writer = SimpleNamespace(
        add_text=lambda tag, text, step: texts.update({tag: text}),
        add_scalar=lambda *_: None,
        add_custom_scalars=lambda _: None,
        flush=lambda: None,
    )
    AttentionBoard([TensorBoardSink(writer, tmp_path)], nullcontext).write_verdicts(way, 10)
    assert texts["4 drift/onset/sphere-building"] == words


def test_the_table_lines_up_chinese(tmp_path: Path) -> None:
    of = [replace(probe, group="球体建筑") if probe.regions else probe for probe in probes(tmp_path)]
    lines = table(comparison_of(pair_all(of, records(of, 0), records(of, 10)))).splitlines()
    assert lines[2].startswith("球体建筑   3") and lines[3].startswith("retention  3")


def test_the_table_has_both_shares_where_probes_share_pictures(tmp_path: Path) -> None:
    shared = table(comparison_of(on_shared_pictures(tmp_path, *FEW_PICTURES_WRONG)))
    assert "  0 % → 70 %, 92.9 % by picture  " in shared


def test_the_table_has_a_mark_for_each_leg_and_says_what_they_are(tmp_path: Path) -> None:
    comparison = comparison_of(
        flat(pairs_of(tmp_path, 球体建筑=Made(), retention=replace(GUARDS, answer="a road")))
    )
    lines = table(comparison).splitlines()
    at = lines[0].index("legs")
    assert lines[2][at - 4 :].startswith(
        "✓✓✓✓✓–  corrected, unguarded"
    )  # four letters of two columns before it
    assert lines[3][at:].startswith("        kept")
    legend = (
        "legs: answers, picture, attention, cause, mediation, guards; ✓ holds, ✗ does not, – not measured"
    )
    assert legend in lines
    assert any(line.startswith("  ✓ answers: 100 % of the answers are right") for line in lines)
    assert any(line.startswith("  – guards: No guards:") for line in lines)
    assert any(line.startswith("  - 100 % of the probes are answered correctly") for line in lines)
    for group in comparison["groups"].values():
        del group["legs"]  # as an earlier version wrote it
    older = table(comparison)
    assert "✓" not in older and "  - 100 % of the answers are right" in older


@pytest.mark.parametrize(
    ("before", "probe_file", "message"),
    [
        ("empty", None, "found neither config.json, adapter_config.json nor records"),
        ("orphan", None, "--probes: no probe file given, and none beside the records"),
    ],
)
def test_sources_that_cannot_be_compared(
    tmp_path: Path, before: str, probe_file: Path | None, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    of = probes(tmp_path)
    records(of, 0)["retention-0"].save(tmp_path / "orphan" / "retention-0.safetensors")
    source = str(tmp_path / before)
    with pytest.raises(ValueError, match=message):
        compare_sources(source, source, tmp_path / "out", probes_file=probe_file)


def test_the_command_says_what_is_wrong_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["--before", str(tmp_path / "empty"), "--after", "x", "--output_dir", str(tmp_path)])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def refuse(*_: object) -> None:
    raise ValueError("found 1 × 300 pixels")


def test_models_and_adapters_are_probed_and_their_records_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One loaded model serves both sides of a LoRA: with the adapter off it is the base, number for number."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    tiny_model().save_pretrained(base)
    tiny_processor(base).save_pretrained(base)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(adapter)
    of = tiny_probes(tmp_path)
    write_probes(of, tmp_path / "probes.json")
    seen_file.write(adapter, [hashlib.sha256(of[1].images[0].read_bytes()).hexdigest()])

    out = tmp_path / "out"
    comparison = compare_sources(
        str(base), str(adapter), out, probes_file=tmp_path / "probes.json", key_layers="0,2"
    )

    assert comparison["key_layers"] == [0, 2] and comparison["after"]["model"] == str(adapter)
    entry = comparison["probes"][0]
    assert entry["margin_nats"]["before"] != pytest.approx(entry["margin_nats"]["after"])
    before = load_records(out / "attention" / "before")
    alone = Prober(*load(base), key_layers=(0, 2), probes=of).run(of[0], 0, "base")
    assert before["disc-0"].scores == alone.scores
    after = load_records(out / "attention" / "after")
    for probe_id, record in after.items():
        assert record.trained_picture is (probe_id == "disc-1") and not before[probe_id].trained_picture
        assert record.patched_from is not None and record.patched_from.model == str(base)
        assert record.patched_from.margin_nats == pytest.approx(before[probe_id].scores.margin_nats, abs=1e-4)
        assert len(record.patches) == 5 and before[probe_id].patches == ()
    # Alone and in a batch: some CPUs sum in another order then.
    np.testing.assert_allclose(before["disc-0"].rows, alone.rows, rtol=1e-5, atol=1e-7)
    # the records that were kept are a source of their own
    again = compare_sources(
        str(out / "attention" / "before"), str(out / "attention" / "after"), tmp_path / "again"
    )
    assert again["probes"] == comparison["probes"]
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="that this model cannot read"):
        patched.setattr("diagnostics.probing.prompts.ProbeEncoder._check", refuse)
        compare_sources(
            str(base), str(adapter), tmp_path / "no", probes_file=tmp_path / "probes.json", key_layers="0"
        )
    with pytest.raises(ValueError, match="--key_layers: found 'x'; expected auto, or numbers"):
        compare_sources(str(base), str(adapter), out, probes_file=tmp_path / "probes.json", key_layers="x")


def base_and_adapter(folder: Path, **options: object) -> tuple[Path, Path]:
    """Saved: a base, and a LoRA of it whose tensors and biases have trained."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    tiny_model().save_pretrained(base)
    tiny_processor(base).save_pretrained(base)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["c_attn"], **options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(adapter)
    return base, adapter


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_the_base_is_loaded_where_the_adapter_switched_off_is_not_the_base(tmp_path: Path, bias: str) -> None:
    base, adapter = base_and_adapter(tmp_path, bias=bias)
    of = tiny_probes(tmp_path, 2)
    write_probes(of, tmp_path / "probes.json")
    out = tmp_path / "out"
    compare_sources(str(base), str(adapter), out, probes_file=tmp_path / "probes.json", key_layers="0,2")
    before, after = (load_records(out / "attention" / name) for name in ("before", "after"))
    alone = Prober(*load(base), key_layers=(0, 2), probes=of).run(of[0], 0, "base")
    assert before[of[0].id].scores == alone.scores
    for name, record in after.items():
        assert record.patched_from is not None
        assert record.patched_from.margin_nats == pytest.approx(before[name].scores.margin_nats, abs=1e-4)


def test_other_settings_of_an_adapter_s_processor_are_said_of_every_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = base_and_adapter(tmp_path)
    write_probes(tiny_probes(tmp_path, 2), tmp_path / "probes.json")

    def warned(out: str) -> bool:
        found = compare_sources(
            str(base), str(adapter), tmp_path / out, probes_file=tmp_path / "probes.json", key_layers="0"
        )
        line = (
            "the adapter's processor, whose settings are not the base's own (image_mean): the base by itself"
        )
        said = [any(line in one for one in group["warnings"]) for group in found["groups"].values()]
        assert said and [line in capsys.readouterr().out] * len(said) == said
        return said[0]

    processor = tiny_processor(base)
    processor.save_pretrained(adapter)
    assert not warned("alike")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(adapter)
    assert warned("other")


def test_an_adapter_that_brings_its_processor_is_compared_with_a_base_that_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = base_and_adapter(tmp_path)
    tiny_processor(base).save_pretrained(adapter)
    for file in base.iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    write_probes(tiny_probes(tmp_path, 2), tmp_path / "probes.json")
    found = compare_sources(
        str(base), str(adapter), tmp_path / "out", probes_file=tmp_path / "probes.json", key_layers="0"
    )
    assert found["groups"]
    assert not any("processor" in one for group in found["groups"].values() for one in group["warnings"])
    assert "processor" not in capsys.readouterr().out


def test_what_the_base_of_an_adapter_was_trained_on_is_said_of_the_adapter_too(tmp_path: Path) -> None:
    base, adapter = base_and_adapter(tmp_path)
    of = tiny_probes(tmp_path, 2)
    write_probes(of, tmp_path / "probes.json")
    first, second = (hashlib.sha256(one.images[0].read_bytes()).hexdigest() for one in of)
    seen_file.write(base, [first])
    seen_file.write(adapter, [second])
    look_file.write(base, [2], [first], weight=0.2, loss="mass")
    look_file.write(adapter, [0], None, weight=0.2, loss="mass")
    out = tmp_path / "out"
    compare_sources(str(base), str(adapter), out, probes_file=tmp_path / "probes.json", key_layers="0,2")
    before, after = (load_records(out / "attention" / name) for name in ("before", "after"))
    assert [one.trained_picture for one in before.values()] == [True, False]
    assert [one.trained_picture for one in after.values()] == [True, True]
    assert [one.supervised_layers for one in before.values()] == [(2,)] * 2
    assert [one.supervised_layers for one in after.values()] == [(0, 2)] * 2
    assert [one.supervised_picture for one in after.values()] == [True, False]


def test_pictures_of_probes_that_a_run_was_not_told_of_are_found_in_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without --monitor leaves no seen.json; probes may also be written after a run."""
    base, adapter = base_and_adapter(tmp_path)
    of = tiny_probes(tmp_path, 3)
    write_probes(of, tmp_path / "probes.json")
    run = a_run(tmp_path, [of[1].images[0]], model_name_or_path=str(base))
    (run / "run.json").rename(adapter / "run.json")
    out, asked = tmp_path / "out", tmp_path / "probes.json"
    compare_sources(str(base), str(adapter), out, probes_file=asked, key_layers="0,2", depth=WATCH)
    before, after = (load_records(out / "attention" / name) for name in ("before", "after"))
    assert [one.trained_picture for one in before.values()] == [False] * 3
    assert [one.trained_picture for one in after.values()] == [False, True, False]
    assert "not known" not in capsys.readouterr().out
    (tmp_path / "data.json").unlink()
    compare_sources(str(base), str(adapter), out, probes_file=asked, key_layers="0,2", depth=WATCH)
    assert f"{tmp_path / 'data.json'} is gone; it is not known whether" in capsys.readouterr().out


def test_a_second_model_lends_its_attention_where_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All weights differ, so that both models are loaded; where one cannot stay, the reason is printed."""
    for seed, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        tiny_processor(tmp_path / name).save_pretrained(tmp_path / name)
    write_probes(tiny_probes(tmp_path), tmp_path / "probes.json")

    def patches(before: str, after: str) -> list[int]:
        ends = (str(tmp_path / before), str(tmp_path / after))
        out = tmp_path / f"out-{before}-{after}"
        compare_sources(*ends, out, probes_file=tmp_path / "probes.json", key_layers="0,2")
        return [len(one.patches) for one in load_records(out / "attention" / "after").values()]

    assert patches("base", "tuned") == [5, 5, 5]
    assert "is not put back" not in capsys.readouterr().out
    with monkeypatch.context() as full:
        full.setattr("diagnostics.probing.before.available_bytes", lambda place: 1000)
        assert patches("base", "tuned") == [0, 0, 0]
    assert (
        "not put back into the model after: a second model beside this one needs" in capsys.readouterr().out
    )
