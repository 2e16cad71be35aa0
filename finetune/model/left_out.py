"""What a run left out of its data as too long (``--on_bad_sample drop``): pictures there were not trained on.

Only samples that show one of the pictures are counted, with the processor that the run left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.families import family_of
from finetune.families.base import IGNORED, Family, encode_for_training
from finetune.model import checkpoint
from finetune.model.folders import ADAPTER_CONFIG, MODEL_CONFIG
from finetune.model.look_file import picture_digest
from finetune.samples.conversation import Conversation, ImageRef


def files_kept(
    files: Mapping[Path, str],
    conversations: Sequence[Conversation],
    measured: Sequence[Conversation],
    marks: Mapping[str, Any],
    run: Path,
) -> dict[Path, str]:
    """Those of the picture files, each with its SHA-256, that samples show which were trained on.

    measured    the conversations with the sizes of their pictures, on which the count depends
    marks, run  of the run: its flags and its folder

    Raises ValueError where no processor of the run can be loaded.
    """
    processor, family = _processor(marks, run)
    most, sizes = int(marks["model_max_length"]), {path.stat().st_size for path in files}
    sought, digests = {*files.values()}, dict[Path, str]()
    for place in range(len(conversations)):
        if not sought:
            break
        shown = sought.intersection(_digests_of(conversations, place, sizes, digests))
        if shown and _fits(measured, place, processor, family, most):
            sought -= shown
    return {path: digest for path, digest in files.items() if digest not in sought}


def _digests_of(
    conversations: Sequence[Conversation], place: int, sizes: Collection[int], known: dict[Path, str]
) -> Iterator[str]:
    """SHA-256 of its pictures and frames that have one of these sizes in bytes; ``known``: of files read before."""
    try:
        media = conversations[place].media
    except ValueError:  # left out too
        return
    for one in media:
        for ref in (one,) if isinstance(one, ImageRef) else one.frames:
            try:
                if (ref.path.stat().st_size if ref.data is None else len(ref.data)) not in sizes:
                    continue
                if ref.data is not None:
                    yield picture_digest(ref)
                    continue
                if ref.path not in known:
                    known[ref.path] = picture_digest(ref)
                yield known[ref.path]
            except (OSError, ValueError):  # a path that no file can have
                continue


def _fits(
    conversations: Sequence[Conversation], place: int, processor: Any, family: Family, most: int
) -> bool:
    try:
        encoded = encode_for_training(family, processor, conversations[place], media=False)
    except ValueError:  # a fault, or the family refuses it: the run left it out
        return False
    return len(encoded.input_ids) <= most and bool((encoded.labels[1:] != IGNORED).any())


def _processor(marks: Mapping[str, Any], run: Path) -> tuple[Any, Family]:
    """As the run set it: from its folder, of a run that has not ended from a checkpoint there, or from the model."""
    given = [marks.get(name) for name in ("lora_weight_path", "model_name_or_path")]
    places = [run, *sorted(run.glob("checkpoint-*"))[-1:], *(Path(one) for one in given if one)]
    fault = "no processor is left in its folder"
    for place in places:
        if not any((place / name).is_file() for name in (MODEL_CONFIG, ADAPTER_CONFIG)):
            continue
        try:
            family = family_of(checkpoint.load_config(place))
            processor = checkpoint.load_processor(place)
            pixels = {name: marks.get(name) for name in ("min_pixels", "max_pixels")}
            if any(value is not None for value in pixels.values()):
                family.set_pixel_budget(processor, **pixels)
            return processor, family
        except ValueError as error:
            fault = str(error)
    raise ValueError(fault)
