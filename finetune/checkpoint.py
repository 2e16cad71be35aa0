"""Any checkpoint → model and processor: hub name, model folder, or adapter folder."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
)

import finetune.families as families
from finetune.families.base import Family

ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: bool = False,
    for_training: bool = False,
    cache_dir: str | None = None,
) -> tuple[nn.Module, Any]:
    """Open a checkpoint.

    name_or_path   a hub name, a model folder, or an adapter folder (its base is opened as the adapter says)
    dtype          precision of the weights; None: as they are stored
    device         where the model goes; None: it stays where it was loaded
    quantize       language layers to 4 bit (NF4) while loading
    for_training   an adapter's tensors stay trainable, and the model keeps its train mode to the caller

    Returns the model (a PeftModel for an adapter folder) and its processor.

    Raises ValueError where the checkpoint, or an adapter's base, cannot be found or is of no known family.
    """
    base_name, adapter = resolve(name_or_path)
    config = _config(base_name, cache_dir)
    family = families.family_of(config)
    options: dict[str, Any] = {"dtype": dtype if dtype is not None else "auto", "cache_dir": cache_dir}
    if quantize:
        options["quantization_config"] = four_bit(config, family, compute_dtype=dtype)
    model: nn.Module = AutoModelForImageTextToText.from_pretrained(base_name, **options)
    _keep_four_bit_layout(model)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=for_training)
    if device is not None and not quantize:
        model = model.to(device)
    if not for_training:
        model.eval()
    return model, load_processor(name_or_path, cache_dir=cache_dir)


def load_config(name_or_path: str | Path, *, cache_dir: str | None = None) -> Any:
    """The configuration of a checkpoint, or of an adapter's base; no weights."""
    return _config(resolve(name_or_path)[0], cache_dir)


def load_processor(name_or_path: str | Path, *, cache_dir: str | None = None) -> Any:
    """The processor of a checkpoint: an adapter folder's own where it has one, else its base's."""
    base_name, adapter = resolve(name_or_path)
    if adapter is not None and any((adapter / name).is_file() for name in _PROCESSOR_FILES):
        return AutoProcessor.from_pretrained(str(adapter))
    return AutoProcessor.from_pretrained(base_name, cache_dir=cache_dir)


_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def resolve(name_or_path: str | Path) -> tuple[str, Path | None]:
    """(base checkpoint, adapter folder or None).

    Raises ValueError for a folder that holds neither a model nor an adapter, and for an adapter whose base is
    a folder that is not there.
    """
    path = Path(name_or_path).expanduser()
    if not path.exists():
        if looks_like_a_path(str(name_or_path)):
            raise ValueError(
                f"{name_or_path}: there is no such folder (working directory {os.getcwd()}); "
                "expected a model folder, an adapter folder, or a hub name such as Qwen/Qwen-VL-Chat"
            )
        return str(name_or_path), None
    if (path / MODEL_CONFIG).is_file():
        # Absolute, because adapters write down the name of their base.
        return os.path.abspath(path), None
    if not (path / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{path}: found neither {MODEL_CONFIG} nor {ADAPTER_CONFIG}; expected the folder of a model or an adapter"
        )
    return _base_of(path), path


def looks_like_a_path(name: str) -> bool:
    """A hub name has at most one slash, and neither starts with a dot, a slash or a tilde nor ends with a slash."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def _base_of(adapter: Path) -> str:
    file = adapter / ADAPTER_CONFIG
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{file}: base_model_name_or_path is missing; expected the checkpoint it was trained on"
        )
    if looks_like_a_path(base) and not Path(base).exists():
        raise ValueError(
            f"{file}: its base model {base!r} is not there; put it back, or write its new place into "
            "base_model_name_or_path"
        )
    return os.path.abspath(base) if Path(base).exists() else str(base)


def _config(base_name: str, cache_dir: str | None) -> Any:
    config = AutoConfig.from_pretrained(base_name, cache_dir=cache_dir)
    quantized = getattr(config, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
        if str(method) not in ("bitsandbytes", "QuantizationMethod.BITS_AND_BYTES"):
            raise ValueError(
                f"{base_name}: its weights are quantised already ({method}); give the checkpoint they were made from "
                "(Qwen/Qwen-VL-Chat for Qwen/Qwen-VL-Chat-Int4), and --q_lora quantises it while loading"
            )
    return config


def four_bit(config: Any, family: Family, *, compute_dtype: torch.dtype | None) -> BitsAndBytesConfig:
    """NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3) of the language layers alone.

    Eyes, connector, embeddings and output layer keep their precision: they are a small share of the memory, and
    what they see is what is to be studied.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or torch.float32,
        llm_int8_skip_modules=sorted(_linear_outside_language(config, family)),
    )


def _keep_four_bit_layout(model: nn.Module) -> None:
    """Leave 4-bit weights as they were quantised, on every CPU.

    Trap: where a CPU has AVX512-BF16, bitsandbytes 0.50 re-packs a layer for inference the first time that it runs
    in eval mode on an input without gradient (a probe, an evaluation), and does not undo that for training. The
    packed layer computes in bf16 and passes no gradient on, so what lies below it learns from the residual stream
    alone; scales come back rounded to bf16; and rows shorter than a block of 64 crash. The answer must not depend
    on the machine, so no layer may re-pack. On a GPU this changes nothing.
    """
    if not getattr(model, "is_loaded_in_4bit", False):  # transformers writes it for 4-bit models alone
        return
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def skeleton(config: Any) -> nn.Module:
    """The model of a configuration without weights (on the meta device): its modules and shapes.

    Trap: ``from_config`` would shard it under ZeRO-3, which fails on the meta device.
    """
    with torch.device("meta"):
        model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    return model.to(config.dtype) if config.dtype is not None else model


def _linear_outside_language(config: Any, family: Family) -> Iterator[str]:
    model = skeleton(config)
    inside = f"{family.paths.language_layers}."
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(inside):
            yield name
