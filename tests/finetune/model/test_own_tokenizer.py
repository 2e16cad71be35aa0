"""An adapter folder with a tokenizer and no picture settings: what it has is its own, the rest is its base's."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.families.parts.processors import differing_settings
from finetune.model import checkpoint
from finetune.samples.conversation import Conversation, Turn
from tests.finetune.families.tiny_families import ALL
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_siglip import SIGLIPS

FAMILIES = {**ALL, **LLAVAS, **SIGLIPS}
FIXED_VOCABULARY, NO_TEMPLATE = ("qwen-vl",), ("paligemma", "paligemma2")
REMARK = "{# answers of one word #}"


def adapter_of(base: Path, folder: Path) -> Path:
    """An adapter folder as far as its processor goes."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adapters_tokenizer_and_template_go_with_the_bases_pictures(tmp_path: Path, name: str):
    base = FAMILIES[name].write(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    own, published = checkpoint.load_processor(base), checkpoint.load_processor(base)
    own.tokenizer.save_pretrained(adapter)
    assert differing_settings(checkpoint.load_processor(adapter), published) == {}

    expected = set()
    if name not in NO_TEMPLATE:
        own.tokenizer.chat_template = own.chat_template + REMARK
        expected.add("chat_template")
    if name not in FIXED_VOCABULARY:
        own.tokenizer.add_tokens(["<mark>"])
        expected.add("vocabulary")
    own.tokenizer.save_pretrained(adapter)
    found = checkpoint.load_processor(adapter)
    assert type(found).__name__ == type(published).__name__
    assert differing_settings(found, published).keys() == expected
    assert name in NO_TEMPLATE or found.chat_template.endswith(REMARK)
    turns = (Turn("user", ("What is <mark>?",)), Turn("assistant", ("A tower.",)))
    ids, plain = (
        FAMILIES[name].family.encode(one, Conversation(turns, "a question")).input_ids.tolist()
        for one in (found, published)
    )
    marks = [one for one in ids if one == found.tokenizer.convert_tokens_to_ids("<mark>")]
    assert (len(marks) == 1 and len(ids) < len(plain)) if "vocabulary" in expected else ids == plain


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ALL["qwen2.5-vl"].write(tmp_path_factory.mktemp("base") / "qwen2.5-vl")


def jinja(adapter: Path, template: str) -> None:
    (adapter / "chat_template.jinja").write_text(template)


def of_an_earlier_release(adapter: Path, template: str) -> None:
    (adapter / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def inside(adapter: Path, template: Any) -> None:
    """In the tokenizer's file, where it was before releases of 2025."""
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def named(adapter: Path, template: str) -> None:
    others = {"name": "rag", "template": "{{ documents }}"}
    inside(adapter, [others, {"name": "default", "template": template}])


@pytest.mark.parametrize("write", [jinja, of_an_earlier_release, inside, named])
def test_a_template_is_found_in_files_of_every_release(base: Path, tmp_path: Path, write: Any):
    """With the vocabulary of the base, where the adapter has none."""
    published = checkpoint.load_processor(base)
    adapter = adapter_of(base, tmp_path / "adapter")
    write(adapter, published.chat_template + REMARK)
    found = checkpoint.load_processor(adapter)
    assert found.chat_template == published.chat_template + REMARK
    assert differing_settings(found, published).keys() == {"chat_template"}


def test_the_template_of_the_bases_tokenizer_alone_is_not_the_adapters_own(tmp_path: Path):
    """Some published tokenizers have one without pictures, beside the processor's."""
    base = ALL["qwen2.5-vl"].write(tmp_path / "base")
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    of_an_earlier_release(base, template)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ messages }}"}))
    published = checkpoint.load_processor(base)
    assert (published.chat_template, published.tokenizer.chat_template) == (template, "{{ messages }}")
    adapter = adapter_of(base, tmp_path / "adapter")
    published.tokenizer.save_pretrained(adapter)
    assert checkpoint.load_processor(adapter).chat_template == template


def test_a_tokenizer_without_settings_keeps_those_of_its_base(base: Path, tmp_path: Path):
    adapter = adapter_of(base, tmp_path / "adapter")
    (adapter / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    published, found = checkpoint.load_processor(base).tokenizer, checkpoint.load_processor(adapter).tokenizer
    ends = [(one.eos_token, one.pad_token, type(one).__name__) for one in (published, found)]
    assert ends[0] == ends[1] and ends[0][0] is not None


def test_a_vocabulary_in_another_format_than_the_bases_is_the_one_that_is_read(base: Path, tmp_path: Path):
    adapter = adapter_of(base, tmp_path / "adapter")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    (adapter / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (adapter / "merges.txt").write_text("#version: 0.2\n")  # the base has one merge
    (adapter / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    published, found = checkpoint.load_processor(base), checkpoint.load_processor(adapter)
    assert found.tokenizer("\n\n")["input_ids"] == 2 * published.tokenizer("\n")["input_ids"]
    assert len(published.tokenizer("\n\n")["input_ids"]) == 1


def test_files_that_cannot_be_read_are_named_with_their_own_folder(base: Path, tmp_path: Path):
    adapter = adapter_of(base, tmp_path / "adapter")
    (adapter / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"^{adapter}: "):
        checkpoint.load_processor(adapter)
    (adapter / "tokenizer.json").unlink()
    jinja(adapter, "{% for message in messages %}")
    with pytest.raises(ValueError, match=rf"^{adapter}/chat_template\.jinja: "):
        checkpoint.load_processor(adapter)


def test_of_a_base_whose_picture_settings_mean_nothing_the_field_is_named(tmp_path: Path):
    """An adapter without any file of a processor reads its base's."""
    base = ALL["qwen2.5-vl"].write(tmp_path / "base")
    (base / "preprocessor_config.json").write_text('{"image_mean": "grey"}')
    for folder in (base, adapter_of(base, tmp_path / "adapter")):
        with pytest.raises(ValueError, match=r"base/preprocessor_config\.json: image_mean: found"):
            checkpoint.load_processor(folder)
