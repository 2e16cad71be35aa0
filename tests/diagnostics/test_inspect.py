"""python -m diagnostics.inspect: what is said of a model is what the model is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.inspect import architecture, main, markdown, mermaid, table
from diagnostics.probing.prompts import ProbeEncoder, padded
from diagnostics.records.architectures import from_json, kept, place_of
from finetune.families import FAMILIES, family_of
from finetune.qwen_vl import QwenVLConfig
from tests.diagnostics.published_shapes import COUNTED, SHAPES
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes, tiny_processor
from tests.finetune.families.tiny_families import GRIDS

ROOT = Path(__file__).parents[2]
BASE = ROOT / "finetune" / "demo" / "base"


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


def published(name):
    return AutoConfig.for_model(**SHAPES[name].config)


@pytest.mark.parametrize("name", SHAPES)
def test_published_models_are_counted_to_the_last_parameter(name):
    found, shape = architecture(published(name), name=name), SHAPES[name]
    assert found.parameters == shape.parameters
    assert found.parameters == sum(part.parameters for part in found.components)
    parts = {part.name: part for part in found.components}
    assert set(parts) == {"vision", "connector", "language"} and all(
        part.parameters for part in parts.values()
    )
    language = [kind for kind in found.attention if kind.first.startswith("layer_")]
    vision = [kind for kind in found.attention if kind.first.startswith("vision_layer_")]
    assert sum(kind.count for kind in language) == parts["language"].layers == shape.language[0]
    assert sum(kind.count for kind in vision) == parts["vision"].layers == shape.vision[0]
    for kind in language:
        expected = (0, 0, 0) if kind.looks.startswith("no attention map") else shape.language[1:]
        assert (kind.heads, kind.key_heads, kind.head_width) == expected
    assert {(kind.heads, kind.key_heads, kind.head_width) for kind in vision} == {
        (shape.vision[1], shape.vision[1], shape.vision[2])
    }
    for shown in (table(found), markdown(found)):
        assert f"{shape.parameters:,} parameters" in shown and found.picture.words in shown
        assert f"{found.picture.tokens}" in found.picture.words.replace(",", "")


def test_every_family_has_a_published_shape():
    """Qwen-VL's is the default configuration, above. Only three totals are our own count and nobody else's."""
    assert {family_of(published(name)).name for name in SHAPES} | {"qwen-vl"} == {
        one.name for one in FAMILIES
    }
    assert [name for name, shape in SHAPES.items() if shape.told == COUNTED] == [
        "LLaVA-NeXT-Mistral-7B",
        "LLaVA-OneVision-Qwen2-7B",
        "Idefics3-8B",
    ]


def test_layers_that_attend_alike_share_a_line_wherever_they_lie():
    shown = table(architecture(published("Gemma-3-4B"), name="gemma"))
    [near] = [line for line in shown.splitlines() if line.startswith("layer_0")]
    [far] = [line for line in shown.splitlines() if line.startswith("layer_5")]
    assert near.startswith("layer_0 … 4, 6 … 10, 12 … 16, 18 … 22, 24 … 28, 30 … 33 ")
    assert "none further back than 1,023" in near and "29 × 8 × 1,024 × 1,024 = 928.0 MiB" in near
    assert far.startswith("layer_5, 11, 17, 23, 29 ") and "5 × 8 × 1,024 × 1,024" in far


def test_layers_without_a_map_are_listed_apart():
    card = markdown(architecture(published("Qwen3.5-9B"), name="q"))
    [linear] = [line for line in card.splitlines() if line.startswith("| `layer_0")]
    assert linear.endswith("28 … 30` | - | no attention map (linear attention) | - |")
    assert any(
        line.startswith("| `layer_3, 7, 11, 15, 19, 23, 27, 31` | 16 × 256, 4 key heads |")
        for line in card.splitlines()
    )


def test_shapes_are_those_that_the_kernels_are_called_with(tmp_path):
    model, processor = tiny_model(), tiny_processor(tmp_path)
    family = family_of(model.config)
    [probe, *_] = tiny_probes(tmp_path)
    encoded = ProbeEncoder(family, processor).encode(probe, probe.answer)
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


WITHOUT_TORCH = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"


def inspected_without_torch(folder, *flags):
    code = f"{WITHOUT_TORCH}from diagnostics.inspect import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


def test_a_folder_inspected_before_needs_no_torch_and_says_the_same(capsys, tmp_path):
    folder = tmp_path / "moved"
    folder.mkdir()
    shutil.copy(BASE / "config.json", folder)
    assert main([str(folder), "--json", "--picture", "300x211"]) == 0
    said = capsys.readouterr().out
    again = inspected_without_torch(folder, "--json", "--picture", "300x211")
    assert (again.returncode, again.stdout) == (0, said), again.stderr
    # Another example is worked out anew, which needs the model.
    assert (
        "import of torch halted" in inspected_without_torch(folder, "--json", "--picture", "300x212").stderr
    )


def test_what_is_kept_follows_the_configuration_and_survives_a_broken_file(capsys, tmp_path):
    config = json.loads((BASE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = place_of(str(tmp_path), tokens=7, picture=(30, 20))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    place = place_of(str(tmp_path), tokens=7, picture=(30, 20))
    assert place != before
    asked = [str(tmp_path), "--json", "--tokens", "7", "--picture", "30x20"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["components"][2]["layers"] == 3
    assert kept(place) == from_json(said)
    for broken in ("", "[1, 2]", '{"picture": {}}'):
        place.write_text(broken)
        assert main(asked) == 0 and capsys.readouterr().out == said


def of_folder(capsys, folder):
    assert main([str(folder), "--picture", "300x211"]) == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("a picture: ")]
    return line


def test_a_picture_is_made_ready_as_the_folders_processor_does_it(capsys, tmp_path):
    """The processor of an adapter's folder goes before its base's; without any, the published bounds are named. Each
    change of a file is another question, and what was asked once needs no torch."""
    tiny, (base, adapter) = GRIDS["qwen3-vl"], (tmp_path / "base", tmp_path / "adapter")
    adapter.mkdir()
    tiny.model().config.save_pretrained(base)
    fields = {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(fields))
    published = of_folder(capsys, base)
    assert "resized to 312 × 216 (with the published bounds) →" in published  # at least 65,536 pixels
    assert of_folder(capsys, adapter) == published

    old = {"size": {"shortest_edge": 1, "longest_edge": 1}, "min_pixels": 64, "max_pixels": 2000}
    (base / "preprocessor_config.json").write_text(json.dumps(old))
    smaller = of_folder(capsys, base)
    assert "resized to 48 × 32 →" in smaller and of_folder(capsys, adapter) == smaller
    new = {"image_processor": {"size": {"shortest_edge": 64, "longest_edge": 600}}}
    (adapter / "processor_config.json").write_text(json.dumps(new))
    assert "resized to 24 × 16 →" in of_folder(capsys, adapter)
    assert of_folder(capsys, base) == smaller
    again = inspected_without_torch(adapter, "--picture", "300x211")
    assert again.returncode == 0 and "resized to 24 × 16 →" in again.stdout

    for wrong in ("[1]", '{"image_processor": 3}', '{"image_processor": {"size": {"longest_edge": "x"}}}'):
        (adapter / "processor_config.json").write_text(wrong)
        assert main([str(adapter), "--picture", "300x211"]) == 1
        assert f"inspect: {adapter}" in capsys.readouterr().err


def test_a_chart_names_every_part():
    chart = mermaid(architecture(QwenVLConfig(), name="Qwen-VL"))
    for words in ("48 layers", "16 heads × 104", "32 × 32 patches", "256 tokens", "32 heads × 128"):
        assert words in chart
