"""Replies of models that think: what one that is cut off considers is not its answer."""

import pytest
import torch

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.answers import says
from diagnostics.probing.prompts import ProbeEncoder
from diagnostics.probing.reading import PromptReader
from diagnostics.records.probes import Probe
from finetune.families.qwen3_vl import Qwen3VLFamily
from tests.finetune.families.parts.test_thoughts import FREE, TEMPLATE, THOUGHT
from tests.finetune.families.pictures import picture
from tests.finetune.families.tiny_families import ALL, grid_processor

FAMILY = Qwen3VLFamily()


@pytest.mark.parametrize(("template", "begun"), [(TEMPLATE, "<think>"), (FREE, "")])
def test_a_reply_that_is_cut_off_while_thinking_answers_nothing(template, begun, tmp_path):
    processor, path = grid_processor(FAMILY, template), tmp_path / "tower.png"
    picture((60, 33)).save(path)
    torch.manual_seed(0)
    model = ALL[FAMILY.name].model().eval()
    asked = ProbeEncoder(FAMILY, processor).read(Probe("a", "g", (path,), "what?", THOUGHT, None))
    reader = PromptReader(model, FAMILY, processor, key_layers=[1], max_new_tokens=3)
    reader.stops = ()
    with torch.no_grad(), AttentionExtractor(model, family=FAMILY) as extractor:
        [found] = reader.read(extractor, [asked])
    assert found.reply.startswith("<think>") == bool(begun)
    considered = found.reply.removeprefix(begun)
    assert considered and says(found.reply, [considered], None) != bool(begun)
    silent = PromptReader(model, FAMILY, processor, key_layers=[1], max_new_tokens=0)
    with torch.no_grad(), AttentionExtractor(model, family=FAMILY) as extractor:
        assert silent.read(extractor, [asked])[0].reply == ""
