"""Compares the tensors of a checkpoint's files with those of a model: none missing, none unexpected.

Files name tensors otherwise than a model does. Three renamings, all undone here:

- transformers writes the names of earlier releases: ``model.language_model.layers.0`` of Qwen2.5-VL and of LLaVA is
  ``model.layers.0`` in the file. Trap: its Trainer looks for the model's own names when it resumes from a checkpoint,
  finds one tensor of 45 in a small Qwen2.5-VL (5.23), warns, and trains the rest from the base again.
- PEFT leaves out the adapter's name and what it wraps modules in
- a tensor that two modules share is written once by transformers, and once for each of them by PEFT
"""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from finetune import fields
from finetune.families.parts.modules import bare_model
from finetune.fields import TEXT, by_name, items, whole
from finetune.model.folders import MODEL_FILES
from finetune.printable import one_line
from finetune.sharding import whole_shape

if TYPE_CHECKING:
    from peft import PeftModel

Shape = tuple[int, ...]

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
MOST_NAMES_SHOWN = 10

_PEFT_COPIES = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
_PEFT_WRAPS = re.compile(r"\.(modules_to_save\.[^.]+|base_layer)(?=\.)")
_PEFT_NAMES = re.compile(
    r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|\.trainable_tokens_delta)\.[^.]+"
)
_TOKENS = ".token_adapter.trainable_tokens_delta"  # rows of the embeddings, one for each token that trained
_PEFT_PREFIX = "base_model.model."
_OF_AN_ADAPTER = re.compile(r"\.lora_|\.modules_to_save\.|\.trainable_tokens_delta(\.|$)")


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[Path]:
    """The files with weights in a folder: an adapter's, or else a model's; of two formats, safetensors alone."""
    for names in ((ADAPTER_FILES[0],), (ADAPTER_FILES[1],), *((pattern,) for pattern in MODEL_FILES)):
        found = sorted(path for name in names for path in folder.glob(name))
        if found:
            return found
    return []


def is_cut_short(path: Path) -> bool:
    """Does a file of weights or states end before its format says that it does, or is it no such file at all?

    Other files are whole, as far as is known here.
    """
    if path.suffix in (".pt", ".pth", ".bin"):
        return not zipfile.is_zipfile(path)  # torch's format; a zip file's table of contents is its end
    if path.suffix != ".safetensors":
        return False
    with path.open("rb") as file:
        header = file.read(8)
        length = int.from_bytes(header, "little")
        if len(header) < 8 or path.stat().st_size < 8 + length:
            return True
        text = file.read(length)
    try:
        tensors = fields.parse(text.decode("utf-8"), path.name)
    except ValueError:
        return True
    offsets = items(whole(0), 2)
    if not isinstance(tensors, dict):
        return True
    entries = [content for name, content in tensors.items() if name != "__metadata__"]
    if not all(isinstance(one, dict) and offsets.fits(one.get("data_offsets")) for one in entries):
        return True
    return path.stat().st_size != 8 + length + max((one["data_offsets"][1] for one in entries), default=0)


def adapter_files(folder: Path) -> list[Path]:
    return [folder / name for name in ADAPTER_FILES if (folder / name).is_file()][:1]


def require_all(folder: Path) -> None:
    """Raises ValueError, with file and remedy, where weights of a model folder are missing: all, or a part of them."""
    for index in sorted(folder.glob("*.index.json")):
        where = {"weight_map": by_name(TEXT)}
        files = fields.load(index, where, remedy="copy or download it again").get("weight_map", {})
        for name in sorted(set(files.values())):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder / name}: is not there, and {index.name} names it; copy or download it again"
                )
    if not weight_files(folder):
        raise ValueError(f"{folder}: found config.json and no weights; {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    """DeepSpeed may leave shards alone, which only its own script can put together."""
    shards = sorted(folder.glob("global_step*"))
    if not shards:
        return "copy it again, or take another checkpoint (no file named model.safetensors is there)"
    return (
        f"they are DeepSpeed's shards in {shards[0].name}; put them together first:\n"
        f"  python {folder}/zero_to_fp32.py {folder} {folder} --safe_serialization\n"
        "or train with stage3_gather_16bit_weights_on_model_save true"
    )


def local_folder(name: str, cache_dir: str | None = None) -> Path | None:
    """Where a checkpoint's files lie on this machine: the folder itself, or the hub's copy of it. Asks no network."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from transformers.utils import cached_file

    try:
        found = cached_file(
            name,
            "config.json",
            cache_dir=cache_dir,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
        )
    except (OSError, ValueError):
        return None
    return Path(found).parent if found else None


def samples(folder: Path, count: int) -> Iterator[tuple[str, Shape, Tensor]]:
    """Name, shape and the first ``count`` numbers of a middle row, of every tensor of a folder's files."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    kept = file.get_slice(name)
                    shape = tuple(kept.get_shape())
                    yield name, shape, kept[_row(shape, count)] if shape else file.get_tensor(name)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            for name, tensor in content.items():
                yield name, tuple(tensor.shape), tensor[_row(tuple(tensor.shape), count)]


def _row(shape: Shape, count: int) -> tuple[slice, ...]:
    middle = [slice(size // 2, size // 2 + 1) for size in shape[:-1]]
    return (*middle, slice(0, count)) if shape else ()


def shapes(folder: Path) -> dict[str, Shape]:
    """Name in the file → shape, of every tensor saved in a folder. Headers alone are read, no weights.

    Raises ValueError for a file that is cut short or is no file of weights.
    """
    found: dict[str, Shape] = {}
    for path in weight_files(folder):
        found |= _shapes_of(path)
    return found


def _shapes_of(path: Path) -> dict[str, Shape]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        content = torch.load(path, map_location="meta", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(_unreadable(path, one_line(str(error), 300))) from error
    return {name: tuple(tensor.shape) for name, tensor in content.items()}


def _unreadable(path: Path, reason: str) -> str:
    return (
        f"{path}: cannot be read ({reason}); it was cut short, or holds no weights; "
        "copy it again, or take an earlier checkpoint"
    )


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name in the file and tensor, one at a time."""
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


# ---------------------------------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------------------------------


def places(model: nn.Module) -> dict[str, Tensor]:
    """Name in the file → the model's tensor that it is the content of.

    A PeftModel's files may hold adapters, trained copies and biases; a model's hold all of it but what they hold in
    pieces (``pieces``). Of a tensor that modules share, every name is here.
    """
    from peft import PeftModel

    if isinstance(model, PeftModel):
        return {
            file_name: tensor
            # PEFT writes a tied copy under both its names, and lists it once unless told otherwise.
            for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
            for file_name in _peft_file_names(name)
        }
    state = model.state_dict(keep_vars=True)
    return {
        file_name: state[name]
        for file_name, (name, _) in _file_names(model, state).items()
        if name is not None
    }


def pieces(model: nn.Module) -> dict[str, Shape]:
    """Name in the file → shape, of what the files hold otherwise cut than the model does: Qwen3.5-MoE's experts, which
    are one tensor a layer in the model and three an expert in the files. None with adapters."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        return {}
    written = _file_names(model, model.state_dict(keep_vars=True))
    return {file_name: shape for file_name, (name, shape) in written.items() if name is None}


def _peft_file_names(name: str) -> Iterator[str]:
    """The name in an adapter's file: ``….c_attn.lora_A.default.weight`` → ``….c_attn.lora_A.weight``.

    DoRA's magnitudes lose their last part too: ``….lora_magnitude_vector.default.weight`` →
    ``….lora_magnitude_vector``. With ``bias="all"`` PEFT writes biases of trained copies a second time, under names
    that keep its own words.
    """
    plain = _PEFT_NAMES.sub(r"\1", _PEFT_COPIES.sub("", name))
    yield plain.removesuffix(".weight") if plain.endswith(".lora_magnitude_vector.weight") else plain
    if plain != name and ".modules_to_save." in name:
        yield name
        yield _PEFT_COPIES.sub(".modules_to_save", name)


def _file_names(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, tuple[str | None, Shape]]:
    """Name in the file → (name in the model, shape), as transformers writes it; None for a piece of tensors.

    Its own renaming is applied to tensors without content; those that it only renames it hands back.
    """
    from transformers.core_model_loading import revert_weight_conversion

    bare: Any = bare_model(model)
    stand_ins = {name: torch.empty(whole_shape(tensor), device="meta") for name, tensor in state.items()}
    names = {id(stand_in): name for name, stand_in in stand_ins.items()}
    renamed = revert_weight_conversion(bare, stand_ins)
    return {file_name: (names.get(id(one)), tuple(one.shape)) for file_name, one in renamed.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The two against each other
# ---------------------------------------------------------------------------------------------------------------------


def not_saved(model: nn.Module, folder: Path) -> list[str]:
    """A line for each tensor that a checkpoint of this model must hold and that ``folder`` does not."""
    homes, found = places(model), shapes(folder)
    return [*_missing(model, homes, found), *_misshapen(homes, found), *_lost_pieces(model, found)]


def restore(model: nn.Module, folder: Path) -> None:
    """Put every tensor of a checkpoint back into the model that it was saved from, in the model's precision.

    Raises ValueError, before anything is changed, where a tensor is missing, has no place, or has another shape.
    """
    homes, found = places(model), shapes(folder)
    cut = pieces(model)
    faults = [
        *_missing(model, homes, found),
        *_misshapen(homes, found),
        *_homeless({**homes, **cut}, found),
        *_lost_pieces(model, found),
    ]
    if faults:
        raise ValueError(
            f"{folder}: is no checkpoint of this run's model:\n{listed(faults)}\n"
            "give the flags that it was trained with, or start over in another --output_dir"
        )
    with torch.no_grad():
        if cut:
            _restore_joined(model, folder)
            return
        for name, tensor in tensors(folder):
            homes[name].copy_(tensor)


def _restore_joined(model: nn.Module, folder: Path) -> None:
    """Where the files hold pieces, transformers' own loader joins them, in a second model in the CPU's memory."""
    bare: Any = bare_model(model)
    saved = type(bare).from_pretrained(folder, config=bare.config, dtype=bare.dtype).state_dict()
    for name, tensor in bare.state_dict().items():
        tensor.copy_(saved[name])


def _lost_pieces(model: nn.Module, found: Mapping[str, Shape]) -> Iterator[str]:
    for name, shape in pieces(model).items():
        if found.get(name) != shape:
            there = "none" if name not in found else str(list(found[name]))
            yield f"{name}: found {there} in the files, expected {list(shape)}"


def _missing(model: nn.Module, homes: Mapping[str, Tensor], found: Mapping[str, Shape]) -> Iterator[str]:
    """With adapters, what trains: the base is opened beside it. Without, every parameter.

    Of a tensor with several names an adapter's file must have the first, a model's file any.
    """
    from peft import PeftModel

    adapted = isinstance(model, PeftModel)
    names: dict[int, list[str]] = {}
    for name, tensor in homes.items():
        if tensor.requires_grad if adapted else isinstance(tensor, nn.Parameter):
            names.setdefault(id(tensor), []).append(name)
    for first, *others in names.values():
        if first not in found and (adapted or not any(other in found for other in others)):
            yield f"{first}: found none in the files, expected {list(whole_shape(homes[first]))}"


def _misshapen(homes: Mapping[str, Tensor], found: Mapping[str, Shape]) -> Iterator[str]:
    for name, tensor in homes.items():
        if name in found and found[name] != whole_shape(tensor):
            yield f"{name}: found {list(found[name])} in the files, expected {list(whole_shape(tensor))}"


def _homeless(homes: Mapping[str, Any], found: Mapping[str, Shape]) -> Iterator[str]:
    for name, shape in found.items():
        if name not in homes:
            yield f"{name}: found {list(shape)} in the files, expected no such tensor"


def listed(faults: list[str]) -> str:
    """Faults, one a line, the first few of many."""
    shown = [f"  {one_line(fault, 160)}" for fault in faults[:MOST_NAMES_SHOWN]]
    more = len(faults) - len(shown)
    return "\n".join([*shown, *([f"  and {more} more"] if more else [])])


# ---------------------------------------------------------------------------------------------------------------------
# An adapter against a base
# ---------------------------------------------------------------------------------------------------------------------


def unfit(base: nn.Module, adapter: Path) -> list[str]:
    """A line for each tensor of an adapter that was made for a base of another size than this one.

    Names that the base does not have are none of these: PEFT may know them from an earlier release.
    """
    modules = dict(base.named_modules())
    parameters = dict(base.named_parameters(remove_duplicate=False))
    faults = []
    for name, shape in shapes(adapter).items():
        expected = _expected_shape(name.removeprefix(_PEFT_PREFIX), shape, modules, parameters)
        if expected is not None and expected != shape:
            faults.append(
                f"{name}: found {list(shape)} in the adapter, expected {list(expected)} for this base"
            )
    return faults


def misplaced(adapted: "PeftModel", adapter: Path) -> list[str]:
    """A line for each tensor that a loaded adapter lacks in the files, and for each in the files without a place.

    Those that an earlier release of transformers named otherwise, as PEFT knows, come in pairs of one each.
    """
    found = shapes(adapter)
    missing, homeless = _unplaced(adapted, found)
    if len(missing) == len(homeless) and (not missing or _takes(adapted, found)):
        return []
    return [
        *(f"{name}: found none in the adapter" for name in missing),
        *(f"{name}: found {list(found[name])} in the adapter, expected no such tensor" for name in homeless),
    ]


def renamed_since(adapted: "PeftModel", adapter: Path) -> dict[str, str]:
    """How names in an adapter's file begin → how they begin in this release of transformers, of the tensors without a
    place; none unless ``model.`` and ``language_model.`` at the beginning are all that they differ in from those that
    are missing, and their shapes are the same.

        {"base_model.model.model.layers.": "base_model.model.model.language_model.layers."}

    transformers 4.52 moved both: ``model.layers.0`` of Qwen2.5-VL and ``language_model.model.layers.0`` of LLaVA are
    ``model.language_model.layers.0`` since. A language model alone has such names too.
    """
    homes, found = places(adapted), shapes(adapter)
    missing, homeless = _unplaced(adapted, found)
    now_shapes = {_beginning(name)[0]: whole_shape(homes[name]) for name in missing}
    then_shapes = {_beginning(name)[0]: found[name] for name in homeless}
    now, then = (dict(map(_beginning, names)) for names in (missing, homeless))
    if now_shapes != then_shapes or not len(now) == len(missing) == len(homeless):
        return {}
    return {then[rest]: now[rest] for rest in sorted(then)}


_BEGINNING = re.compile(r"base_model\.model\.(?:(?:language_)?model\.)*")


def _beginning(name: str) -> tuple[str, str]:
    """``base_model.model.model.layers.0.mlp`` → (``layers.0.mlp``, ``base_model.model.model.layers.``)"""
    found = _BEGINNING.match(name)
    rest = name if found is None else name[found.end() :]
    return rest, name.removesuffix(rest) + rest.partition(".")[0] + "."


def _unplaced(adapted: "PeftModel", found: Mapping[str, Shape]) -> tuple[list[str], list[str]]:
    """The tensors that a loaded adapter lacks in its files, and those of the files that it has no place for."""
    homes = places(adapted)
    own = {name for name in homes if ".lora_" in name}
    own |= {
        next(_peft_file_names(name))
        for name, _ in adapted.named_parameters()
        if ".modules_to_save." in name or ".trainable_tokens_delta." in name
    }
    return sorted(own - found.keys()), sorted(found.keys() - homes.keys())


def _takes(adapted: "PeftModel", found: Mapping[str, Shape]) -> bool:
    """Does PEFT find a place for each tensor of an adapter, under a name of an earlier release, and none for nothing?

    Asked of a model without weights. One with weights has taken them by then, and was asked before.
    """
    from peft import set_peft_model_state_dict

    if any(not parameter.is_meta for parameter in adapted.parameters()):
        return True
    stand_ins = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
    try:
        taken = set_peft_model_state_dict(adapted, stand_ins, low_cpu_mem_usage=True)
    except (KeyError, RuntimeError, ValueError):  # a name that it needs is not there
        return False
    lacking = [name for name in taken.missing_keys if _OF_AN_ADAPTER.search(name)]
    return not lacking and not taken.unexpected_keys


def not_finite(adapted: "PeftModel") -> list[str]:
    """A line for each tensor of a loaded adapter with NaN or infinity: training overflowed, or the file is broken."""
    return [
        f"{name}: found NaN or infinity, expected finite numbers"
        for name, tensor in adapted.named_parameters()
        if _OF_AN_ADAPTER.search(name) and not bool(tensor.isfinite().all())
    ]


def _expected_shape(
    name: str, shape: Shape, modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]
) -> Shape | None:
    """The shape that an adapter's tensor has for this base; None if the base does not say."""
    stem, dot, part = name.partition(".lora_")
    table = modules.get(name.removesuffix(_TOKENS)) if name.endswith(_TOKENS) else None
    if isinstance(table, nn.Embedding):
        return (shape[0], table.embedding_dim)
    if not dot:
        own = parameters.get(_PEFT_WRAPS.sub("", name))
        return None if own is None or own.dtype == torch.uint8 else tuple(own.shape)
    module: Any = modules.get(stem)
    if not isinstance(module, nn.Linear):
        return None
    if part.startswith("A."):
        return (shape[0], module.in_features)
    if part == "B.bias":
        return (module.out_features,)
    if part.startswith("B."):
        return (module.out_features, shape[-1])
    return (module.out_features,) if part.startswith("magnitude") else None
