"""LLaVA-1.5 reads its tower before the last layer: what that layer looks at goes nowhere, and nobody shows it."""

import pytest
import torch
from PIL import Image

from diagnostics.fusion.views import Viewer
from diagnostics.keep.asking import Asker
from diagnostics.probing import relations
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.records.probes import Probe, Relation
from diagnostics.web.engine import Engine
from finetune.families.parts.modules import tower_layers
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS

TINY = LLAVAS["llava-1.5"]  # three layers of the tower, of which two are read


@pytest.mark.parametrize("tiny", [*LLAVAS.values(), *ALL.values()], ids=[*LLAVAS, *ALL])
def test_only_layers_that_are_read_count(tiny):
    model = tiny.model()
    layers = list(model.get_submodule(tiny.family.paths.vision_layers).children())
    read = tower_layers(model, tiny.family)
    assert read == tuple(range(len(read))) and len(layers) - len(read) == (
        tiny in (TINY, LLAVAS["llava-next"])
    )


def test_the_last_layer_that_is_read_is_what_studies_and_the_page_look_at(tmp_path):
    model, processor = TINY.model(), TINY.processor(tmp_path)
    assert Viewer(model, processor).vision_layers == (1,)
    with pytest.raises(ValueError, match="no vision layer 2; expected 0 to 1, the last that the model reads"):
        Viewer(model, processor, vision_layers=[2])
    assert Asker(model, processor, shares=[0.5], key_layer=1, fastv_layer=1).tower_layer == 1
    assert Engine(model, processor, mode="full").vision_layers == (1,)


def test_a_relation_is_read_in_layers_that_are_read(tmp_path, monkeypatch):
    Image.linear_gradient("L").resize((40, 40)).save(tmp_path / "a.png")
    regions = {"a": ((0.0, 0.0, 20.0, 12.0),), "b": ((20.0, 20.0, 40.0, 40.0),)}
    probe = Probe(
        "p", "g", (tmp_path / "a.png",), "?", "on", "to", regions, relation=Relation("on", "a", "b")
    )
    asked = []
    monkeypatch.setattr(relations, "key_vision_layers", lambda count: asked.append(count) or (count - 1,))
    with torch.no_grad():
        found = relations.read_relation(
            TINY.model(), ProbeEncoder(TINY.family, TINY.processor(tmp_path)), probe
        )
    assert asked == [2] and "vision" in found
