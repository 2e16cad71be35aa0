"""The architecture of a model, from its configuration and its processor's settings: no weights are read.

Usage and flags: ``diagnostics/flags/inspect.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostics.flags.inspect import PICTURE, TOKENS, parser

if __name__ == "__main__":
    parser().parse_args()  # handle --help and wrong flags before the slow imports below

from diagnostics.records.architectures import (
    PROCESSOR_FILES,
    Architecture,
    AttentionKind,
    Component,
    keep,
    kept,
    place_of,
    processor_place,
    to_json,
)
from finetune import fields
from finetune.fields import NULL, OBJECT
from finetune.files import fault_words
from finetune.image_arithmetic import ImageArithmetic
from finetune.model.folders import MODEL_CONFIG, resolve
from finetune.printable import printable

if TYPE_CHECKING:  # takes seconds to import, which a model that was inspected before does not need
    from torch import nn

    from finetune.families import Family, ModulePaths
    from finetune.families.base import ParameterCounts

BYTES = 4  # per value: attention maps are fp32


def architecture(
    config: Any,
    *,
    name: str,
    tokens: int = TOKENS,
    picture: tuple[int, int] = PICTURE,
    settings: Mapping[str, Any] | None = None,
    settings_of: str | None = None,
) -> Architecture:
    """Read a configuration.

    tokens        length of the prompt for which maps are counted
    picture       (width, height) in pixels of the example
    settings      of the image processor, as ``Family.image_arithmetic`` takes them; None: not known
    settings_of   the folder that they are from, for an error; None: the model's

    Raises ValueError for a configuration of no known family, or that no model can be built from, and for settings that
    cannot be understood.
    """
    from finetune.families import family_of
    from finetune.model.checkpoint import skeleton
    from finetune.model.checkpoint_files import understood

    family = family_of(config)
    model = skeleton(deepcopy(config))  # a model writes its kernels' names into its configuration
    # A field that building the model does not need may be of any type.
    with understood(
        f"{name}/{MODEL_CONFIG}" if settings is None else f"{settings_of or name}, its processor's settings"
    ):
        image = family.image_arithmetic(config, picture, settings)
    with understood(f"{name}/{MODEL_CONFIG}"):
        return _architecture(name, family, config, _counted(model, family), image, tokens)


def architecture_of_file(
    content: Any,
    *,
    name: str,
    tokens: int = TOKENS,
    picture: tuple[int, int] = PICTURE,
    settings: Mapping[str, Any] | None = None,
) -> Architecture | None:
    """The same of what a config.json holds, without torch and transformers.

    None where the file does not say everything (``saved_config``), where the family does not count (it may be
    somebody's own), or where anything is wrong: ``architecture`` finds out, or has the words for it.
    """
    from finetune.families import family_of
    from finetune.families.base import parameter_counts
    from finetune.families.parts.saved_config import saved_config

    config = saved_config(content)
    if config is None:
        return None
    try:
        family = family_of(config)
        counts = parameter_counts(family, config)
        if counts is None:
            return None
        image = family.image_arithmetic(config, picture, settings)
        return _architecture(name, family, config, counts, image, tokens)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None


def _architecture(
    name: str, family: Family, config: Any, counts: ParameterCounts, image: ImageArithmetic, tokens: int
) -> Architecture:
    return Architecture(
        name=name,
        family=family.name,
        model_type=str(config.model_type),
        parameters=sum(counts.by_module.values()),
        components=tuple(_components(counts, family)),
        attention=tuple(_attention(counts, family, config, image, tokens)),
        picture=image,
        tokens=tokens,
    )


def _counted(model: nn.Module, family: Family) -> ParameterCounts:
    from finetune.families.base import ParameterCounts

    stacks = (family.paths.language_layers, family.paths.vision_layers)
    language, vision = (len(list(model.get_submodule(path).children())) for path in stacks)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return ParameterCounts(sizes, language, vision)


def _components(counts: ParameterCounts, family: Family) -> Iterator[Component]:
    paths = family.paths
    layers = {"vision": counts.vision_layers, "connector": 0, "language": counts.language_layers}
    parts = {"vision": paths.vision, "connector": paths.connector, "language": paths.language}
    sizes = dict.fromkeys((*parts, "other"), 0)
    for name, count in counts.by_module.items():
        sizes[_owner(name, parts)] += count
    for part, modules in parts.items():
        yield Component(part, tuple(modules), layers[part], sizes[part])
    if sizes["other"]:
        yield Component("other", (), 0, sizes["other"])


def _owner(name: str, parts: dict[str, tuple[str, ...]]) -> str:
    """The part whose path reaches furthest into a name: a connector may lie inside the tower's module."""
    found = [
        (len(path), part)
        for part, paths in parts.items()
        for path in paths
        if f"{name}.".startswith(f"{path}.")
    ]
    return max(found)[1] if found else "other"


def _attention(
    counts: ParameterCounts, family: Family, config: Any, image: ImageArithmetic, tokens: int
) -> Iterator[AttentionKind]:
    patches = image.patches[0] * image.patches[1]
    kinds: list[AttentionKind] = []
    for name, layer, attention in _layers(counts, family.paths):
        queries, keys = (tokens, tokens) if name.startswith("layer_") else (patches, patches)
        if name == "visual_attn":
            queries = image.tokens
        shape = family.attention_shape(config, name)
        heads, key_heads, width, looks = (
            (0, 0, 0, "no attention map (linear attention)")
            if shape is None
            else (shape.heads, shape.key_heads, shape.head_width, shape.looks)
        )
        size = heads * queries * keys * BYTES
        one = AttentionKind(
            name,
            name,
            1,
            layer if shape is None else attention,
            heads,
            key_heads,
            width,
            looks,
            queries,
            keys,
            size,
        )
        if kinds and _looks(kinds[-1]) == _looks(one):
            one = _grown(kinds.pop(), one)
        kinds.append(one)
    yield from kinds


def _layers(counts: ParameterCounts, paths: ModulePaths) -> Iterator[tuple[str, str, str]]:
    """What attends: the name that its rows are reported under, its layer's path, and that of the module within."""
    for index in range(counts.language_layers):
        layer = f"{paths.language_layers}.{index}"
        yield f"layer_{index}", layer, f"{layer}.{paths.language_attention}"
    if paths.connector_attention is not None:
        yield "visual_attn", paths.connector_attention, paths.connector_attention
    for index in range(counts.vision_layers):
        layer = f"{paths.vision_layers}.{index}"
        yield f"vision_layer_{index}", layer, f"{layer}.{paths.vision_attention}"


def _looks(kind: AttentionKind) -> tuple[Any, ...]:
    """The shared shape of modules that attend alike."""
    return (kind.first.rstrip("0123456789"), kind.heads, kind.key_heads, kind.head_width, kind.looks)


def _grown(before: AttentionKind, now: AttentionKind) -> AttentionKind:
    return replace(before, last=now.last, count=before.count + 1)


# ---------------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------------


def table(found: Architecture) -> str:
    """Plain text: components, pictures, attention, and the size of its maps."""
    return "\n".join(
        [
            f"{found.name}: {_summary(found)}",
            "",
            *_columns(_component_rows(found)),
            "",
            f"a picture: {found.picture.words}",
            "",
            *_columns(_attention_rows(found)),
        ]
    )


def markdown(found: Architecture) -> str:
    """The same as Markdown, for a text card: too narrow for the modules that attend and a column for each number."""
    _, *kinds = _attention_rows(found)
    attention = [("attention", "heads × width", "looks", f"maps at {found.tokens:,} tokens")]
    for name, _, heads, key_heads, width, looks, weight in kinds:
        shared = "" if key_heads == heads else f", {key_heads} key heads"
        attention.append((name, "-" if heads == "-" else f"{heads} × {width}{shared}", looks, weight))
    return "\n\n".join(
        [
            f"`{found.name}`: {_summary(found)}",
            _markdown_table(_component_rows(found), code=(4,)),
            f"a picture: {found.picture.words}",
            _markdown_table(attention, code=(0,)),
        ]
    )


def _summary(found: Architecture) -> str:
    return f"{found.family} ({found.model_type}), {found.parameters:,} parameters"


def _component_rows(found: Architecture) -> list[tuple[str, ...]]:
    """The head of the table of components, and a row for each."""
    return [
        ("component", "layers", "parameters", "share", "modules"),
        *(
            (
                part.name,
                str(part.layers or ""),
                f"{part.parameters:,}",
                f"{part.parameters / found.parameters:.1%}",
                ", ".join(part.modules),
            )
            for part in found.components
        ),
    ]


def _attention_rows(found: Architecture) -> list[tuple[str, ...]]:
    """The head of the table of attention, and a row for each kind, wherever its layers lie."""
    kinds: dict[tuple[Any, ...], list[AttentionKind]] = {}
    for kind in found.attention:
        kinds.setdefault(_looks(kind), []).append(kind)
    return [
        ("attention", "module", "heads", "key heads", "width", "looks", f"maps at {found.tokens:,} tokens"),
        *(
            (
                _names(alike),
                alike[0].module,
                str(alike[0].heads or "-"),
                str(alike[0].key_heads or "-"),
                str(alike[0].head_width or "-"),
                alike[0].looks,
                _weight(alike),
            )
            for alike in kinds.values()
        ),
    ]


def _names(alike: Sequence[AttentionKind]) -> str:
    """ "layer_0 … layer_27" of one stretch, "layer_0 … 4, 6 … 10, 12" of several."""
    if len(alike) == 1:
        return alike[0].first if alike[0].count == 1 else f"{alike[0].first} … {alike[0].last}"
    start = alike[0].first.rstrip("0123456789")
    stretches = [(kind.first.removeprefix(start), kind.last.removeprefix(start)) for kind in alike]
    return start + ", ".join(first if first == last else f"{first} … {last}" for first, last in stretches)


def _weight(alike: Sequence[AttentionKind]) -> str:
    """Size of all maps of a kind, written as a product."""
    kind, count = alike[0], sum(one.count for one in alike)
    if not kind.heads:
        return "-"
    return f"{count} × {kind.heads} × {kind.queries:,} × {kind.keys:,} = {_size(count * kind.map_bytes)}"


def _markdown_table(rows: Sequence[Sequence[str]], *, code: Sequence[int]) -> str:
    """``code``: columns of names, whose underscores Markdown must not read."""
    head, *body = rows
    marked = [[f"`{cell}`" if at in code and cell else cell for at, cell in enumerate(row)] for row in body]
    lines = [head, ["---"] * len(head), *marked]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def mermaid(found: Architecture) -> str:
    """A flow chart, as Markdown renders it."""
    rows, columns = found.picture.patches
    by_name = {part.name: part for part in found.components}
    kinds = {
        kind.first.rpartition("_")[0] if kind.first != "visual_attn" else kind.first: kind
        for kind in found.attention
        if kind.heads
    }

    def box(key: str, title: str, *facts: str) -> str:
        return f'    {key}["{"<br/>".join([title, *facts])}"]'

    def heads(kind: AttentionKind | None) -> list[str]:
        return [] if kind is None or not kind.heads else [f"{kind.heads} heads × {kind.head_width}"]

    vision, connector, language = (by_name[name] for name in ("vision", "connector", "language"))
    return "\n".join(
        [
            "flowchart LR",
            box(
                "picture",
                "picture",
                f"{found.picture.resized_pixels[0]} × {found.picture.resized_pixels[1]} pixels",
            ),
            box(
                "vision",
                "vision tower",
                f"{vision.layers} layers",
                *heads(kinds.get("vision_layer")),
                f"{vision.parameters:,} parameters",
            ),
            box(
                "connector",
                "connector",
                *heads(kinds.get("visual_attn")),
                f"{connector.parameters:,} parameters",
            ),
            box("text", "text"),
            box(
                "language",
                "language model",
                f"{language.layers} layers",
                *heads(kinds.get("layer")),
                f"{language.parameters:,} parameters",
            ),
            box("answer", "answer"),
            "    picture --> vision",
            f'    vision -- "{rows} × {columns} patches" --> connector',
            f'    connector -- "{found.picture.tokens} tokens" --> language',
            "    text --> language --> answer",
        ]
    )


def _inspected(name: str, tokens: int, picture: tuple[int, int]) -> Architecture:
    """The architecture of a model by its name, as it was found before or found now."""
    place = place_of(name, tokens=tokens, picture=picture)
    found = kept(place)
    if found is None:
        asked: dict[str, Any] = {"name": name, "tokens": tokens, "picture": picture}
        found = _of_folder(name, asked) or _of_model(name, asked)
        keep(place, found)
    return replace(found, name=name)


def _of_folder(name: str, asked: Mapping[str, Any]) -> Architecture | None:
    """Without torch, where there is a folder and its configuration says enough."""
    config = Path(resolve(name)[0]) / MODEL_CONFIG
    if not config.is_file():
        return None
    return architecture_of_file(fields.read(config), settings=_settings(processor_place(name)), **asked)


def _of_model(name: str, asked: Mapping[str, Any]) -> Architecture:
    from finetune.model.checkpoint import load_config

    config, of = load_config(name), processor_place(name)
    return architecture(config, settings=_settings(of), settings_of=of, **asked)


def _settings(place: str) -> dict[str, Any] | None:
    """Of the image processor in a folder or on the hub; None where there is none.

    Raises ValueError for a file that holds no settings.
    """
    folder, shape = Path(place), {"image_processor": OBJECT | NULL}
    if folder.is_dir():
        files = [folder / name for name in PROCESSOR_FILES]
        held, apart = (fields.load(path, shape) if path.is_file() else None for path in files)
        return (held or {}).get("image_processor") or apart
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        return dict(ImageProcessingMixin.get_image_processor_dict(place)[0])
    except OSError:
        return None


def main(argv: Sequence[str]) -> int:
    """Run the program; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        found = _inspected(arguments.model, arguments.tokens, arguments.picture)
    except (ValueError, OSError) as error:
        print(printable(f"inspect: {fault_words(error)}"), file=sys.stderr)
        return 1
    print(to_json(found) if arguments.json else mermaid(found) if arguments.mermaid else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
