"""What attention supervision will do, before it does: rows counted, boxes laid over cells, one drawn, faults found."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import nn

from finetune.data.dataset import ConversationDataset
from finetune.data.look import boxes_pixels, cells_covered, placed
from finetune.families.base import Family, ImageTokens, encode_for_training
from finetune.families.parts.modules import attending_layers, bare_model, layer_words
from finetune.model.adaptation import component_of, plain_name
from finetune.model.look_file import picture_digest
from finetune.samples.conversation import Conversation, ImageRef, LookAt
from finetune.samples.formats.look_at import of_turn
from finetune.samples.listing import shown
from finetune.samples.workers import in_chunks

LEAST_CELLS = 0.5
"""A box that covers less is hard to look into: the share of a cell is what can be asked of attention."""
MOST_LAID_OVER, MOST_NAMED = 200, 20
SHADES = "·░▒▓█"
VALUE_PATH = ("v_proj", "o_proj", "out_proj", "c_proj")
"""What makes values and output of attention: it changes what is read, not where."""


class RowCount(NamedTuple):
    """Supervised rows of a dataset.

    rows      by source
    samples   that have any, by source
    places    of those samples in the dataset
    """

    rows: Counter[int]
    samples: Counter[int]
    places: list[int]


def count_rows(dataset: ConversationDataset) -> RowCount:
    """How many rows are supervised, by source. No picture is opened.

    Raises ValueError that names the samples whose phrase is not among their answer's tokens.
    """

    def work(chunk: range) -> list[tuple[int, int, str]]:
        return [(i, *_rows_of(dataset, i)) for i in chunk]

    parts = in_chunks(work, len(dataset), workers=None, doing="counting supervised rows")
    found = [one for _, part in parts for one in part if one[1] or one[2]]
    faults = [fault for _, _, fault in found if fault]
    if faults:
        raise ValueError("\n".join(["--look_weight:", *shown(faults, MOST_NAMED)]))
    rows, samples = Counter[int](), Counter[int]()
    for i, count, _ in found:
        rows[int(dataset.source_of[i])] += count
        samples[int(dataset.source_of[i])] += 1
    return RowCount(rows, samples, [i for i, _, _ in found])


def _rows_of(dataset: ConversationDataset, i: int) -> tuple[int, str]:
    conversation = dataset.conversations[i]
    if not any(map(of_turn, conversation.turns)):
        return 0, ""
    assert dataset.look is not None
    try:
        encoded = encode_for_training(dataset.family, dataset.processor, conversation, media=False)
        return len(list(placed(conversation, encoded, dataset.processor, dataset.look))), ""
    except ValueError as error:
        return 0, f"{conversation.source}: {error}"


class LaidOver(NamedTuple):
    """Boxes over the cells of their picture.

    cells   how many cells each end covers, a half-covered one as half
    small   names of samples with an end below ``LEAST_CELLS``
    first   conversation, supervised phrase and picture of the first one
    """

    cells: list[float]
    small: list[str]
    first: tuple[Conversation, LookAt, ImageTokens]


def lay_over(dataset: ConversationDataset, places: Sequence[int]) -> LaidOver:
    """The boxes of some samples as the family's cells see them; pictures are opened."""
    cells, small, first = list[float](), list[str](), list[tuple[Conversation, LookAt, ImageTokens]]()
    for place in _spread(places, MOST_LAID_OVER):
        conversation = dataset.conversations[place]
        encoded = encode_for_training(dataset.family, dataset.processor, conversation)
        for look in (one for turn in conversation.turns for one in of_turn(turn)):
            covered = [cells_covered(end, encoded.images[look.image]).sum() for end in look.ends]
            cells += covered
            first.append((conversation, look, encoded.images[look.image]))
            if min(covered) < LEAST_CELLS:
                small.append(f"{conversation.source}: {look.phrase!r:.60}, {min(covered):.2f} cells")
    return LaidOver(cells, small, first[0])


def picture_digests(dataset: ConversationDataset, places: Sequence[int]) -> set[str]:
    """SHA-256 of every picture file of some samples."""

    def work(chunk: range) -> set[str]:
        return {
            picture_digest(ref)
            for i in chunk
            for ref in dataset.conversations[places[i]].media
            if isinstance(ref, ImageRef)
        }

    parts = in_chunks(work, len(places), workers=None, doing="reading supervised pictures")
    return set().union(*(part for _, part in parts))


def summary(dataset: ConversationDataset, count: RowCount, layers: str, *, whole: bool) -> Iterator[str]:
    """Lines about supervision: rows by source, what boxes become, and with ``whole`` one of them drawn.

    Raises ValueError where nothing is supervised.
    """
    if not count.places:
        raise ValueError(
            "--look_weight: found no look_at and no <ref>…</ref><box>…</box> in any answer, expected some; add "
            "look_at to answers (docs/teach.md), or leave the flag out"
        )
    for source, name in enumerate(dataset.mixture.names):
        yield (
            f"attention supervised, {name}: {count.rows[source]:,} rows of {count.samples[source]:,} samples of "
            f"{int((dataset.source_of == source).sum()):,}, in {layers}"
        )
    laid = lay_over(dataset, count.places)
    low, middle, high = np.quantile(laid.cells, [0, 0.5, 1])
    yield f"boxes cover {low:.1f} to {high:.1f} cells of their picture, median {middle:.1f}"
    if laid.small:
        yield "\n  ".join(
            [
                f"warning: {len(laid.small)} boxes cover less than half a cell; give pictures more pixels",
                *laid.small[:3],
            ]
        )
    if whole:
        yield drawn(*laid.first)


def drawn(conversation: Conversation, look: LookAt, image: ImageTokens) -> str:
    """The cells that boxes cover, a character each, darker where they cover more.

    Of a box over the right half of 2 × 4 cells: ``··██``, ``··██``.
    """
    boxes = [box for end in look.ends for box in end]
    cells = np.max([cells_covered(end, image) for end in look.ends], axis=0).reshape(image.grid)
    corners = ", ".join("({:.0f}, {:.0f}, {:.0f}, {:.0f})".format(*box) for box in boxes_pixels(boxes, image))
    rows, columns = image.grid
    lines = [f"{conversation.source}: {look.phrase!r} looks at {corners}, over {rows} × {columns} cells"]
    return "\n".join([*lines, *(f"  {line}" for line in shaded(cells))])


def shaded(cells: Float[np.ndarray, "rows columns"]) -> list[str]:
    """Coverage as characters: none, up to ¼, ½, ¾ and above."""
    return ["".join(SHADES[math.ceil(min(value, 1.0) * 4 - 1e-9)] for value in row) for row in cells.tolist()]


def _spread(places: Sequence[int], most: int) -> Sequence[int]:
    return places[:: max(1, -(-len(places) // most))]


# ---------------------------------------------------------------------------------------------------------------------
# Layers
# ---------------------------------------------------------------------------------------------------------------------


def check_layers(layers: Sequence[int], model: nn.Module, family: Family) -> None:
    """Raises ValueError for a layer that the model does not have, or that has no attention map."""
    attending = attending_layers(model, family)
    wrong = [layer for layer in layers if layer not in attending]
    if wrong:
        raise ValueError(
            f"--look_layers: found {wrong}, expected layers of this model that attend, {layer_words(attending)}"
        )


def check_moves(model: nn.Module, family: Family, layers: Sequence[int]) -> None:
    """Raises ValueError where nothing that trains can move a supervised layer's attention: only what makes its queries
    and keys can, or what comes before it.

    model    with what trains unfrozen; it needs no weights
    """
    still = [layer for layer in layers if not _moves(model, family, layer)]
    if still:
        raise ValueError(
            f"--look_weight: nothing that trains can move the attention of layer{'s' * (len(still) > 1)} "
            f"{', '.join(map(str, still))}: values and outputs change what is read, not where; train queries and keys "
            "there (q and k among --lora_target_modules), layers before it, or --connector"
        )


def _moves(model: nn.Module, family: Family, layer: int) -> bool:
    return any(
        one.requires_grad and _is_before(plain_name(name), family, layer)
        for name, one in bare_model(model).named_parameters()
    )


def _is_before(name: str, family: Family, layer: int) -> bool:
    """Do queries and keys of a layer depend on a parameter?"""
    paths = family.paths
    if component_of(name, paths) in ("vision", "connector"):
        return True
    _, _, rest = name.partition(f"{paths.language_layers}.")
    if not rest:
        return "embed" in name or ".wte." in name
    number, _, inside = rest.partition(".")
    if int(number) != layer:
        return int(number) < layer
    if inside.startswith(f"{paths.language_attention}."):
        return not {*inside.split(".")} & {*VALUE_PATH}
    return inside.startswith(("input_layernorm", "ln_1"))
