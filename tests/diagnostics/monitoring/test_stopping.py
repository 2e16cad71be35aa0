"""Where attention is trained on so that none is left to be judged, training cannot end by being corrected."""

from dataclasses import replace

import pytest

from diagnostics.drawing.tensorboard import written_tags
from diagnostics.monitor import AttentionMonitor
from diagnostics.monitoring.stopping import why_unjudged
from diagnostics.records.probes import read_probes
from finetune.model import look_file
from tests.diagnostics.test_monitor import no_drawing, probe_file  # noqa: F401  (fixtures)
from tests.diagnostics.tiny_qwen_vl import tiny_model

LINE = "attention will not be judged, since "


@pytest.mark.parametrize(
    ("layers", "connector", "why"),
    [
        ((), False, ""),
        ((1, 3), False, ""),
        ((2, 1, 0), False, "it is trained on in every key layer (0, 2); to have it judged, name layers with"),
        ((1,), True, "the attention of the resampler is trained on"),
    ],
)
def test_why(layers, connector, why):
    found = why_unjudged((2, 0), layers, connector=connector)
    assert found.startswith(why) and bool(found) is bool(why)


def begun(processor, probes, out, layers=None, *, connector=False, **options):
    monitor = AttentionMonitor(processor, probes, out, key_layers=(0, 2), diagnose=False, **options)
    if layers is not None:
        monitor.will_be_supervised(lambda: layers or monitor.chosen_layers, connector=connector)
    monitor.probe(0, tiny_model())
    monitor.finish()


@pytest.mark.parametrize(
    ("layers", "connector", "said"),
    [
        (None, False, ""),
        ((1, 2), False, ""),
        ((), False, "it is trained on in every key layer (0, 2)"),  # --look_layers key
        ((0, 1, 2), False, "it is trained on in every key layer (0, 2)"),
        ((1,), True, "the attention of the resampler is trained on"),
    ],
)
def test_a_run_that_leaves_nothing_to_be_judged_says_so_or_is_refused(
    processor,
    probe_file,  # noqa: F811
    tmp_path,
    capsys,
    layers,
    connector,
    said,
):
    begun(processor, probe_file, tmp_path / "a", layers, connector=connector)
    assert capsys.readouterr().out.count(LINE + said) == bool(said)
    if said:
        with pytest.raises(ValueError, match="stop_when corrected cannot be met: " + LINE):
            begun(processor, probe_file, tmp_path / "b", layers, connector=connector, stop_when="corrected")
        assert not (tmp_path / "b" / "attention").exists()


@pytest.mark.parametrize(
    ("layers", "connector", "told", "pinned"),
    [
        ((1, 2), False, {2}, {0}),
        ((), False, {0, 2}, set()),
        ((1,), True, {0, 2}, set()),
        (None, False, set(), {2}),
    ],
)
def test_curves_of_layers_that_are_trained_on_say_so_and_are_not_pinned(
    processor,
    probe_file,  # noqa: F811
    tmp_path,
    capsys,
    layers,
    connector,
    told,
    pinned,
):
    begun(processor, probe_file, tmp_path / "a", layers, connector=connector)
    curves = [
        tag for tag, _ in written_tags(tmp_path / "a" / "runs") if tag.startswith("3 attention/enrichment/")
    ]
    by_layer = {int(tag.split("layer_")[1][0]): tag.endswith(", trained on") for tag in curves}
    assert by_layer == {layer: layer in told for layer in (0, 2)}
    [address] = {one for one in capsys.readouterr().out.split() if "pinnedCards" in one}
    assert {layer for layer in (0, 2) if f"%2Flayer_{layer}" in address} == pinned


def test_what_the_model_was_trained_on_before_counts_too(processor, probe_file, tmp_path, capsys):  # noqa: F811
    (tmp_path / "base").mkdir()
    look_file.write(tmp_path / "base", [0], None, weight=0.2, loss="mass", connector=False)
    begun(processor, probe_file, tmp_path / "a", (2,), reference=tmp_path / "base")
    assert LINE + "it is trained on in every key layer" in capsys.readouterr().out


def test_probes_that_need_no_attention_are_judged_all_the_same(processor, probe_file, tmp_path, capsys):  # noqa: F811
    kept = [replace(probe, group="retention") for probe in read_probes(probe_file)]
    begun(processor, kept, tmp_path, (), stop_when="corrected")
    assert LINE not in capsys.readouterr().out


def test_of_an_earlier_trainer_nothing_counts(processor, probe_file, tmp_path):  # noqa: F811
    monitor = AttentionMonitor(processor, probe_file, tmp_path)
    monitor.will_be_supervised(lambda: (0,), connector=True)
    args, state = (type("Some", (), {"report_to": ()})() for _ in range(2))
    monitor.on_init_end(args, state, None)
    assert monitor._supervision is None
