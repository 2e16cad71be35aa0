"""What trains: each component frozen, by adapters or in full, and the table that shows it.

Components are those of the family's ``ModulePaths``: vision, connector, language. Everything starts frozen, and each
component has a mode of its own:

    frozen   stays as it is
    lora     adapters beside its linear layers: the family's, in language layers; all of them, elsewhere
    full     trains in full. Where another component has adapters, this is one of PEFT's ``modules_to_save``: a copy
             beside the original, so that the adapter folder is complete and ``disable_adapter()`` still gives the
             model as it was. Where none has, the model itself trains and is saved whole

An adapter cannot hold bare parameters of a parent module (Qwen-VL's ``visual.proj``), and LoRA cannot reach matrices
outside linear layers (Qwen-VL's ``attn_pool.attn.in_proj_weight``). Those stay frozen, and ``left_frozen`` lists them.
What a model never reads (the last layer of LLaVA's tower) gets no gradient: it stays frozen in every mode, and
``left_unread`` lists it.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from finetune.families.base import Family, ModulePaths, not_read
from finetune.families.parts.modules import bare_model
from finetune.flags.arguments import Mode
from finetune.sharding import whole_shape

COMPONENTS = ("vision", "connector", "language")
OTHER = "other"  # parameters that a family's paths leave out
TABLES = "tables"  # parameters that no mode trains


@dataclass(frozen=True)
class Plan:
    """Which components train, and how.

    embeddings   with adapters: word embeddings and output layer train too, in full
    targets      endings of names of linear layers inside the language layers; None: the family's own
    bias         with adapters: "all" biases of components in mode lora, those beside an adapter ("lora_only"), "none"
    dora         DoRA: adapters with magnitudes (Liu et al. 2024, arXiv 2402.09353)
    adapter      an adapter folder to continue from: a rank, scale, bias or target other than its own is an error
    """

    vision: Mode = "frozen"
    connector: Mode = "frozen"
    language: Mode = "lora"
    embeddings: bool = False
    targets: tuple[str, ...] | None = None
    rank: int = 64
    alpha: int = 16
    dropout: float = 0.05
    bias: str = "none"
    dora: bool = False
    adapter: str = ""

    @property
    def modes(self) -> dict[str, Mode]:
        return {"vision": self.vision, "connector": self.connector, "language": self.language}

    @property
    def lora(self) -> bool:
        """Does any component train adapters?"""
        return "lora" in self.modes.values()

    def having(self, mode: Mode) -> tuple[str, ...]:
        """The components of this mode."""
        return tuple(component for component, chosen in self.modes.items() if chosen == mode)


def adapt(model: nn.Module, family: Family, plan: Plan, *, master_weights: bool) -> nn.Module:
    """Freeze, add adapters, unfreeze what the plan says. A model on the meta device stays there.

    master_weights   True: trainable tensors become fp32, as torch's own mixed precision needs them.
                     False: they keep their precision (DeepSpeed holds fp32 copies itself)

    Returns the model (a PeftModel with LoRA). Raises ValueError for a target that matches nothing, for an adapter
    folder that lacks what the plan trains, and for a plan that trains nothing.
    """
    model.requires_grad_(False)
    if plan.lora:
        model = _with_adapters(model, family, plan)
    unread = _unread(model, family)
    for name, parameter in bare_model(model).named_parameters():
        wanted = _trains(name, parameter, family.paths, plan)
        parameter.requires_grad_(wanted and not _within(plain_name(name), unread))
        # Also what nothing reads: it runs all the same, behind layers that are in fp32 then.
        if wanted and master_weights:
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "nothing would train: every component is frozen; expected at least one of --vision, --connector and "
            "--language to be lora or full"
        )
    if plan.adapter:
        _check_adapter(model, family, plan)
    return model


def _trains(name: str, parameter: nn.Parameter, paths: ModulePaths, plan: Plan) -> bool:
    component = component_of(name, paths)
    if not plan.lora:
        return plan.modes.get(component) == "full"
    # PEFT has marked what it trains: adapters, copies and biases. It does not know components, so its bias="all"
    # reaches all of them, and an adapter folder may hold more than this run trains.
    if ".modules_to_save." in name and plan.embeddings and component == "language":
        return parameter.requires_grad
    wanted = "full" if ".modules_to_save." in name else "lora"
    return parameter.requires_grad and plan.modes.get(component) == wanted


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """A name without what PEFT inserts: ``attn_pool.modules_to_save.default.query`` → ``attn_pool.query``."""
    return re.sub(r"\.(modules_to_save\.[^.]+|original_module|base_layer)(?=\.)", "", name)


def component_of(name: str, paths: ModulePaths) -> str:
    """vision, connector, language, "tables" (never trained) or "other": that of the longest path which leads there.

    Paths may lie inside each other, as a merger inside the tower's module does.
    """
    plain = plain_name(name)
    if _within(plain, paths.never_trained):
        return TABLES
    found = [
        (len(path), component)
        for component, prefixes in _paths_of(paths).items()
        for path in prefixes
        if _within(plain, (path,))
    ]
    return max(found)[1] if found else OTHER


def _unread(model: nn.Module, family: Family) -> tuple[str, ...]:
    """Paths of what the model holds and never reads."""
    return not_read(family, bare_model(model).config)


def _paths_of(paths: ModulePaths) -> dict[str, tuple[str, ...]]:
    return {"vision": paths.vision, "connector": paths.connector, "language": paths.language}


def _within(name: str, paths: Iterable[str]) -> bool:
    """Is a parameter, or module, at one of these dotted paths or below it?"""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


# ---------------------------------------------------------------------------------------------------------------------
# LoRA
# ---------------------------------------------------------------------------------------------------------------------


def _with_adapters(model: nn.Module, family: Family, plan: Plan) -> nn.Module:
    on_meta = next(model.parameters()).device.type == "meta"
    if plan.adapter:
        config = LoraConfig.from_pretrained(plan.adapter)
        config.inference_mode = False
        config.lora_dropout = plan.dropout
        config.base_model_name_or_path = None  # a model without weights has no name, and PEFT compares them
        if not on_meta:
            return PeftModel.from_pretrained(
                model, plan.adapter, is_trainable=True, config=config, autocast_adapter_dtype=False
            )
    else:
        saved, tied = full_modules(model, family.paths, plan)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=plan.rank,
            lora_alpha=plan.alpha,
            lora_dropout=plan.dropout,
            bias=plan.bias,
            use_dora=plan.dora,
            target_modules=target_pattern(model, family, plan),
            modules_to_save=saved or None,
            ensure_weight_tying=tied,
        )
    where: AbstractContextManager[Any] = torch.device("meta") if on_meta else nullcontext()
    with where:
        # PEFT's own autocast would turn adapters to fp32 under DeepSpeed too, where adapt() decides.
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def target_pattern(model: nn.Module, family: Family, plan: Plan) -> str:
    """A regular expression for PEFT that matches, as a whole, the names of the linear layers that get an adapter.

    ``Plan(vision="lora", targets=("c_attn", "w1"))`` gives
    ``transformer\\.visual\\.transformer\\.resblocks\\.\\d+\\.attn\\.in_proj|…|transformer\\.h\\.\\d+\\.(?:.+\\.)?(?:c_attn|w1)``:
    each component's own paths, so that a name which vision tower and language model share can't leak.

    Raises ValueError if one of the targets matches nothing, listing the valid endings, and for a component
    without linear layers.
    """
    patterns = []
    for component in plan.having("lora"):
        if component == "language":
            patterns.append(_language_pattern(_linear_layers(model), family, plan.targets))
        else:
            patterns += _all_layers(model, family, component)
    return "|".join(patterns)


def _language_pattern(linear_layers: Iterable[str], family: Family, targets: Sequence[str] | None) -> str:
    wanted = tuple(targets or family.lora_targets)
    layers = family.paths.language_layers
    names = [name for name in linear_layers if name.startswith(f"{layers}.")]
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


def _all_layers(model: nn.Module, family: Family, component: str) -> list[str]:
    """A pattern for each kind of linear layer of a component that the model reads: names with their layer numbers left
    open, but for those of layers that it does not read."""
    unread = _unread(model, family)
    linear = [name for name in _linear_layers(model) if component_of(name, family.paths) == component]
    names = [name for name in linear if not _within(name, unread)]
    if not names:
        raise ValueError(
            f"--{component} lora: found no linear layer below {', '.join(_paths_of(family.paths)[component])}, "
            f"expected one to adapt; give --{component} full, or --{component} frozen"
        )
    left_out = [path for path in unread if any(_within(name, (path,)) for name in linear)]
    but = rf"(?!(?:{'|'.join(map(re.escape, left_out))})\.)" if left_out else ""
    opened = (re.sub(r"(?<=\.)\d+(?=\\?\.)", r"\\d+", re.escape(name)) for name in names)
    return [but + pattern for pattern in dict.fromkeys(opened)]


def _linear_layers(model: nn.Module) -> Iterator[str]:
    """Names of linear layers that an adapter can change.

    Trap: ``nn.MultiheadAttention`` never calls its ``out_proj``, it takes the weight out of it: an adapter there would
    never run and learn nothing. Its ``in_proj_weight`` is a bare parameter.
    """
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear) and not isinstance(parent, nn.MultiheadAttention):
            yield name


def full_modules(model: nn.Module, paths: ModulePaths, plan: Plan) -> tuple[list[str], bool]:
    """Modules that train in full beside the adapters, by their full names; and are embedding and output layer tied?

    Raises ValueError if a copy of the language model would break a tie inside it.
    """
    modules = dict(model.named_modules())
    names = [path for component in plan.having("full") for path in _paths_of(paths)[component]]
    found = [one for name in names if name in modules for one in _callable_modules(name, modules[name])]
    if plan.language != "full" and not plan.embeddings:
        return found, False
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    tied = outputs is not None and outputs.weight is inputs.weight
    if plan.language == "full":
        if tied:
            raise ValueError(
                "--language full beside adapters: the copy that trains would lose the tie between word embeddings and "
                f"output layer; give --language lora, or no lora ({', '.join(f'--{c}' for c in plan.having('lora'))})"
            )
        return found, False
    named = {id(module): name for name, module in modules.items()}
    return [*found, *(named[id(end)] for end in (inputs, outputs) if end is not None)], tied


def _callable_modules(name: str, module: nn.Module) -> Iterator[str]:
    """The module, or the members of a list of modules: PEFT can only copy modules whose forward runs."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        for key, child in module.named_children():
            yield from _callable_modules(f"{name}.{key}", child)
    else:
        yield name


def _check_adapter(model: nn.Module, family: Family, plan: Plan) -> None:
    """Raises ValueError if an adapter folder lacks what the plan trains, or was trained with other settings."""
    held = {
        (component_of(name, family.paths), "adapters" if ".lora_" in name else "trained copy")
        for name, _ in bare_model(model).named_parameters()
        if ".lora_" in name or ".modules_to_save." in name
    }
    for component in (*plan.having("lora"), *plan.having("full")):
        how = "adapters" if plan.modes[component] == "lora" else "trained copy"
        if (component, how) not in held:
            there = ", ".join(f"{c}: {h}" for c, h in sorted(held) if c in COMPONENTS)
            raise ValueError(
                f"--lora_weight_path {plan.adapter}: found {there}, expected {component}: {how}; "
                f"give --{component} as it was trained, or leave --lora_weight_path out"
            )
    faults = [
        *_other_settings(model, plan),
        *_other_targets(model, family, plan),
        *_lacks_embeddings(model, plan),
    ]
    if faults:
        raise ValueError("\n".join(f"--lora_weight_path {plan.adapter}: {fault}" for fault in faults))


def _other_settings(model: Any, plan: Plan) -> Iterator[str]:
    config = model.peft_config["default"]
    for flag, asked, has in (
        ("lora_r", plan.rank, config.r),
        ("lora_alpha", plan.alpha, config.lora_alpha),
        ("lora_bias", plan.bias, config.bias),
    ):
        if asked != has:
            yield f"was trained with --{flag} {has}, found --{flag} {asked}; leave it out, or start a new adapter"
    if plan.dora != config.use_dora:
        how = "without" if plan.dora else "with"
        yield f"was trained {how} --use_dora; leave --use_dora out, or start a new adapter"


def _other_targets(model: nn.Module, family: Family, plan: Plan) -> Iterator[str]:
    """``--lora_target_modules`` must match the adapter's own targets exactly."""
    if plan.targets is None or plan.language != "lora":
        return
    names = _linear_layers(bare_model(model))
    linear = {plain_name(f"{name}.").removesuffix(".") for name in names if ".lora_" not in name}
    pattern = re.compile(_language_pattern(linear, family, plan.targets))
    asked = {name for name in linear if pattern.fullmatch(name)}
    has = {
        plain_name(name).partition(".lora_")[0]
        for name, _ in bare_model(model).named_parameters()
        if ".lora_" in name and component_of(name, family.paths) == "language"
    }
    if asked != has:
        layers = re.compile(rf"{re.escape(family.paths.language_layers)}\.\d+\.")
        found = ", ".join(sorted({layers.sub("", name) for name in has}))
        yield (
            f"has adapters of {found}, found --lora_target_modules {' '.join(plan.targets)}; leave it out, or start a "
            "new adapter"
        )


def _lacks_embeddings(model: Any, plan: Plan) -> Iterator[str]:
    if not plan.embeddings:
        return
    copies = {
        plain_name(name).rpartition(".")[0]
        for name, _ in bare_model(model).named_parameters()
        if ".modules_to_save." in name
    }
    bare: Any = bare_model(model)
    inputs = bare.get_input_embeddings()
    names = {plain_name(f"{name}.")[:-1] for name, module in bare.named_modules() if module is inputs}
    if not names & copies:
        yield (
            "holds no word embeddings, found --train_embeddings True; leave it out, or start a new adapter, which may "
            "hold them"
        )


def not_trained_further(model: nn.Module, family: Family) -> list[str]:
    """Parts of an adapter that this run leaves frozen, such as ``connector: trained copy``, but for what the model does
    not read."""
    unread = _unread(model, family)
    held = [
        (name, parameter)
        for name, parameter in bare_model(model).named_parameters()
        if _HELD.search(name) and not _within(plain_name(name), unread)
    ]
    kinds = {
        (component_of(name, family.paths), "adapters" if ".lora_" in name else "trained copy")
        for name, parameter in held
        if not parameter.requires_grad and component_of(name, family.paths) in COMPONENTS
    }
    return [f"{component}: {how}" for component, how in sorted(kinds)]


_HELD = re.compile(r"\.lora_|\.modules_to_save\.")


# ---------------------------------------------------------------------------------------------------------------------
# The table of what trains
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Learning rates, and the weight decay of matrices. ``own``: components that have a rate of their own."""

    learning_rate: float
    own: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0

    def of(self, component: str) -> float:
        return self.own.get(component, self.learning_rate)


class Row(NamedTuple):
    """Tensors of one component that are treated alike."""

    component: str
    how: str  # frozen, adapters, trained copy, full, biases
    tensors: int
    parameters: int
    trainable: int  # parameters that train
    learning_rate: float | None  # None: not known, or nothing trains
    weight_decay: float | None
    precision: str

    @property
    def label(self) -> str:
        return f"{self.component}: {self.how}"


def decaying(model: nn.Module) -> set[str]:
    """Names of the tensors with weight decay: matrices, but no biases or norms.

    transformers recognises norms by class or name. It would also decay norms with unusual names (Qwen's ``ln_1``, an
    RMSNorm) and DoRA's magnitudes, so tensors with a single axis are excluded too.
    """
    by_name = get_parameter_names(
        model, [nn.LayerNorm], [r"bias", r"layernorm", r"rmsnorm", r"(?:^|[._])norm(?:$|\.)"]
    )
    axes = {name: len(whole_shape(parameter)) for name, parameter in model.named_parameters()}
    return {name for name in by_name if axes.get(name, 0) > 1}


def how_trained(name: str, parameter: nn.Parameter, *, adapted: bool) -> str:
    """frozen, adapters, trained copy, full, or biases (of a component that has adapters)."""
    if ".lora_" in name:
        return "adapters"
    if not parameter.requires_grad:
        return "frozen"
    if ".modules_to_save." in name:
        return "trained copy"
    return "biases" if adapted and name.endswith(".bias") else "full"


def table(model: nn.Module, family: Family, rates: Rates | None = None) -> list[Row]:
    """What trains and what doesn't, by component, kind and weight decay.

    Copies that PEFT keeps beside frozen originals count, as adapters do: parameters add up to those of the model.
    """
    bare = bare_model(model)
    decays = decaying(bare)
    named = dict(bare.named_parameters())
    adapted = {component_of(name, family.paths) for name in named if ".lora_" in name}
    groups: dict[tuple[int, str, str, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        component = component_of(name, family.paths)
        how = how_trained(name, parameter, adapted=component in adapted)
        key = (_ORDER.index(component), component, how, parameter.requires_grad and name not in decays)
        groups.setdefault(key, []).append(parameter)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0], item[0][2] != "frozen", *item[0][2:]))
    return [
        _row(component, how, parameters, rates, decays=not plain)
        for (_, component, how, plain), parameters in ordered
    ]


_ORDER = (*COMPONENTS, TABLES, OTHER)


def _row(
    component: str, how: str, parameters: Sequence[nn.Parameter], rates: Rates | None, *, decays: bool
) -> Row:
    trains = any(parameter.requires_grad for parameter in parameters)
    known = rates if trains else None
    return Row(
        component=component,
        how=how,
        tensors=len(parameters),
        parameters=sum(map(_size, parameters)),
        trainable=sum(_size(parameter) for parameter in parameters if parameter.requires_grad),
        learning_rate=known.of(component) if known else None,
        weight_decay=(known.weight_decay if decays else 0.0) if known else None,
        precision="+".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
    )


def _size(parameter: nn.Parameter) -> int:
    if parameter.dtype == torch.uint8:  # two 4-bit weights in each byte
        return parameter.numel() * 2
    return math.prod(whole_shape(parameter))


def table_text(rows: Sequence[Row]) -> str:
    """The table as lines of equal columns, below 100 characters each. Rows that differ in counts alone share a line."""
    rows = _joined(rows)
    total, trainable = sum(row.parameters for row in rows), sum(row.trainable for row in rows)
    cells = [("what", "tensors", "parameters", "trainable", "rate", "decay", "precision")]
    cells += [
        (
            row.label,
            f"{row.tensors:,}",
            f"{row.parameters:,}",
            f"{row.trainable:,}",
            _number(row.learning_rate),
            _number(row.weight_decay),
            row.precision,
        )
        for row in rows
    ]
    tensors = sum(row.tensors for row in rows)
    cells.append(
        ("all", f"{tensors:,}", f"{total:,}", f"{trainable:,}", "", "", f"{trainable / total:.2%} trains")
    )
    widths = [max(len(line[i]) for line in cells) for i in range(6)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 6)), line[6]])
        for line in cells
    )


def _joined(rows: Sequence[Row]) -> list[Row]:
    """Norms and matrices are rows of their own for their decay: without a decay they are one."""
    joined: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = (row.label, row.learning_rate, row.weight_decay, row.precision)
        there = joined.get(key)
        joined[key] = row if there is None else _sum(there, row)
    return [*joined.values()]


def _sum(one: Row, other: Row) -> Row:
    counts = {
        name: getattr(one, name) + getattr(other, name) for name in ("tensors", "parameters", "trainable")
    }
    return one._replace(**counts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def left_frozen(model: nn.Module, family: Family, plan: Plan) -> list[str]:
    """Parameters of trained components that stay frozen because no adapter can hold or reach them.

    full   bare parameters of a parent module: ``modules_to_save`` copies modules
    lora   matrices outside linear layers: ``attn_pool.attn.in_proj_weight``, or a convolution

    Layer numbers are written as N, each name once. Norms and biases of a component with adapters are not listed: LoRA
    does not train them by design; nor is what the model does not read (``left_unread``).
    """
    if not plan.lora:
        return []
    unread = _unread(model, family)
    every = bare_model(model).named_parameters()
    named = {name: parameter for name, parameter in every if not _within(plain_name(name), unread)}
    twice = {plain_name(name) for name in named if ".modules_to_save." in name}
    beside = {plain_name(name).rpartition(".lora_")[0] for name in named if ".lora_" in name}
    found = []
    for name, parameter in named.items():
        plain, component = plain_name(name), component_of(name, family.paths)
        mode = plan.modes.get(component)
        held = mode == "full" and plain not in twice
        unreached = mode == "lora" and component != "language" and plain.rpartition(".")[0] not in beside
        if ".lora_" not in name and (held or (unreached and len(whole_shape(parameter)) > 1)):
            found.append(re.sub(r"(?<=\.)\d+(?=\.)", "N", plain))
    return list(dict.fromkeys(found))


def left_unread(model: nn.Module, family: Family) -> list[str]:
    """Paths in the components that train which the model holds and does not read, so that they stay frozen."""
    named = dict(bare_model(model).named_parameters())
    components = {component_of(name, family.paths) for name, one in named.items() if one.requires_grad}
    if not components:
        return []
    plain = {plain_name(name) for name in named}
    return [
        path
        for path in _unread(model, family)
        if component_of(path, family.paths) in components and any(_within(name, (path,)) for name in plain)
    ]
