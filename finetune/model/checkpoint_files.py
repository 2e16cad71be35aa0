"""Checks a checkpoint folder's JSON files before any library builds objects from them.

A wrong field otherwise ends in a library's internal error, or in hours of building a billion layers. The limits here
are far above every published model; each family checks its own requirements where it reads the configuration.
"""

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from finetune import distributed, fields
from finetune.families.parts.tokenizer import is_panic
from finetune.fields import NULL, OBJECT, TEXT, TRUTH, Kind, by_name, items, number, one_of, whole
from finetune.model import weights
from finetune.printable import one_line

CONFIG = "config.json"
REMEDY = "take the file from the checkpoint that it belongs to"

DTYPES = tuple(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype))
_SIZE = whole(0, 2**27)
_LAYERS = whole(0, 2_000)
_SIZES = (_SIZE | NULL | items(_SIZE) | by_name(_SIZE))._replace(words=f"{_SIZE.words}, or several of them")
_ID = whole(-1, 2**40)
_IDS = (_ID | NULL | items(_ID))._replace(words="the number of a token, or several of them")

LIMITS: dict[str, Kind] = {
    **dict.fromkeys(
        ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "layers", "depth", "num_encoder_layers"),
        _LAYERS | NULL,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads", "num_key_value_heads", "num_heads", "heads", "n_head", "num_experts",
            "num_local_experts", "num_experts_per_tok", "linear_num_key_heads", "linear_num_value_heads",
        ),
        whole(0, 2**17) | NULL,
    ),
    **dict.fromkeys(
        (
            "hidden_size", "vocab_size", "embed_dim", "head_dim", "kv_channels", "width", "output_dim", "n_embd",
            "out_hidden_size", "projection_dim", "num_channels", "in_channels", "in_chans", "n_queries",
            "num_image_tokens", "moe_intermediate_size", "shared_expert_intermediate_size", "spatial_merge_size",
            "num_position_embeddings", "linear_key_head_dim", "linear_value_head_dim", "mm_tokens_per_image",
        ),
        _SIZE | NULL,
    ),
    **dict.fromkeys(
        ("intermediate_size", "patch_size", "image_size", "temporal_patch_size"),
        _SIZES,
    ),
    **dict.fromkeys(("max_position_embeddings", "seq_length"), whole(0, 2**40) | NULL),
    **dict.fromkeys(
        ("eos_token_id", "bos_token_id", "pad_token_id", "image_token_id", "video_token_id"),
        _IDS,
    ),
    **dict.fromkeys(("dtype", "torch_dtype"), one_of(*DTYPES) | NULL),
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "dropout"), number(0, 1) | NULL),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), number(0, 1) | NULL),
    **dict.fromkeys(("initializer_range", "rope_theta", "rotary_emb_base"), number(0) | NULL),
    **dict.fromkeys(("use_cache", "tie_word_embeddings"), TRUTH | NULL),
    **dict.fromkeys(("text_config", "vision_config", "quantization_config"), OBJECT | NULL),
    "architectures": items(TEXT) | NULL,
}  # fmt: skip
LIMITS["dtype"] = LIMITS["torch_dtype"] = LIMITS["dtype"]._replace(words="a precision such as bfloat16")
"""Field → valid values, in any family's configuration and its sub-configurations."""


def check_config(name_or_path: str | Path) -> None:
    """Check a local folder's ``config.json``; hub names are not checked.

    Raises ValueError with file, field, what was found and what is expected.
    """
    path = Path(name_or_path) / CONFIG
    if not path.is_file():
        return
    content = fields.load(path, {"model_type": TEXT | NULL}, remedy=REMEDY)
    fields.refuse(list(islice(_config_faults(content, "", 0), 9)), str(path), REMEDY)


DEEPEST_PART = 8
"""Configurations have parts (text, vision), which may have parts; deeper levels are not checked."""
LONGEST_TEXT = 2**12
"""Characters of a name or word in a configuration; libraries repeat the whole of one that they do not know."""


def _config_faults(part: dict[str, Any], at: str, depth: int) -> Iterator[str]:
    yield from fields.faults(part, LIMITS, at=at)
    for name, value in part.items():
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            yield (
                f"{at}{name}: found text of {len(value):,} characters, {fields.shown(value)}; expected at most "
                f"{LONGEST_TEXT:,}"
            )
        if isinstance(value, dict) and depth < DEEPEST_PART:
            yield from _config_faults(value, f"{at}{name}.", depth + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Of a processor
# ---------------------------------------------------------------------------------------------------------------------

_COLOURS = items(number(-1e6, 1e6), 3)
_SIDE = whole(1, 2**13)
_AREA = whole(1, 2**24)
"""What pictures are enlarged to, in pixels: at 4 bytes a value, three values a pixel, a few copies take a gigabyte."""
PREPROCESSOR = {
    "image_mean": _COLOURS | NULL,
    "image_std": items(number(0, above=True), 3) | NULL,
    "image_size": whole(1, 2**12) | OBJECT | NULL,
    "patch_size": whole(1, 2**8) | OBJECT | NULL,
    "merge_size": whole(1, 2**3) | NULL,
    "temporal_patch_size": whole(1, 2**4) | NULL,
    **dict.fromkeys(("min_patches", "max_patches"), whole(1, 2**10) | NULL),
    "min_pixels": _AREA | NULL,
    "max_pixels": whole(1, 2**40) | NULL,
    "size": by_name(whole(1, 2**40) | NULL) | whole(1, 2**13) | NULL,
    **dict.fromkeys(("crop_size", "pad_size"), by_name(_SIDE | NULL) | _SIDE | NULL),
    "max_image_size": by_name(_SIDE) | NULL,
    "image_grid_pinpoints": items(items(whole(1, 2**14), 2)) | NULL,
    "image_processor_type": TEXT | NULL,
    "processor_class": TEXT | NULL,
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), TRUTH | NULL),
}

_TOKEN = TEXT | OBJECT | NULL
TOKENIZER = {
    **dict.fromkeys(("eos_token", "bos_token", "pad_token", "unk_token"), _TOKEN),
    "added_tokens_decoder": by_name(OBJECT),
    "additional_special_tokens": items(TEXT | OBJECT) | NULL,
    "extra_special_tokens": items(TEXT | OBJECT) | by_name(TEXT | OBJECT) | NULL,
    "model_max_length": number(1) | NULL,
    "image_tokens": whole(1, 2**16),
    "padding_side": one_of("left", "right"),
    "truncation_side": one_of("left", "right"),
    "errors": one_of("strict", "ignore", "replace", "backslashreplace", "surrogateescape"),
    **dict.fromkeys(("tokenizer_class", "processor_class", "chat_template"), TEXT | NULL),
}
TOKENIZER["chat_template"] = TEXT | items(OBJECT) | OBJECT | NULL

PROCESSOR_FILES: dict[str, fields.Shape] = {
    "preprocessor_config.json": PREPROCESSOR,
    "tokenizer_config.json": TOKENIZER,
    "processor_config.json": {
        "image_processor": OBJECT | NULL,
        "processor_class": TEXT | NULL,
        **dict.fromkeys(("image_seq_length", "image_seq_len", "num_image_tokens"), whole(0, 2**16) | NULL),
    },
    "special_tokens_map.json": {},
}


def check_processor(name_or_path: str | Path) -> None:
    """Check the JSON files of a local folder's processor.

    Raises ValueError with file, field, what was found and what is expected.
    """
    _check_ids(Path(name_or_path) / "tokenizer.json")
    for path, content in _check_files(Path(name_or_path), PROCESSOR_FILES):
        found = [*_picture_faults(content, "")]
        if isinstance(content.get("image_processor"), dict):
            found += fields.faults(content["image_processor"], PREPROCESSOR, at="image_processor.")
            found += _picture_faults(content["image_processor"], "image_processor.")
        fields.refuse(found[: fields.MOST_FAULTS_SHOWN + 1], str(path), REMEDY)


def _check_ids(file: Path) -> None:
    """A tokenizer holds a table up to its largest id. The file has megabytes, so it is searched and not parsed."""
    found = _HUGE_ID.search(file.read_bytes()) if file.is_file() else None
    if found is not None:
        raise ValueError(
            f"{file}: found a token with the number {found[1].decode()[:40]}, expected numbers below 100,000,000; "
            f"{REMEDY}"
        )


_HUGE_ID = re.compile(rb'(?<!max_length)"\s*:\s*([1-9]\d{8,})\b')
"""Behind a key, the end of a token within quotes; ``truncation.max_length`` may be any number."""


def _picture_faults(settings: Mapping[str, Any], at: str) -> Iterator[str]:
    """What every picture is enlarged to. ``size`` has sides in pixels; in families that keep a picture's shape, how
    many pixels it may have at least and at most."""
    size = settings.get("size")
    if isinstance(size, dict):
        areas = any(name in settings for name in ("merge_size", "temporal_patch_size", "min_pixels"))
        area = {"shortest_edge": _AREA | NULL}
        yield from fields.faults(size, area if areas else dict.fromkeys(size, _SIDE | NULL), at=f"{at}size.")


def _check_files(folder: Path, shapes: Mapping[str, fields.Shape]) -> list[tuple[Path, dict[str, Any]]]:
    """Each file that is there, and what it holds."""
    paths = [(folder / name, shape) for name, shape in shapes.items() if (folder / name).is_file()]
    return [(path, fields.load(path, shape, remedy=REMEDY)) for path, shape in paths]


WEIGHT_FILES: dict[str, fields.Shape] = {
    "generation_config.json": {"eos_token_id": _IDS, "pad_token_id": _IDS, "do_sample": TRUTH | NULL},
    "model.safetensors.index.json": {"weight_map": by_name(TEXT)},
    "pytorch_model.bin.index.json": {"weight_map": by_name(TEXT)},
}


def check_weights(name_or_path: str | Path) -> None:
    """Check a local folder's weight files and the JSON files beside them; no tensor is read.

    Raises ValueError for a truncated file, and as :func:`check_processor` does.
    """
    folder = Path(name_or_path)
    _check_files(folder, WEIGHT_FILES)
    for path in weights.weight_files(folder) if folder.is_dir() else ():
        if weights.is_cut_short(path):
            raise ValueError(
                f"{path}: was cut short, or holds no weights ({path.stat().st_size:,} bytes); copy it again, or take "
                "another checkpoint"
            )


MOST_NAMES = 5_000
"""The loader takes a second for a thousand names; of experts saved one by one there are 30,000. Loading names what is
missing among them."""


def check_names(model: Any, folder: Path) -> None:
    """Check that the weight files of a folder hold every tensor of this model, which has none itself (on the meta
    device). Headers alone are read.

    transformers' own loader is asked, with tensors without content: it knows the names of every release.

    Raises ValueError as :func:`require_whole` does.
    """
    shapes = weights.shapes(folder)
    if len(shapes) > MOST_NAMES:
        return
    found = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    options = LoadStateDictConfig(
        device_map={"": "meta"}, weight_mapping=get_model_conversion_mapping(model, None, None)
    )
    with _no_bar():
        loaded, _ = convert_and_load_state_dict_in_model(model, found, options)
    model.tie_weights(missing_keys=loaded.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(loaded)
    if not loaded.conversion_errors:  # else loading says what does not fit together
        require_whole(folder, model, loaded.missing_keys, loaded.unexpected_keys)


def require_whole(
    place: str | Path, model: torch.nn.Module, missing: Collection[str], unexpected: Collection[str]
) -> None:
    """Raises ValueError where parameters of a model were not in its files: transformers fills them with random numbers
    and only warns. Of tensors that the model does not have one line is printed.

    missing, unexpected   names, as transformers' loader returns them: those of tied tensors are not missing
    """
    lost = [name for name, _ in model.named_parameters(remove_duplicate=False) if name in missing]
    other = sorted(name for name in unexpected if not _WORKED_OUT.search(name))
    if lost:
        instead = (
            f"found {len(other)} that it does not have, such as {one_line(other[0], 160)}; " if other else ""
        )
        raise ValueError(
            f"{place}: its weights lack {len(lost)} of the model's tensors, which would be filled with random "
            f"numbers:\n{weights.listed(lost)}\n{instead}expected each under its own name: copy or download the "
            "checkpoint again, or save it without the wrapper that renamed them (module., _orig_mod.)"
        )
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        names = one_line(", ".join(other[:3]), 480)
        _say_once(f"{place}: tensors in its files that the model does not have, left out: {names}{more}")


_WORKED_OUT = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|masked_bias|num_batches_tracked)$")
"""Tables that earlier releases saved and a model works out itself."""

_say_once = functools.cache(distributed.say)


@contextmanager
def _no_bar() -> Iterator[None]:
    """transformers draws no progress bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def understood(place: str | Path) -> Iterator[None]:
    """Turn any error of a library that builds objects from a checkpoint's files into one ValueError.

    Libraries raise errors of every kind; known fields are checked before.

    place   the file or folder that the message names
    """
    try:
        yield
    except OSError:
        raise  # a missing file: the caller has the better message
    except BaseException as error:  # any kind, see above
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = one_line(str(error).strip().partition("\n")[0], 300)
        if isinstance(error, ValueError) and str(place) in reason:
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{place}: {kind}{reason}") from error
