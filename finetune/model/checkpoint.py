"""Any checkpoint → model and processor: hub name, model folder, or adapter folder."""

import copy
import functools
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedConfig,
)
from transformers.core_model_loading import Transpose
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state
from transformers.utils import is_flash_attn_2_available

import finetune.families as families
from finetune.families.base import Family, flash_fault
from finetune.families.parts.chat import BrokenTemplate
from finetune.families.parts.modules import bare_model
from finetune.model import adapters, checkpoint_files, hub, own_tokenizer, weights
from finetune.model.folders import ADAPTER_CONFIG, MODEL_CONFIG, both, is_adapter, resolve, shortened
from finetune.model.trial import excess
from finetune.printable import one_line
from finetune.samples.conversation import Conversation, ImageRef, Turn

if TYPE_CHECKING:  # takes two seconds to import; reading configurations does not need it
    from peft import PeftModel


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: bool = False,
    for_training: bool = False,
    cache_dir: str | None = None,
    attn_implementation: str | None = None,
    base: str | None = None,
    allow_other_base: bool = False,
) -> tuple[nn.Module, Any]:
    """Open a checkpoint.

    name_or_path   a hub name, a model folder, or an adapter folder (its base is opened as the adapter says)
    dtype          precision of the weights; None: as they are stored
    device         where the model goes; None: it stays where it was loaded
    quantize       language layers to 4 bit (NF4) while loading
    for_training   an adapter's tensors stay trainable, and the caller sets train mode
    attn_implementation   the attention kernel; None: torch's own (SDPA) wherever the model can use it
    base           the folder of an adapter's base, instead of the one it names
    allow_other_base   allow an adapter on other weights than it was trained on, if shapes fit

    Returns the model (a PeftModel for an adapter folder) and its processor.

    A checkpoint's own code is never run.

    Raises ValueError as ``check`` does, and if the kernel cannot be used.
    """
    model: Any
    config = check(name_or_path, cache_dir=cache_dir, base=base, allow_other_base=allow_other_base)
    base_name, adapter = resolve(name_or_path, base=base)
    family = families.family_of(config)
    kernel: str | dict[str, str] | None = attn_implementation
    if attn_implementation is not None:
        check_kernel(attn_implementation)
        check_kernel_of(config, attn_implementation)
    elif _beyond_sdpa(config) is not None:
        kernel = {"text_config": "eager"}
    options: dict[str, Any] = {
        "dtype": dtype if dtype is not None else "auto",
        "cache_dir": cache_dir,
        **({} if kernel is None else {"attn_implementation": kernel}),
    }
    if quantize:
        options["quantization_config"] = four_bit(config, family, compute_dtype=dtype)
    sharded = is_deepspeed_zero3_enabled()
    if sharded:
        _compare_whole_shapes()
    with _opened(base_name), _built(config, base_name):
        model, told = AutoModelForImageTextToText.from_pretrained(
            base_name, trust_remote_code=False, output_loading_info=True, **options
        )
    if getattr(model, "_hf_peft_config_loaded", False):  # of the hub; a folder was refused before
        raise ValueError(both(base_name))
    checkpoint_files.require_whole(base_name, model, told["missing_keys"], told["unexpected_keys"])
    if (
        adapter is not None and not allow_other_base
    ):  # again: before, a part of it may still have been on the hub
        adapters.check_base(adapter, base_name, cache_dir=cache_dir, named_for_it=base is not None)
    if sharded:
        _save_under_the_names_read(model)
    _keep_four_bit_layout(model)
    if adapter is not None:
        model = with_adapter(model, adapter, trainable=for_training)
    if device is not None and not quantize:
        model = model.to(device)
    if not for_training:
        model.eval()
    return model, load_processor(name_or_path, cache_dir=cache_dir, base=base)


def check(
    name_or_path: str | Path,
    *,
    cache_dir: str | None = None,
    base: str | None = None,
    allow_other_base: bool = False,
    named_for_it: bool = True,
) -> Any:
    """Check that a checkpoint can be opened and return its configuration. Reads configurations and headers, no weights.

    named_for_it   ``base`` is where the user keeps this adapter's base, under any name

    Raises ValueError if the checkpoint, or an adapter's base, is not found or of an unknown family, where files
    are missing or truncated or lack tensors of the model, and where an adapter has invalid fields, or was trained on
    another kind of base or other weights.
    """
    base_name, adapter = resolve(name_or_path, base=base)
    config = _config(base_name, cache_dir)
    families.family_of(config)
    _require_weights(base_name, config)
    if adapter is not None:
        adapters.check_fit(adapter, lambda: skeleton(copy.deepcopy(config)), base_name)
        if not allow_other_base:
            adapters.check_base(
                adapter, base_name, cache_dir=cache_dir, named_for_it=base is not None and named_for_it
            )
    return config


def require_weights(base_name: str | Path) -> None:
    """Raises ValueError, with file and remedy, where weights of a local folder are missing or truncated, or lack
    tensors of the model. Only headers are read."""
    _require_weights(base_name, None)


def _require_weights(base_name: str | Path, config: Any) -> None:
    folder = Path(base_name)
    checkpoint_files.check_weights(folder)
    if not folder.is_dir():
        return
    weights.require_all(folder)
    config = _config(str(folder), None) if config is None else config
    if getattr(config, "quantization_config", None) is None:  # packed weights have other names
        checkpoint_files.check_names(skeleton(copy.deepcopy(config)), folder)


def with_adapter(model: nn.Module, adapter: str | Path, *, trainable: bool) -> "PeftModel":
    """The base with the adapter loaded.

    Raises ValueError if tensors are missing, unexpected or of another shape: the adapter belongs to another base.
    """
    from peft import PeftModel

    folder = Path(adapter)
    name = getattr(bare_model(model), "name_or_path", "this model")
    if faults := weights.unfit(model, folder):
        raise ValueError(adapters.of_another_model(folder, name, faults))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # reported below, as an error
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    if broken := weights.not_finite(adapted):
        raise ValueError(f"{folder}: a broken adapter:\n{weights.listed(broken)}\ntake an earlier checkpoint")
    adapters.require_places(adapted, folder, name)
    return adapted


def check_kernel(name: str, computes_in: torch.dtype | None = None) -> None:
    """Raises ValueError, before weights are loaded, for a flash kernel that is not installed or cannot run.

    computes_in   the precision of training, where it is known
    """
    if not name.startswith("flash_attention"):
        return
    faults = []
    if not torch.cuda.is_available():
        faults.append("found no GPU, expected one of NVIDIA's or AMD's")
    if computes_in == torch.float32:
        faults.append("found training in float32, expected --bf16 True or --fp16 True")
    if not is_flash_attn_2_available():
        faults.append("found no package flash-attn that works here; its wheel must match torch and CUDA")
    if faults:
        raise ValueError(
            f"--attn_implementation {name}: {'; '.join(faults)}. Without it: --attn_implementation sdpa, the default, "
            "which has flash kernels of torch's own"
        )


def check_kernel_of(config: Any, name: str) -> None:
    """Raises ValueError, before weights are loaded, where the kernel would change the language model's results:
    SDPA has neither soft caps (Gemma 2) nor sink logits (GPT-OSS), flash kernels take no mask (Gemma 3, PaliGemma)."""
    if "flash" in name and (fault := flash_fault(families.family_of(config))):
        raise ValueError(
            f"--attn_implementation {name}: {fault}; give sdpa, or eager where sdpa is refused too"
        )
    if name == "sdpa" and (language := _beyond_sdpa(config)) is not None:
        raise ValueError(
            f"--attn_implementation sdpa: the language model is a {language}, whose attention logits are "
            "capped or have sinks, which SDPA cannot; give --attn_implementation eager"
        )


def _beyond_sdpa(config: Any) -> str | None:
    """The class of a language model whose attention SDPA cannot compute; None where it can."""
    text = getattr(config, "text_config", None)
    if type(text) not in MODEL_MAPPING:
        return None
    language = MODEL_MAPPING[type(text)]
    # transformers 5.17 has Gemma 2 under SDPA, and leaves its cap out without a word.
    can = language._supports_sdpa and not getattr(text, "attn_logit_softcapping", None)
    return None if can else str(language.__name__)


def load_config(name_or_path: str | Path, *, cache_dir: str | None = None) -> Any:
    """The configuration of a checkpoint, or of an adapter's base; no weights."""
    return _config(resolve(name_or_path)[0], cache_dir)


def load_processor(name_or_path: str | Path, *, cache_dir: str | None = None, base: str | None = None) -> Any:
    """The processor of a checkpoint: an adapter folder's own where it has one, else its base's, with the adapter's
    tokenizer and chat template where it has those."""
    base_name, adapter = resolve(name_or_path, base=base)
    family = families.family_of(_config(base_name, cache_dir))
    if adapter is not None:
        checkpoint_files.check_processor(adapter)
        if any((adapter / name).is_file() for name in _PROCESSOR_FILES):
            with _opened(str(adapter)), checkpoint_files.understood(adapter):
                return _tried(family, family.load_processor(str(adapter)), adapter)
    checkpoint_files.check_processor(base_name)
    with _opened(base_name), checkpoint_files.understood(base_name):
        processor = family.load_processor(base_name, cache_dir=cache_dir)
    place = base_name
    if adapter is not None and own_tokenizer.has_one(adapter):
        place = str(adapter)
        with _opened(place), checkpoint_files.understood(place):
            processor = own_tokenizer.beside_pictures_of(processor, adapter, family)
    with _opened(place), checkpoint_files.understood(place):
        return _tried(family, processor, place)


def _tried(family: Family, processor: Any, place: str | Path) -> Any:
    """The processor, once it has read a picture and a question.

    Libraries accept settings of any type, and fail where they are first used: in the middle of the data. What the
    project refuses itself (ValueError: a template that leaves out turns) is refused there, with the sample's name.

    Raises ValueError for a chat template that does not end, or fails.
    """
    asked = Turn("user", (ImageRef("a picture", Path(), data=_picture()), "What is this?"))
    conversation = Conversation((asked, Turn("assistant", ("A picture.",))), "a trial")
    too_much = excess(lambda: family.encode(processor, conversation, media=False))
    if too_much is not None:
        raise BrokenTemplate(
            f"{place}: its chat template (chat_template.jinja, chat_template.json or tokenizer_config.json) {too_much} "
            "to write one question and its answer; expected milliseconds; take the file of the published model"
        )
    try:
        family.encode(processor, conversation)
    except BrokenTemplate:
        raise
    except ValueError:
        pass
    return processor


@functools.cache
def _picture() -> bytes:
    """A picture that is not square, as a file."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "grey").save(file, "PNG")
    return file.getvalue()


_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def adapter_folder(name: str, *, flag: str) -> Path:
    """The local folder of an adapter. Raises ValueError for anything else; never asks the hub."""
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(
            f"{flag}: there is no folder {shortened(name)!r} (working directory {os.getcwd()}); expected an adapter "
            f"folder ({ADAPTER_CONFIG}, {weights.ADAPTER_FILES[0]}); download an adapter of the hub first"
        )
    if not is_adapter(path):
        raise ValueError(f"{flag} {name}: found no {ADAPTER_CONFIG}, expected an adapter folder")
    return path


@contextmanager
def _opened(name: str) -> Iterator[None]:
    """Turn an OSError about a missing file, folder or hub name into one ValueError."""
    try:
        yield
    except OSError as error:
        reason = one_line(str(error).partition("\n")[0], 300)
        if os.path.exists(name):
            raise ValueError(f"{name}: {reason}") from error
        raise ValueError(
            f"{one_line(name, 300)}: there is no such folder (working directory {os.getcwd()}), and the hub has no "
            f"such checkpoint or cannot be reached: {reason}"
        ) from error


@contextmanager
def _built(config: Any, name: str) -> Iterator[None]:
    """Turn an invalid configuration, or one of other weights, into one ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # of any kind; raised again unless the configuration caused it
        with checkpoint_files.understood(_config_of(name)):
            skeleton(config)
        if isinstance(error, SafetensorError):
            raise ValueError(f"{name}: its weights cannot be read ({error}); copy them again") from error
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{name}: its weights have other shapes than {MODEL_CONFIG} says (the table above names them); take the "
            "file from the checkpoint that the weights belong to"
        ) from error


def _config_of(name: str) -> str:
    """How messages name the configuration of a folder or hub name."""
    return f"{name}/{MODEL_CONFIG}"


def _config(base_name: str, cache_dir: str | None) -> Any:
    checkpoint_files.check_config(base_name)
    hub.require(base_name, cache_dir=cache_dir)
    with _opened(base_name):
        written, _ = PreTrainedConfig.get_config_dict(base_name, cache_dir=cache_dir)
        kind = written.get("model_type")
        if kind not in CONFIG_MAPPING:  # before transformers asks whether to run the checkpoint's own code
            raise ValueError(f"{base_name}: {families.unknown(kind, sees='vision_config' in written)}")
        with checkpoint_files.understood(_config_of(base_name)):
            config = AutoConfig.from_pretrained(base_name, cache_dir=cache_dir, trust_remote_code=False)
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

    Vision tower, connector, embeddings and output layer keep their precision: they take little memory, and what the
    model sees should not change.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or torch.float32,
        llm_int8_skip_modules=sorted(_linear_outside_language(config, family)),
    )


@functools.cache
def _compare_whole_shapes() -> None:
    """Make transformers compare files with unsharded shapes under ZeRO-3, when it loads and saves.

    Trap: the experts of Qwen3-VL-MoE lie one way in published files and the other way in those of transformers 5, which
    tells them apart by the model's shape (5.23). Under ZeRO-3 that is the shape of an empty shard: it transposed all of
    them and rejected its own checkpoints.
    """
    convert = Transpose.convert

    def comparing_whole(self: Transpose, *args: Any, model: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        return convert(self, *args, model=_WholeShapes(model), **kwargs)

    Transpose.convert = comparing_whole  # type: ignore[method-assign]


def _save_under_the_names_read(model: Any) -> None:
    """Let a model that was loaded under ZeRO-3 be saved under the names that its files had.

    Trap: transformers undoes, when it saves, each renaming that loading did. Under ZeRO-3 it takes those for done that
    matched nothing (5.23), and writes names of no release (``model.model.layers.0``), which itself alone can read.
    """
    conversions = getattr(model, "_weight_conversions", None)  # written by loading, where there are any
    if conversions is not None:
        model._weight_conversions = [one for one in conversions if one.was_used()]


class _WholeShapes:
    """A model's parameters as empty tensors of their unsharded shapes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def get_parameter(self, name: str) -> Tensor:
        return torch.empty(weights.whole_shape(self.model.get_parameter(name)), device="meta")


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

    Raises ValueError naming the configuration if no model can be built from it.

    Trap: under ZeRO-3 transformers shards and fills whatever ``_from_config`` builds, which fails on the meta device;
    and all families but Qwen-VL build their towers and language models by it. ``set_zero3_state`` says that sharding
    is taken care of, as it is while ``from_pretrained`` builds a whole model.
    """
    with (
        checkpoint_files.understood(_config_of(getattr(config, "name_or_path", "") or type(config).__name__)),
        torch.device("meta"),
        set_zero3_state(),
    ):
        model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config)
    dtype = config.dtype
    if isinstance(dtype, str):  # after ``save_pretrained`` a configuration has its name
        dtype = getattr(torch, dtype.removeprefix("torch."))
    return model.to(dtype) if dtype is not None else model


def _linear_outside_language(config: Any, family: Family) -> Iterator[str]:
    model = skeleton(config)
    inside = f"{family.paths.language_layers}."
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(inside):
            yield name
