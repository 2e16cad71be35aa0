"""Every model family this project knows. To add one: one file here, and one line in ``FAMILIES``."""

from __future__ import annotations

from typing import Any

from finetune.families.base import Encoded, Family, ImageTokens, ModulePaths
from finetune.families.gemma3 import Gemma3Family
from finetune.families.idefics3 import Idefics3Family, SmolVLMFamily
from finetune.families.internvl import InternVLFamily
from finetune.families.llava import LlavaFamily
from finetune.families.llava_next import LlavaNextFamily
from finetune.families.llava_onevision import LlavaOnevisionFamily
from finetune.families.paligemma import PaliGemmaFamily
from finetune.families.parts.modules import attention_copies, attention_modules, bare_model, copies_of
from finetune.families.qwen2_5_vl import Qwen25VLFamily
from finetune.families.qwen2_vl import Qwen2VLFamily
from finetune.families.qwen3_5 import Qwen35Family, Qwen35MoeFamily
from finetune.families.qwen3_vl import Qwen3VLFamily, Qwen3VLMoeFamily
from finetune.families.qwen_vl import QwenVLFamily

FAMILIES: tuple[Family, ...] = (
    QwenVLFamily(),
    Qwen2VLFamily(),
    Qwen25VLFamily(),
    Qwen3VLFamily(),
    Qwen3VLMoeFamily(),
    Qwen35Family(),
    Qwen35MoeFamily(),
    LlavaFamily(),
    LlavaNextFamily(),
    LlavaOnevisionFamily(),
    InternVLFamily(),
    Gemma3Family(),
    Idefics3Family(),
    SmolVLMFamily(),
    PaliGemmaFamily(),
)

__all__ = [
    "FAMILIES",
    "Encoded",
    "Family",
    "ImageTokens",
    "ModulePaths",
    "attention_copies",
    "attention_modules",
    "bare_model",
    "copies_of",
    "family_of",
    "unknown",
]


def family_of(config: Any) -> Family:
    """The family that a configuration belongs to.

    Raises ValueError if no family knows it, with the model type found, the families there are, and what to write.
    """
    for family in FAMILIES:
        if family.matches(config):
            return family
    raise unknown(getattr(config, "model_type", None), sees=hasattr(config, "vision_config"))


def unknown(model_type: object, *, sees: bool) -> ValueError:
    """The error for a configuration of no family; ``sees``: it has a vision part."""
    hint = "" if sees else " (it has no vision_config: does the model see pictures?)"
    return ValueError(
        f"no known model family for a configuration of type {model_type!r:.80}{hint}; known: "
        f"{', '.join(family.name for family in FAMILIES)}. What is missing is one file in finetune/families/ that says "
        "where its modules are, how it reads a conversation and where its pictures lie, and one line in __init__.py: "
        "docs/add-a-family.md"
    )
