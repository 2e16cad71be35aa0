"""AttentionRecord: one model's measurements on one probe, enough to redraw and recompute without the model.

On disk a record is one safetensors file: the arrays as they are, and everything else as JSON under the key
``attention_record`` of the header, so that safetensors and NumPy alone open it::

    rows                           Float32[layers, heads, queries, keys]
    visual_share                   Float32[all layers, heads]
    region_mass/NAME               Float32[all layers, heads]
    connector/I                    Float32[image tokens, cells]
    image/I/positions              Int64[tokens]
    image/I/cell_boxes_pixels      Float64[cells, 4]
    image/I/overview/…             the same two of its overview, where it has one

and, where measured, ``random_mass/NAME``, ``salient_mass/NAME``, ``sinks``, ``region_mass_without_sinks/NAME``,
``head_entropy``, ``highest_logit``, ``maps/NAME``, ``relation/NAME`` and ``curves/NAME``, of the shapes that
``AttentionRecord`` gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diagnostics.records.json_files import parsed, shown
from diagnostics.records.record_checks import NAMED, OPTIONAL, FieldError, check_arrays, check_header
from finetune.families.base import ImageTokens
from finetune.files import in_place_of
from finetune.printable import one_line

VERSION = 3  # 2: margins without the end of the turn
HEADER = "attention_record"


class Query(NamedTuple):
    """A token whose attention row is kept.

    position   index in the sequence of the token that looks
    label      "answer" (the row that predicts the first token where answer and foil differ), or the probe's
               phrase: "phrase:东方明珠"
    text       the token it predicts (answer) or reads (phrase)
    """

    position: int
    label: str
    text: str


@dataclass(frozen=True)
class Scores:
    """How likely the model found the probe's replies, and its own answer.

    answer_nats   log p(answer | prompt), summed over its tokens, nats
    foil_nats     the same for the foil; None if the probe has no foil
    generated     the model's own greedy answer, "" if none was generated
    """

    answer_nats: float
    foil_nats: float | None
    generated: str

    @property
    def margin_nats(self) -> float | None:
        return None if self.foil_nats is None else self.answer_nats - self.foil_nats


class Intervention(NamedTuple):
    """The margin after a region was taken away. ``kind`` is "occlusion", "knockout" or "tower knockout"
    (``diagnostics.records.measurement_plan``); ``region`` names it;
    ``control_margins_nats`` are the margins after the same was done to area-matched random regions; ``layers`` is
    the window (first, last) of language layers in which the answer query was cut from the region, None if the
    region was taken away everywhere."""

    kind: str
    region: str
    margin_nats: float
    control_margins_nats: tuple[float, ...]
    layers: tuple[int, int] | None = None


class PictureControl(NamedTuple):
    """The margin with the probe's picture replaced.

    kind         "blank" (one colour, the same size), "other" (another probe's, whose right answer differs),
                 "same answer" (another probe's of the group, where all share one answer), "none" (question alone)
    margin_nats  of the same answer and foil
    lender       id of the probe whose picture it was, "" for blank and none
    """

    kind: str
    margin_nats: float
    lender: str = ""


class PatternPatch(NamedTuple):
    """The margin of this model with attention patterns of another, ``AttentionRecord.patched_from``, put back.

    part         "language" (all its attending layers), "key layers" (those of the record together), "layer" (one),
                 "connector" (the resampler)
    margin_nats  of the same answer and foil
    layers       the language layers that were patched; () for the connector
    """

    part: str
    margin_nats: float
    layers: tuple[int, ...] = ()


class PatchSource(NamedTuple):
    """Whose attention patterns were put back: a model's name, and its own margin on this probe."""

    model: str
    margin_nats: float


def _nothing() -> np.ndarray:
    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class AttentionRecord:
    """What one model did on one probe at one step.

    probe_id, group        as in the probe file
    step                   global training step, 0 is the baseline
    model                  folder or display name of the checkpoint
    tokens                 text of each token of prompt + answer, len = keys
    queries                the kept rows, len = rows.shape[2]; the first is the answer query
    layers                 indices of the key language layers, len = rows.shape[0]
    rows                   Float32[layers, heads, queries, keys], each row sums to 1 (below 1 where a head has a
                           sink logit)
    image_tokens           one for each image of the probe
    connector              one Float32[image tokens, cells] for each image (mean over the connector's heads),
                           or () if the family has no attending connector
    region_mass            region name → Float32[all layers, heads]: share of the answer query's attention to
                           the image that lies on the region, range [0, 1]
    visual_share           Float32[all layers, heads]: attention of the answer query on image tokens, [0, 1]
    scores, interventions  what was answered, and what hiding or masking a region did to it

    Measured only if the plan includes it, empty otherwise:

    picture_controls       margins with the picture replaced
    patches, patched_from  margins with another model's attention patterns put back, and that model
    salient_mass           as random_mass, on area-matched places whose contrast is nearest the region's
    random_mass            region name → Float32[all layers, heads]: mean mass on area-matched random regions, each for
                           the region's share of cells: above 1 at most where they cover fewer cells than it does
    sinks                  Bool[layers, keys]: tokens that are attention sinks in each key layer
    region_mass_without_sinks   as region_mass, of rows whose sink keys are 0; only where there are sinks
    head_entropy           Float32[all layers, heads]: entropy of the answer query's whole row over its largest, [0, 1]
    highest_logit          Float32[all layers, heads]: highest attention logit of the answer query
    supervised_layers      language layers whose attention was trained on (``--look_weight``)
    supervised_picture     this probe's picture was among those it was trained on
    supervised_unknown     some of them are not known (streamed data); False in older records, which do not say
    supervised_connector   so was the attention of the resampler, through which every layer looks at the picture
    trained_picture        a picture of this probe is in the training data
    precision              that the model was measured in (``diagnostics.probing.precision``); "" in older records
    probe_mark             of the probe as it was measured (``diagnostics.records.probe_marks``); "" in older records
    maps                   name → Float32[layers, cells]: "relative", "gradient"; "rollout" Float32[1, cells]
    relation               name → Float32[…]: readings of a probe with a relation (``diagnostics.probing.relations``)
    curves                 name → Float32[points]: margins in nats while the picture is hidden or shown bit by bit
    """

    probe_id: str
    group: str
    step: int
    model: str
    tokens: tuple[str, ...]
    queries: tuple[Query, ...]
    layers: tuple[int, ...]
    rows: np.ndarray
    image_tokens: tuple[ImageTokens, ...]
    connector: tuple[np.ndarray, ...]
    region_mass: dict[str, np.ndarray]
    visual_share: np.ndarray
    scores: Scores
    interventions: tuple[Intervention, ...] = ()
    picture_controls: tuple[PictureControl, ...] = ()
    patches: tuple[PatternPatch, ...] = ()
    patched_from: PatchSource | None = None
    supervised_layers: tuple[int, ...] = ()
    supervised_picture: bool = False
    supervised_unknown: bool = False
    supervised_connector: bool = False
    trained_picture: bool = False
    precision: str = ""
    probe_mark: str = ""
    random_mass: dict[str, np.ndarray] = field(default_factory=dict)
    salient_mass: dict[str, np.ndarray] = field(default_factory=dict)
    sinks: np.ndarray = field(default_factory=_nothing)
    region_mass_without_sinks: dict[str, np.ndarray] = field(default_factory=dict)
    head_entropy: np.ndarray = field(default_factory=_nothing)
    highest_logit: np.ndarray = field(default_factory=_nothing)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    relation: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, complete or not at all; folders above it are made. Raises OSError naming it."""
        metadata = {HEADER: json.dumps(_header(self), ensure_ascii=False)}
        with in_place_of(Path(path)) as temporary:
            try:
                save_file(_arrays(self), temporary, metadata=metadata)
            except SafetensorError as error:  # not an OSError, even for a full disk
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, path: str | Path) -> AttentionRecord:
        """Read what ``save`` wrote, arrays bit for bit.

        Raises FileNotFoundError, and ValueError naming file and field where it is broken, is no record, or is of
        another version.
        """
        metadata, arrays = _opened(Path(path))
        if HEADER not in metadata:
            raise ValueError(
                f"{path}: found a safetensors file without {HEADER!r} in its header, expected a record"
            )
        try:
            header = parsed(metadata[HEADER])
        except ValueError as error:
            raise ValueError(f"{path}: {HEADER}: {error}") from error
        if not isinstance(header, dict) or header.get("version") != VERSION:
            found = header.get("version") if isinstance(header, dict) else header
            raise ValueError(f"{path}: found record version {shown(found)}, expected {VERSION}")
        try:
            check_header(header)
            check_arrays(header, arrays)
        except FieldError as error:
            raise ValueError(f"{path}: {one_line(str(error), 1000)}; delete it and probe again") from error
        return _record(header, arrays)


def _opened(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Header and arrays of a safetensors file.

    Raises FileNotFoundError, and ValueError where it cannot be read.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no attention record there")
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise
    # TypeError, AttributeError: a type that NumPy lacks (bfloat16, 8-bit floats)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: broken record ({one_line(str(error), 300)}); delete it and probe again"
        ) from error


def _arrays(record: AttentionRecord) -> dict[str, np.ndarray]:
    arrays = {"rows": record.rows, "visual_share": record.visual_share}
    arrays |= {name: getattr(record, name) for name in OPTIONAL if getattr(record, name).size}
    for named in NAMED:
        arrays |= {f"{named}/{name}": array for name, array in getattr(record, named).items()}
    arrays |= {f"connector/{index}": weights for index, weights in enumerate(record.connector)}
    for index, image in enumerate(record.image_tokens):
        views = {"": image, "overview/": image.overview}
        for name, one in views.items():
            if one is not None:
                arrays[f"image/{index}/{name}positions"] = one.positions
                arrays[f"image/{index}/{name}cell_boxes_pixels"] = one.cell_boxes_pixels
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _header(record: AttentionRecord) -> dict[str, Any]:
    scores = record.scores
    return {
        "version": VERSION,
        "probe_id": record.probe_id,
        "group": record.group,
        "step": record.step,
        "model": record.model,
        "tokens": list(record.tokens),
        "queries": [query._asdict() for query in record.queries],
        "layers": list(record.layers),
        "names": {named: list(getattr(record, named)) for named in NAMED},  # safetensors keeps no order
        "connectors": len(record.connector),
        "images": [
            {
                "grid": list(image.grid),
                "image_size_pixels": list(image.image_size_pixels),
                "through_connector": image.through_connector,
                **({"seconds": list(image.seconds)} if image.seconds else {}),
                "overview": None if image.overview is None else list(image.overview.grid),
                "tiles": None if image.tiles is None else list(image.tiles),
            }
            for image in record.image_tokens
        ],
        "scores": {
            "answer_nats": scores.answer_nats,
            "foil_nats": scores.foil_nats,
            "generated": scores.generated,
        },
        "interventions": [intervention._asdict() for intervention in record.interventions],
        "picture_controls": [control._asdict() for control in record.picture_controls],
        "patches": [patch._asdict() for patch in record.patches],
        "patched_from": None if record.patched_from is None else record.patched_from._asdict(),
        "supervised_layers": list(record.supervised_layers),
        "supervised_picture": record.supervised_picture,
        "supervised_unknown": record.supervised_unknown,
        "supervised_connector": record.supervised_connector,
        "trained_picture": record.trained_picture,
        "precision": record.precision,
        "probe_mark": record.probe_mark,
    }


def _record(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> AttentionRecord:
    optional: dict[str, Any] = {name: arrays[name] for name in OPTIONAL if name in arrays}
    named: dict[str, Any] = {
        kind: {name: arrays[f"{kind}/{name}"] for name in names} for kind, names in header["names"].items()
    }
    return AttentionRecord(
        probe_id=header["probe_id"],
        group=header["group"],
        step=header["step"],
        model=header["model"],
        tokens=tuple(header["tokens"]),
        queries=tuple(Query(**query) for query in header["queries"]),
        layers=tuple(header["layers"]),
        rows=arrays["rows"],
        image_tokens=tuple(
            _image(image, arrays, f"image/{index}/") for index, image in enumerate(header["images"])
        ),
        connector=tuple(arrays[f"connector/{index}"] for index in range(header["connectors"])),
        visual_share=arrays["visual_share"],
        scores=Scores(**header["scores"]),
        interventions=tuple(
            Intervention(
                **{
                    **one,
                    "control_margins_nats": tuple(one["control_margins_nats"]),
                    "layers": None if one["layers"] is None else (one["layers"][0], one["layers"][1]),
                }
            )
            for one in header["interventions"]
        ),
        picture_controls=tuple(PictureControl(**one) for one in header["picture_controls"]),
        patches=tuple(PatternPatch(**{**one, "layers": tuple(one["layers"])}) for one in header["patches"]),
        patched_from=None if header["patched_from"] is None else PatchSource(**header["patched_from"]),
        supervised_layers=tuple(
            header.get("supervised_layers", ())
        ),  # not in records from before it was known
        supervised_picture=header.get("supervised_picture", False),
        supervised_unknown=header.get("supervised_unknown", False),
        supervised_connector=header.get("supervised_connector", _may_be_supervised(header)),
        trained_picture=header.get("trained_picture", False),
        precision=header.get("precision", ""),
        probe_mark=header.get("probe_mark", ""),
        **optional,
        **named,
    )


def _may_be_supervised(header: Mapping[str, Any]) -> bool:
    """Of a record from before it was known: the resampler's attention was trained on, if any was."""
    return bool(header.get("supervised_layers")) and any(
        image["through_connector"] for image in header["images"]
    )


def _image(image: dict[str, Any], arrays: dict[str, np.ndarray], folder: str) -> ImageTokens:
    """One image's tokens. Records from before they were kept say nothing of overview, tiles and seconds: none."""
    coarse, tiles = image.get("overview"), image.get("tiles")
    overview = None
    if coarse is not None:
        alike = {**image, "grid": coarse, "overview": None, "tiles": None, "through_connector": False}
        overview = _image(alike, arrays, f"{folder}overview/")
    return ImageTokens(
        positions=arrays[f"{folder}positions"],
        grid=(image["grid"][0], image["grid"][1]),
        cell_boxes_pixels=arrays[f"{folder}cell_boxes_pixels"],
        image_size_pixels=(image["image_size_pixels"][0], image["image_size_pixels"][1]),
        through_connector=image["through_connector"],
        seconds=tuple(image.get("seconds", ())),
        overview=overview,
        tiles=None if tiles is None else tuple(tiles),
    )
