"""Every model family this project knows. To add one: one file here, and one line in ``CLASSES``."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from finetune.families.base import Encoded, Family, ImageTokens, ModulePaths
from finetune.families.parts.modules import attention_copies, attention_modules, bare_model, copies_of

CLASSES = (
    "qwen_vl.QwenVLFamily",
    "qwen2_vl.Qwen2VLFamily",
    "qwen2_5_vl.Qwen25VLFamily",
    "qwen3_vl.Qwen3VLFamily",
    "qwen3_vl.Qwen3VLMoeFamily",
    "qwen3_5.Qwen35Family",
    "qwen3_5.Qwen35MoeFamily",
    "llava.LlavaFamily",
    "llava_next.LlavaNextFamily",
    "llava_onevision.LlavaOnevisionFamily",
    "internvl.InternVLFamily",
    "gemma3.Gemma3Family",
    "idefics3.Idefics3Family",
    "idefics3.SmolVLMFamily",
    "paligemma.PaliGemmaFamily",
)
"""Module in this package and its class. ``FAMILIES`` has one object of each, made when first asked for: drawing and
comparing records need no more of this package than where a picture's tokens lie. None imports torch before it reads a
picture or a model."""

FAMILIES: tuple[Family, ...]

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


def __getattr__(name: str) -> Any:
    if name != "FAMILIES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (path.split(".") for path in CLASSES)
    made = tuple(getattr(import_module(f"{__name__}.{module}"), cls)() for module, cls in homes)
    globals()["FAMILIES"] = made
    return made


def _known() -> tuple[Family, ...]:
    """As an attribute of the module, which ``__getattr__`` serves, and which others may have added to."""
    families: tuple[Family, ...] = sys.modules[__name__].FAMILIES
    return families


def family_of(config: Any) -> Family:
    """The family that a configuration belongs to.

    Raises ValueError if no family knows it, with the model type found, the families there are, and what to write.
    """
    for family in _known():
        if family.matches(config):
            return family
    raise unknown(getattr(config, "model_type", None), sees=hasattr(config, "vision_config"))


def unknown(model_type: object, *, sees: bool) -> ValueError:
    """The error for a configuration of no family; ``sees``: it has a vision part."""
    hint = "" if sees else " (it has no vision_config: does the model see pictures?)"
    return ValueError(
        f"no known model family for a configuration of type {model_type!r:.80}{hint}; known: "
        f"{', '.join(family.name for family in _known())}. What is missing is one file in finetune/families/ that says "
        "where its modules are, how it reads a conversation and where its pictures lie, and one line in __init__.py: "
        "docs/add-a-family.md"
    )
