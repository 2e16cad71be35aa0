"""What trains: freezing by component, LoRA inside the language layers, and the table that shows it.

Components are those of the family's ``ModulePaths``: vision, connector, language. Everything starts frozen.

             | vision                   | connector                        | language
    full     | unless ``fix_vit``       | unless ``train_connector False`` | yes
    LoRA     | if ``fix_vit False``     | if ``train_connector True``      | adapters only

Under LoRA, a component that trains in full does so as PEFT's ``modules_to_save``: a copy beside the original, so
that the adapter folder is complete and ``disable_adapter()`` still gives the model as it was. An adapter cannot
hold parameters that hang on a parent module (Qwen-VL's ``visual.proj``): those stay frozen, and the table says so.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from finetune.families.base import Family, ModulePaths, bare_model


@dataclass(frozen=True)
class Plan:
    """What is to train. ``targets`` None: the family's own. ``adapter``: a folder to go on from."""

    lora: bool
    vision: bool
    connector: bool
    embeddings: bool = False
    targets: tuple[str, ...] | None = None
    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    bias: str = "none"
    adapter: str = ""


def adapt(model: nn.Module, family: Family, plan: Plan, *, master_weights: bool) -> nn.Module:
    """Freeze, add adapters, unfreeze what the plan says.

    master_weights   True: trainable tensors become fp32, as torch's own mixed precision needs them.
                     False: they keep their precision (DeepSpeed holds fp32 copies itself)

    Returns the model, a PeftModel with LoRA. Raises ValueError for a target that matches nothing, and where
    nothing would train.
    """
    model.requires_grad_(False)
    if plan.lora:
        model = _with_adapters(model, family, plan)
    else:
        _unfreeze(model, family.paths, plan)
    for name, parameter in bare_model(model).named_parameters():
        if _is_table(name, family.paths) or (plan.lora and _stray_bias(name, family.paths)):
            parameter.requires_grad_(False)
        elif parameter.requires_grad and master_weights:
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing would train: every component is frozen")
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Full fine-tuning
# ---------------------------------------------------------------------------------------------------------------------


def _unfreeze(model: nn.Module, paths: ModulePaths, plan: Plan) -> None:
    wanted = [
        *paths.language,
        *(paths.vision if plan.vision else ()),
        *(paths.connector if plan.connector else ()),
    ]
    for name, parameter in model.named_parameters():
        if _within(name, wanted):
            parameter.requires_grad_(True)


def _within(name: str, paths: Iterable[str]) -> bool:
    """Is a parameter, or module, at one of these dotted paths or below it?"""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def plain_name(name: str) -> str:
    """A name without what PEFT inserts: ``attn_pool.modules_to_save.default.query`` → ``attn_pool.query``."""
    return re.sub(r"\.(modules_to_save\.[^.]+|original_module|base_layer)(?=\.)", "", name)


def _is_table(name: str, paths: ModulePaths) -> bool:
    return _within(plain_name(name), paths.never_trained)


# ---------------------------------------------------------------------------------------------------------------------
# LoRA
# ---------------------------------------------------------------------------------------------------------------------


def _with_adapters(model: nn.Module, family: Family, plan: Plan) -> nn.Module:
    if plan.adapter:
        return PeftModel.from_pretrained(model, plan.adapter, is_trainable=True)
    saved = full_modules(model, family.paths, plan)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        bias=plan.bias,
        target_modules=target_pattern(model, family, plan.targets),
        modules_to_save=saved or None,
    )
    # PEFT's own autocast would turn adapters to fp32 under DeepSpeed too, where adapt() decides.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def target_pattern(model: nn.Module, family: Family, targets: Sequence[str] | None = None) -> str:
    """A regular expression for PEFT that matches the wanted linear layers, and only inside the language layers.

    ``("c_attn", "attn.c_proj")`` → ``transformer\\.h\\.\\d+\\.(?:.+\\.)?(?:c_attn|attn\\.c_proj)``: endings of names at
    dots. A name that vision tower and language model share can't leak into the tower.

    Raises ValueError where one of the targets matches nothing, with the endings that there are.
    """
    wanted = tuple(targets or family.lora_targets)
    layers = family.paths.language_layers
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{layers}.")
    ]
    missing = [target for target in wanted if not any(name.endswith(f".{target}") for name in names)]
    if missing:
        prefix = re.compile(rf"{re.escape(layers)}\.\d+\.")
        candidates = sorted({prefix.sub("", name) for name in names})
        raise ValueError(
            f"--lora_target_modules: {', '.join(missing)} matches no linear layer below {layers}; "
            f"expected some of: {', '.join(candidates)}"
        )
    endings = "|".join(re.escape(target) for target in wanted)
    return rf"{re.escape(layers)}\.\d+\.(?:.+\.)?(?:{endings})"


def full_modules(model: nn.Module, paths: ModulePaths, plan: Plan) -> list[str]:
    """Modules that train in full beside the adapters, by their full names."""
    names = [*(paths.vision if plan.vision else ()), *(paths.connector if plan.connector else ())]
    modules = dict(model.named_modules())
    found = [name for name in names if name in modules]
    if plan.embeddings:
        named = {id(module): name for name, module in modules.items()}
        ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
        found += [named[id(end)] for end in ends if end is not None]
    return found


def _stray_bias(name: str, paths: ModulePaths) -> bool:
    """PEFT's ``bias="all"`` reaches every component; ours means those of the language model."""
    return ".modules_to_save." not in name and not _within(plain_name(name), paths.language)


# ---------------------------------------------------------------------------------------------------------------------
# What trains, for people
# ---------------------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One component: how many parameters it has, how many of them train, and in which precision they are."""

    component: str
    parameters: int
    trainable: int
    precision: str


def table(model: nn.Module, family: Family) -> list[Row]:
    """Parameters by component. Copies that PEFT keeps beside frozen originals count as adapter, as LoRA does."""
    paths = family.paths
    counts: dict[str, tuple[int, int, set[str]]] = {}
    for name, parameter in bare_model(model).named_parameters():
        component = _component(name, paths)
        total, trainable, precisions = counts.get(component, (0, 0, set()))
        size = _size(parameter)
        precisions = precisions | {str(parameter.dtype).removeprefix("torch.")}
        counts[component] = (total + size, trainable + size * parameter.requires_grad, precisions)
    order = ["vision", "connector", "language", "tables", *sorted(set(counts) - _COMPONENTS)]
    return [
        Row(name, n, m, "+".join(sorted(p))) for name in order if name in counts for n, m, p in [counts[name]]
    ]


_COMPONENTS = {"vision", "connector", "language", "tables"}


def _component(name: str, paths: ModulePaths) -> str:
    part = _part(name, paths)
    if ".lora_" in name:
        return f"{part}: adapters"
    if ".modules_to_save." in name and part != "tables":
        return f"{part}: trained copy"
    return part


def _part(name: str, paths: ModulePaths) -> str:
    plain = plain_name(name)
    parts = (
        ("tables", paths.never_trained),
        ("vision", paths.vision),
        ("connector", paths.connector),
        ("language", paths.language),
    )
    return next((part for part, prefixes in parts if _within(plain, prefixes)), "other")


def _size(parameter: nn.Parameter) -> int:
    if hasattr(parameter, "ds_numel"):  # ZeRO-3 keeps a shard here and the whole size there
        return int(parameter.ds_numel)
    if parameter.dtype == torch.uint8:  # two 4-bit weights in each byte
        return parameter.numel() * 2
    return parameter.numel()


def table_text(rows: Sequence[Row]) -> str:
    """The table as lines of equal columns."""
    total, trainable = sum(row.parameters for row in rows), sum(row.trainable for row in rows)
    lines = [("component", "parameters", "trainable", "precision")]
    lines += [(row.component, f"{row.parameters:,}", f"{row.trainable:,}", row.precision) for row in rows]
    lines.append(("all", f"{total:,}", f"{trainable:,}", f"{trainable / total:.2%} trains"))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in lines)


def left_frozen(model: nn.Module, family: Family, plan: Plan) -> list[str]:
    """Parameters of components that train under LoRA, which an adapter cannot hold: bare ones of a parent module."""
    if not plan.lora:
        return []
    paths = family.paths
    wanted = [*(paths.vision if plan.vision else ()), *(paths.connector if plan.connector else ())]
    return list(_bare(model, wanted))


def _bare(model: nn.Module, wanted: Sequence[str]) -> Iterator[str]:
    for name, parameter in bare_model(model).named_parameters():
        if name in wanted and isinstance(parameter, nn.Parameter):
            yield name
