"""The processor of an adapter folder with a tokenizer or a chat template of its own, and no picture settings.

A Trainer that is given a tokenizer alone saves it so.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from finetune.families.base import Family
from finetune.fields import OBJECT, TEXT, items, load
from finetune.model.checkpoint_files import REMEDY
from finetune.scratch import scratch_folder

VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
JINJA = "chat_template.jinja"
TEMPLATES = (JINJA, "chat_template.json", "tokenizer_config.json")  # in the order in which they are asked


def has_one(adapter: Path) -> bool:
    """Does the folder have a tokenizer or a chat template?"""
    return any((adapter / name).is_file() for name in (*VOCABULARY, *SETTINGS, *TEMPLATES))


def beside_pictures_of(base: Any, adapter: Path, family: Family) -> Any:
    """The processor with the adapter's tokenizer and chat template, where it has them, and all else of its base's.

    base   the base's processor

    Opened from a folder that holds the files of both: a processor works out more from its tokenizer than can be
    exchanged afterwards.
    """
    with scratch_folder("processor") as folder:
        base.save_pretrained(folder)
        if any((adapter / name).is_file() for name in VOCABULARY):
            for name in (
                *VOCABULARY,
                "merges.txt",
            ):  # of two formats of a vocabulary, the base's would be read
                (folder / name).unlink(missing_ok=True)
        for name in (*VOCABULARY, *SETTINGS):
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)
        if template := _own_template(base, adapter):
            (folder / JINJA).write_text(template, encoding="utf-8")
        processor = family.load_processor(str(folder))
    processor.tokenizer.name_or_path = str(adapter)
    return processor


def _own_template(base: Any, adapter: Path) -> str | None:
    """The adapter's chat template; None where it has none but what its base's tokenizer came with.

    Trap: some published tokenizers have another template than the processor beside them, which knows no pictures.
    """
    found = next((one for name in TEMPLATES if (one := _template_in(adapter / name))), None)
    return None if found in (base.tokenizer.chat_template, base.chat_template) else found


def _template_in(file: Path) -> str | None:
    """Of several with names, the one that is used unasked."""
    if not file.is_file():
        return None
    if file.name == JINJA:
        return file.read_text(encoding="utf-8")
    found = load(file, {}, remedy=REMEDY).get("chat_template")
    if OBJECT.fits(found):
        return found.get("default")
    if items(OBJECT).fits(found):
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if TEXT.fits(found) else None
