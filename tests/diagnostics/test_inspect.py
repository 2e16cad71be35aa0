"""python -m diagnostics.inspect: what is said of a model is what the model is."""

import json
from pathlib import Path

import pytest
import torch
from tiny_qwen_vl import tiny_model, tiny_probes, tiny_processor

from diagnostics.capture import AttentionExtractor
from diagnostics.inspect import architecture, main, mermaid, table
from diagnostics.reading import Reader, padded
from finetune.families import family_of
from finetune.qwen_vl import QwenVLConfig

BASE = Path(__file__).parents[2] / "finetune" / "demo" / "base"


def test_the_published_qwen_vl_is_counted_to_the_last_parameter():
    found = architecture(QwenVLConfig(), name="Qwen-VL")
    assert found.parameters == 9_656_935_168
    assert {part.name: part.parameters for part in found.components} == {
        "vision": 1_842_770_688, "connector": 76_054_528 + 16_785_408, "language": 7_721_324_544,
    }  # fmt: skip
    assert {part.name: part.layers for part in found.components} == {
        "vision": 48,
        "connector": 0,
        "language": 32,
    }
    language, connector, tower = found.attention
    assert (language.first, language.last, language.count) == ("layer_0", "layer_31", 32)
    assert (language.heads, language.head_width, connector.heads, tower.heads, tower.head_width) == (
        32,
        128,
        32,
        16,
        104,
    )
    assert language.map_bytes == 32 * 1024 * 1024 * 4
    assert connector.map_bytes == 32 * 256 * 1024 * 4
    shown = table(found)
    assert "9,656,935,168" in shown and "layer_0 … layer_31" in shown and "4.00 GiB" in shown
    assert (
        "1280 × 720 pixels, squeezed to 448 × 448 → 32 × 32 patches of 14 → 256 queries → 256 tokens" in shown
    )


def test_shapes_are_those_that_the_kernels_are_called_with(tmp_path):
    model, processor = tiny_model(), tiny_processor(tmp_path)
    family = family_of(model.config)
    [probe, *_] = tiny_probes(tmp_path)
    encoded = Reader(family, processor).encode(probe, probe.answer)
    calls = {}

    def tap(name, call, output):
        calls[name] = (call.query.shape[1], call.key.shape[1], call.query.shape[3], *call.lengths)
        return output

    with torch.no_grad(), AttentionExtractor(model, [], connector=False) as extractor, extractor.tapped(tap):
        model(**padded([encoded], torch.device("cpu"), left=False))
    size = encoded.images[0].image_size_pixels
    found = architecture(model.config, name="tiny", tokens=len(encoded.input_ids), picture=size)
    assert sum(kind.count for kind in found.attention) == len(calls)
    for kind in found.attention:
        assert calls[kind.first] == (kind.heads, kind.key_heads, kind.head_width, kind.queries, kind.keys), (
            kind.first
        )
    assert found.picture.tokens == len(encoded.images[0].positions)
    assert found.picture.patches == encoded.images[0].grid
    assert found.parameters == sum(p.numel() for p in model.parameters())


def test_the_program(capsys):
    assert main([str(BASE), "--json", "--picture", "300x200", "--tokens", "77"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["family"] == "qwen-vl" and said["tokens"] == 77
    assert said["parameters"] == sum(part["parameters"] for part in said["components"])
    assert main([str(BASE), "--mermaid"]) == 0
    chart = capsys.readouterr().out
    assert chart.startswith("flowchart LR\n") and '-- "49 tokens" --> language' in chart
    assert main([str(BASE)]) == 0
    assert "language" in capsys.readouterr().out
    assert main(["/no/where"]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(BASE), "--picture", "300"])
    assert "expected width x height in pixels" in capsys.readouterr().err


def test_a_chart_names_every_part():
    chart = mermaid(architecture(QwenVLConfig(), name="Qwen-VL"))
    for words in ("48 layers", "16 heads × 104", "32 × 32 patches", "256 tokens", "32 heads × 128"):
        assert words in chart
