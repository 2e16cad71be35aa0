"""An adapter folder, before anything is loaded: its configuration, its files, and the base that it was made on.

Training, export, comparison and the web demo share these checks (through ``checkpoint.check``).
"""

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import torch
from torch import nn

from finetune.fields import NULL, TEXT, by_name, load, shown
from finetune.files import write_atomically
from finetune.model import weights
from finetune.model.folders import ADAPTER_CONFIG, Fields, read
from finetune.printable import one_line

if TYPE_CHECKING:
    from peft import PeftModel

BASE_FILE = "adapter_base.json"
VERSION = 1
SAMPLED = 16  # values of each tensor that enter a fingerprint

OTHER_BASE = "to use it anyway, give --allow_other_base True (in training), --allow_other_base (elsewhere)"


# ---------------------------------------------------------------------------------------------------------------------
# Its configuration
# ---------------------------------------------------------------------------------------------------------------------


def check_fields(folder: Path) -> Fields:
    """The fields, each of the type and in the range that PEFT needs.

    Raises ValueError that names file and fields, also for a kind of adapter that PEFT opens on a changed base.
    """
    fields = read(folder)
    faults = [*_wrong_types(fields)] or [*_wrong_values(fields)]
    if faults:
        listed = one_line("; ".join(faults), 1200)
        raise ValueError(f"{folder / ADAPTER_CONFIG}: {listed}; copy the adapter again, or correct it")
    _refuse_changed_base(folder, fields)
    return fields


_BASE_AS_IT_IS = ("gaussian", "orthogonal", "eva", "mica")
"""Values of ``init_lora_weights`` with which PEFT leaves the base as it is: in training, and opening the adapter."""


def _refuse_changed_base(folder: Path, fields: Fields) -> None:
    """PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA train beside a base from which something was taken.

    Trap: PEFT takes it again from the base that it is given, each time that it opens the adapter: with random numbers
    for ``pissa_niter_N``, for CorDA and LoRA-GA from gradients or activations that no file holds.
    """
    found = fields.get("init_lora_weights")
    if isinstance(found, str) and found.lower() not in _BASE_AS_IT_IS:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: init_lora_weights: found {shown(found)}, with which PEFT changes the base's "
            "weights whenever it opens the adapter, expected true, false, null or one of "
            f"{', '.join(map(shown, _BASE_AS_IT_IS))}; save it once more where it was trained, as a plain LoRA: "
            "model.save_pretrained(FOLDER, path_initial_model_for_weight_conversion=THE_ADAPTER_BEFORE_TRAINING)"
        )


def _wrong_types(fields: Fields) -> Iterator[str]:
    from peft import LoraConfig  # importing it takes two seconds

    kind = fields.get("peft_type")
    if kind != "LORA":
        yield f"peft_type: found {shown(kind)}, expected 'LORA': adapters of other kinds cannot be opened here"
        return
    hints = typing.get_type_hints(LoraConfig)
    for name, value in fields.items():
        hint = float if name == "lora_alpha" else hints.get(name, Any)
        if name == "init_lora_weights":
            hint = Union[bool, str, None]  # noqa: UP007 - of the same kind as PEFT's own hints
        if not _fits(value, hint):
            yield f"{name}: found {shown(value)}, expected {_words(hint)}"


def _fits(value: Any, hint: Any) -> bool:
    """Does a JSON value match this type?"""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return value in inside
    if origin in (list, tuple):
        each = inside if origin is tuple else inside * len(value) if isinstance(value, list) else ()
        return isinstance(value, list) and len(each) == len(value) and all(map(_fits, value, each))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inside[1]) for one in value.values())
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in [one.value for one in hint]
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        # Finite, and no whole number that is too large for a float or a tensor's shape.
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 2**63
    return hint is Any or isinstance(value, hint)


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in inside)
    if origin is Literal:
        return " or ".join(repr(one) for one in inside)
    if origin in (list, tuple):
        return f"a list of {_words(inside[0])}" if origin is list else "a list"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "an object"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of PEFT's names"
    return names.get(hint, "an object")


def _wrong_values(fields: Fields) -> Iterator[str]:
    if fields.get("r", 1) < 1:
        yield f"r: found {fields['r']}, expected at least 1"
    if not 0 <= fields.get("lora_dropout", 0.0) < 1:
        yield f"lora_dropout: found {fields['lora_dropout']:g}, expected 0 ≤ p < 1"
    if fields.get("alora_invocation_tokens"):
        yield (
            f"alora_invocation_tokens: found {shown(fields['alora_invocation_tokens'])}, expected null: an aLoRA acts "
            "only in PEFT's own forward pass, and would be measured as its base"
        )
    for name in ("target_modules", "exclude_modules"):
        if isinstance(fields.get(name), str):
            yield from _wrong_pattern(name, fields[name])
    for name, least in (("rank_pattern", 1), ("alpha_pattern", 0)):
        for pattern, value in (fields.get(name) or {}).items():
            yield from _wrong_pattern(name, pattern)
            if not _fits(value, int if least else float) or value < least:
                yield f"{name}: found {shown(value)} for {shown(pattern)}, expected a number of at least {least}"


def _wrong_pattern(name: str, pattern: str) -> Iterator[str]:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        yield f"{name}: found {shown(pattern)}, expected a regular expression ({error})"


# ---------------------------------------------------------------------------------------------------------------------
# On a base without weights
# ---------------------------------------------------------------------------------------------------------------------


def check_fit(folder: Path, skeleton: Callable[[], nn.Module], base_name: str) -> None:
    """Check that an adapter is complete and that every tensor fits this base. Only file headers are read.

    skeleton   builds a new base on the meta device at each call: PEFT modifies the model it wraps

    Raises ValueError with file and field, or file and tensors.
    """
    fields = check_fields(folder)
    if not weights.adapter_files(folder):
        raise ValueError(
            f"{folder}: found {ADAPTER_CONFIG} and no {weights.ADAPTER_FILES[0]}; copy the adapter again, or take an "
            "earlier checkpoint"
        )
    if faults := weights.unfit(skeleton(), folder):
        raise ValueError(of_another_model(folder, base_name, faults))
    require_places(_outline(folder, fields, skeleton), folder, base_name)


def require_places(adapted: "PeftModel", folder: Path, base_name: str) -> None:
    """Raises ValueError, with cause and remedy, where the base with the adapter lacks tensors in the adapter's files,
    or has no place for one of theirs."""
    faults = weights.misplaced(adapted, folder)
    if not faults:
        return
    renamed = weights.renamed_since(adapted, folder)
    if not renamed:
        raise ValueError(of_another_model(folder, base_name, faults))
    beginnings = weights.listed([f"{then} → {now}" for then, now in renamed.items()])
    (file,) = weights.adapter_files(folder)
    raise ValueError(
        f"{file}: its tensors fit {base_name}, but have other names, as transformers wrote them before 4.52:\n"
        f"{beginnings}\n"
        "rename them in the file, or merge the adapter with the release that it was trained with, and give the merged "
        f"model. An adapter of a language model alone has such names too: if {ADAPTER_CONFIG} there names one, this "
        "is not its base"
    )


def of_another_model(folder: Path, base_name: str, faults: list[str]) -> str:
    """What is said of an adapter whose tensors do not fit a base."""
    return (
        f"{folder}: an adapter of another model than {base_name}:\n{weights.listed(faults)}\n"
        f"give the base that it was trained on ({ADAPTER_CONFIG} there says which)"
    )


def _outline(folder: Path, fields: Fields, skeleton: Callable[[], nn.Module]) -> Any:
    """The base with the adapter, on the meta device.

    PEFT raises many kinds of errors for fields that contradict each other or the model, and does not name the field.
    The culprit is a field without which PEFT raises no error.
    """
    fault = _refusal(fields, skeleton)
    if not isinstance(fault, Exception):
        return fault
    from peft import LoraConfig

    defaults = LoraConfig()
    suspects = [name for name, value in fields.items() if value != getattr(defaults, name, value)]
    found = [
        name
        for name in suspects
        if not isinstance(
            _refusal({key: value for key, value in fields.items() if key != name}, skeleton), Exception
        )
    ]
    values = ", ".join(f"{name}: {shown(fields[name])}" for name in found or suspects)
    reason = one_line(str(fault).partition("\n")[0], 300)
    raise ValueError(
        f"{folder / ADAPTER_CONFIG}: found {one_line(values, 700)}, with which PEFT cannot build the adapter on this "
        f"base ({type(fault).__name__}: {reason}); copy the adapter again, or give its own base"
    ) from fault


def _refusal(fields: Fields, skeleton: Callable[[], nn.Module]) -> Any:
    """The base with the adapter that these fields describe, or what PEFT raises."""
    from peft import LoraConfig, get_peft_model

    known = {one.name for one in dataclasses.fields(LoraConfig)}
    kept = {name: value for name, value in fields.items() if name in known}
    kept |= {"inference_mode": False, "base_model_name_or_path": None, "peft_type": "LORA"}
    try:
        with torch.device("meta"):
            return get_peft_model(skeleton(), LoraConfig(**kept), autocast_adapter_dtype=False)
    except Exception as error:  # of any kind: PEFT fails in many places on invalid fields
        return error


# ---------------------------------------------------------------------------------------------------------------------
# Its base
# ---------------------------------------------------------------------------------------------------------------------


def fingerprint(folder: Path) -> str | None:
    """SHA-256 over names, shapes and some values of all tensors of a model folder; None for a folder without weights.

    Values are rounded to bf16 first, so a base and its half-precision copy share a fingerprint; training changes it.
    """
    digest = hashlib.sha256()
    found = sorted(weights.samples(folder, SAMPLED), key=lambda one: one[0])
    for name, shape, numbers in found:
        digest.update(f"{name}\0{shape}\0".encode())
        digest.update(numbers.to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest() if found else None


def fingerprint_of(name: str, cache_dir: str | None = None) -> str | None:
    """The fingerprint of a named checkpoint; None if its weights are not on this machine, or not all of them: a
    download that was interrupted goes on when they are loaded."""
    folder = weights.local_folder(name, cache_dir)
    return fingerprint(folder) if folder is not None and _has_all(folder) else None


def _has_all(folder: Path) -> bool:
    """Are all the files there that the index names? Of two formats, the one that is read."""
    kind = next((path.suffix for path in weights.weight_files(folder)), None)
    named: set[str] = set()
    for index in folder.glob(f"*{kind}.index.json"):
        try:
            named |= set(load(index, {"weight_map": by_name(TEXT)}).get("weight_map", {}).values())
        except ValueError:
            return False  # loading says what is wrong with it
    return all((folder / name).is_file() for name in named)


def write_base(folder: Path, base_name: str, taken: str | None = None) -> None:
    """Write the name and fingerprint of an adapter's base beside it.

    taken   the fingerprint, from when the base was loaded; None: it is taken now, of what has the name by default
    """
    content = {
        "version": VERSION,
        "base_model_name_or_path": base_name,
        "fingerprint": fingerprint_of(base_name) if taken is None else taken,
    }
    write_atomically(folder / BASE_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _written_fingerprint(folder: Path) -> str | None:
    file = folder / BASE_FILE
    if not file.is_file():
        return None
    content = load(file, {"fingerprint": TEXT | NULL}, remedy="copy the adapter again, or delete this file")
    return content.get("fingerprint")


def check_base(
    folder: Path, base_name: str, *, cache_dir: str | None = None, named_for_it: bool = False
) -> None:
    """Raises ValueError if an adapter was made on other weights than those of ``base_name``.

    Compares the fingerprint that training saved beside the adapter; failing that, the fingerprint of the base that the
    adapter names, if it still exists; failing that, the names.

    named_for_it   the user gave this base explicitly (--base), so a different name is accepted
    """
    recorded = read(folder).get("base_model_name_or_path")
    now = fingerprint_of(base_name, cache_dir)
    written = _written_fingerprint(folder)
    if now and written:
        if now != written:
            raise ValueError(
                f"{folder}: this adapter was trained on other weights than {base_name}: found fingerprint {now[:12]}…, "
                f"expected {one_line(written, 12)} ({BASE_FILE} there); it was trained on an earlier state of "
                f"{one_line(str(recorded), 200)}; "
                f"give that base; {OTHER_BASE}"
            )
        return
    if not recorded or _same_place(recorded, base_name):
        return
    then = fingerprint_of(recorded, cache_dir)
    if now and then:
        same = now == then
    else:
        same = named_for_it or Path(recorded).name.lower() == Path(base_name).name.lower()
    if not same:
        raise ValueError(
            f"{folder}: this adapter was trained on another base: found {base_name}, expected "
            f"{one_line(str(recorded), 200)}, which {ADAPTER_CONFIG} there names; give that one; {OTHER_BASE}"
        )


def _same_place(first: str, second: str) -> bool:
    return first == second or Path(first).expanduser().resolve() == Path(second).expanduser().resolve()
