"""python -m diagnostics.inspect: what is said of a model is what the model is."""

import functools
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from transformers import AutoConfig

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.inspect import architecture, architecture_of_file, main, markdown, mermaid, table
from diagnostics.probing.prompts import ProbeEncoder, padded
from diagnostics.records.architectures import from_json, kept, place_of
from finetune.families import FAMILIES, family_of
from finetune.families.parts.processors import picture_settings
from finetune.model.checkpoint import load_config
from finetune.qwen_vl import QwenVLConfig
from tests.diagnostics.published_shapes import COUNTED, SHAPES
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_probes, tiny_processor
from tests.finetune.families.tiny_families import ALL, GRIDS
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

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


def saved(config):
    """What is in the file of a configuration that transformers saved."""
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return json.loads((Path(folder) / "config.json").read_text())


def built(content, folder, **asked):
    """By transformers' classes, from a file in a new folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return architecture(load_config(folder), name="m", **asked)


SAVED = {"Qwen-VL": QwenVLConfig, **{name: functools.partial(published, name) for name in SHAPES}}


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_configuration_says_what_its_model_is(name, tmp_path):
    content = saved(SAVED[name]())
    of_file = architecture_of_file(content, name="m", tokens=77, picture=(301, 202))
    assert of_file == built(content, tmp_path, tokens=77, picture=(301, 202))


TINY = [*ALL.values(), *LLAVAS.values(), *SIGLIPS.values(), *HYBRIDS.values()]


@pytest.mark.parametrize("tiny", TINY, ids=lambda tiny: tiny.family.name)
def test_a_tiny_models_configuration_and_processor_say_it_too(tiny, tmp_path):
    content = saved(tiny.model().config)
    settings = picture_settings(tiny.processor(tmp_path))
    of_file = architecture_of_file(content, name="m", picture=(301, 202), settings=settings)
    assert of_file == built(content, tmp_path / "m", picture=(301, 202), settings=settings)


def test_a_changed_configuration_is_read_as_transformers_reads_it_or_left_to_it(tmp_path):
    """Sums of one family's parts hold for other sizes; what is out of the ordinary has no quick answer."""
    drawn = random.Random(20261201)
    contents = {name: saved(config()) for name, config in SAVED.items()}
    answered = Counter()
    for _ in range(700):
        name = drawn.choice([*contents])
        content = changed(contents[name], drawn)
        settings = drawn.choice([None, {}, {"size": {"shortest_edge": 3136, "longest_edge": 100_352}}])
        asked = {
            "tokens": drawn.randint(1, 5000),
            "picture": (drawn.randint(50, 3000), drawn.randint(50, 3000)),
        }
        found = architecture_of_file(content, name="m", settings=settings, **asked)
        if found is not None:
            answered[name] += 1
            assert found == built(content, tmp_path, settings=settings, **asked), content
    assert set(answered) == set(contents) and answered.total() > 200


@pytest.mark.parametrize(
    ("name", "section", "changes"),
    [
        (
            "Qwen2.5-VL-7B",
            "text_config",
            {"tie_word_embeddings": True},
        ),  # as the whole configuration does not say
        ("LLaVA-1.5-7B", "text_config", {"tie_word_embeddings": True}),
        ("LLaVA-1.5-7B", "text_config", {"head_dim": 129}),  # whose halves cannot rotate
        ("Qwen2-VL-7B", "text_config", {"head_dim": 64}),  # which its model does not read
        ("Qwen3-VL-30B-A3B", "text_config", {"num_experts": 8}),  # beside num_local_experts
        ("PaliGemma2-3B-224", "text_config", {"model_type": "qwen3"}),
        ("Gemma-3-4B", "text_config", {"use_bidirectional_attention": True}),  # which halves the window
        ("LLaVA-OneVision-Qwen2-7B", "vision_config", {"vision_use_head": True}),
        ("Qwen3.5-9B", "text_config", {"num_hidden_layers": 3}),  # of 32 kinds
    ],
)
def test_what_a_sum_does_not_hold_for_has_no_quick_answer(name, section, changes):
    content = saved(SAVED[name]())
    assert architecture_of_file(content, name="m") is not None
    content[section] |= changes
    assert architecture_of_file(content, name="m") is None


def changed(content, drawn):
    """With few layers, and one or two other values."""
    content = deepcopy(content)
    sections = [content, *(value for value in content.values() if isinstance(value, dict))]
    for section in sections:
        for field in {"num_hidden_layers", "depth", "layers"} & section.keys():
            section[field] = drawn.randint(1, 6)
        if "layer_types" in section:
            section["layer_types"] = (section["layer_types"] * 2)[: section["num_hidden_layers"]]
    for _ in range(drawn.randint(1, 2)):
        section = drawn.choice(sections)
        field = drawn.choice([name for name, value in section.items() if not isinstance(value, dict)])
        section[field] = drawn.choice(other_values(section[field]))
        if drawn.random() < 0.1:
            del section[field]
        if drawn.random() < 0.1:
            section[drawn.choice(["head_dim", "attention_bias", "vision_use_head", "unheard_of"])] = (
                drawn.choice([True, False, 8, None])
            )
    return content


def other_values(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [
            value * 2,
            value + 1,
            value * 3,
            max(value // 2, 1),
            value + 8,
            64,
            0,
            None,
            float(value),
            str(value),
        ]
    if isinstance(value, list):
        return [value[:-1], value[::-1], [], None]
    return [*[value] * 6, None, "gelu", "silu", "llama", "qwen3", 1, 0.25]


def test_a_folder_needs_no_torch_but_for_what_its_configuration_leaves_out(capsys, tmp_path):
    """Neither the first time nor later, and whatever the example is."""
    folder = tmp_path / "moved"
    folder.mkdir()
    shutil.copy(BASE / "config.json", folder)
    first = inspected_without_torch(folder, "--json", "--picture", "300x211")
    assert first.returncode == 0, first.stderr
    (kept_at,) = [place_of(str(folder), tokens=1024, picture=(300, 211))]
    kept_at.unlink()
    assert main([str(folder), "--json", "--picture", "300x211"]) == 0
    assert capsys.readouterr().out == first.stdout

    config = json.loads((folder / "config.json").read_text())
    del config["visual"]["n_queries"]  # as published files do
    (folder / "config.json").write_text(json.dumps(config))
    asked = ("--json", "--picture", "300x212")
    assert "import of torch halted" in inspected_without_torch(folder, *asked).stderr
    assert main([str(folder), *asked]) == 0
    again = inspected_without_torch(folder, *asked)  # kept now
    assert (again.returncode, again.stdout) == (0, capsys.readouterr().out)


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
