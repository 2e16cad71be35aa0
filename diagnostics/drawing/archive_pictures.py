"""The pictures of a run: one of each probe and step, the strip over steps, and those for trackers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from diagnostics.comparison.box_answers import outcome_with_box
from diagnostics.comparison.maps import Strip
from diagnostics.comparison.pairs import ProbePair, pair_records, pairs_by_group
from diagnostics.comparison.trajectory import evenly_chosen, evolution_of, strip_maps
from diagnostics.comparison.typical import typical_before
from diagnostics.drawing import board_picture
from diagnostics.drawing.board import SHOWN_PER_GROUP, shown_probes
from diagnostics.drawing.figures import layers_heads_figure
from diagnostics.drawing.probe_picture import ProbeSheet, draw_probe, draw_strip, encode_png, map_rows
from diagnostics.drawing.sink import TaggedPicture
from diagnostics.drawing.tags import map_tag, overview_tag, strip_tag
from diagnostics.records.archive import (
    best_in,
    fault_words,
    record_faults,
    record_path,
    recorded_steps,
    step_folder,
    whole_records,
)
from diagnostics.records.names import file_name
from diagnostics.records.probes import Probe, as_asked, groups_of, readable_probes
from diagnostics.records.record import AttentionRecord
from finetune.files import write_atomically
from finetune.samples.images import open_image

DOTS_PER_INCH = 140

STRIP_STEPS_MAX, DRIFT_STEPS_MAX = 8, 6
"""Panels of a strip, in the archive and in trackers; of more steps these many are taken evenly, the first and the last
among them."""


@dataclass
class ArchivePictures:
    """Records of a run, and the pictures drawn of them. The baseline is read once.

    problems   a line for each probe that cannot be drawn: it has no picture, or no readable record of the baseline
    """

    attention_dir: Path
    probes: Sequence[Probe]
    baseline: Mapping[str, AttentionRecord]
    problems: tuple[str, ...] = ()

    @classmethod
    def open(cls, attention_dir: str | Path, probes_file: str | Path | None = None) -> ArchivePictures:
        """The records below ``attention/`` that can be drawn.

        Raises FileNotFoundError without a probe file, and ValueError where nothing can be drawn.
        """
        attention_dir = Path(attention_dir)
        path = attention_dir / "probes.json" if probes_file is None else Path(probes_file)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no probe file there; give the one that was used: --probes FILE")
        probes, lines = readable_probes(path)
        folder = step_folder(attention_dir, 0)
        baseline, faults = whole_records(folder, [probe.id for probe in probes])
        if not baseline:
            raise ValueError(f"{folder}: no attention records there that can be read; {fault_words(faults)}")
        problems = [*lines, *(f"probe {name}: baseline's record: {fault}" for name, fault in faults.items())]
        drawn = [probe for probe in probes if probe.id in baseline]
        return cls(attention_dir, drawn, baseline, tuple(problems))

    def whole_pairs(self, step: int) -> tuple[list[ProbePair], list[str]]:
        """Pairs of base and ``step`` for every probe that has both records, and messages about the others."""
        pairs: list[ProbePair] = []
        problems: list[str] = []
        names = [probe.id for probe in self.probes]
        now, faults = (
            (self.baseline, {}) if step == 0 else whole_records(step_folder(self.attention_dir, step), names)
        )
        if faults:
            problems.append(f"step {step}: {fault_words(faults)}")
        for probe in self.probes:
            if probe.id not in now:
                continue
            try:
                pairs.append(pair_records(probe, self.baseline[probe.id], now[probe.id]))
            except ValueError as error:
                problems.append(str(error))
        return pairs, problems

    def pair(self, probe: Probe, step: int) -> ProbePair:
        """One probe, base against ``step``, read from the disk."""
        before, after = (AttentionRecord.load(self.record_path(probe.id, at)) for at in (0, step))
        return pair_records(probe, before, after)

    def without_records(self) -> ArchivePictures:
        """The same archive without its records, light enough to send to another process."""
        return ArchivePictures(self.attention_dir, (), {})

    def record_path(self, probe_id: str, step: int) -> Path:
        return record_path(step_folder(self.attention_dir, step), probe_id)

    def picture_path(self, probe_id: str, step: int) -> Path:
        return self.attention_dir / "images" / file_name(probe_id) / f"step-{step:06d}.png"

    def strip_path(self, probe_id: str) -> Path:
        return self.attention_dir / "images" / file_name(probe_id) / "strip.png"

    def best(self, step: int) -> str | None:
        """The checkpoint whose model a step's records are of, where it is not the step's own."""
        return best_in(step_folder(self.attention_dir, step))

    def training_steps(self) -> list[int]:
        """Recorded steps, without that of the best model, which was loaded at the end: it is of an earlier step, and no
        point of a line over steps."""
        return [step for step in recorded_steps(self.attention_dir) if self.best(step) is None]

    def missing_steps(self) -> list[int]:
        """Steps after the baseline that have records but lack pictures, as a killed run leaves them."""
        return [
            step
            for step in recorded_steps(self.attention_dir)
            if step > 0 and not all(self.picture_path(probe.id, step).is_file() for probe in self.probes)
        ]


def probe_sheet(pair: ProbePair) -> ProbeSheet:
    """What is drawn and written on one probe's picture."""
    probe, before, after = pair.probe, pair.before, pair.after
    return ProbeSheet(
        probe_id=probe.id,
        group=probe.group,
        picture=picture_of(pair),
        question=as_asked(probe.question),
        answer=probe.answer,
        foil=probe.foil,
        regions={name: probe.regions[name] for name in pair.region_order()},
        base_step=before.step,
        step=after.step,
        before=outcome_with_box(probe, pair.region, before),
        after=outcome_with_box(probe, pair.region, after),
        spellings=probe.spellings[1:],
    )


def picture_of(pair: ProbePair) -> Image.Image:
    """The picture that a probe was asked about.

    Raises:
        ValueError: it cannot be read, or its size differs from that in the records, so maps and boxes would not fit.
    """
    picture, expected = open_picture(pair.probe.images[0]), pair.after.image_tokens[0].image_size_pixels
    if picture.size != expected:
        raise ValueError(
            f"cannot draw over {pair.probe.images[0]}: found {picture.width} × {picture.height} pixels, the records of "
            f"{pair.probe.id!r} were made of {expected[0]} × {expected[1]}; expected the picture that was probed"
        )
    return picture


def open_picture(path: Path) -> Image.Image:
    """A picture as shown: upright, in colour.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return open_image(path)
    except ValueError as error:
        raise ValueError(f"cannot draw over {path}: {error}") from error


def overview_png(pairs: Sequence[ProbePair]) -> TaggedPicture | None:
    """A group's layers x heads picture: mean region mass over its probes; None if none has a region."""
    with_region = [pair for pair in pairs if pair.region is not None]
    if not with_region:
        return None
    before, after = (
        np.mean([getattr(pair, side).region_mass[pair.region] for pair in with_region], axis=0)
        for side in ("before", "after")
    )
    group, step = pairs[0].probe.group, pairs[0].after.step
    regions = sorted({pair.region for pair in with_region if pair.region is not None})
    where = regions[0] if len(regions) == 1 else "each probe's region"
    figure = layers_heads_figure(
        before,
        after,
        title=f"{group}: attention on {where}, step {step}",
        unit=f"share of the attention to the image, mean of {len(with_region)} probes",
        key_layers=pairs[0].after.layers,
    )
    # As wide as the maps, so that its type is as legible in a card.
    figure.set_size_inches(board_picture.WIDTH / DOTS_PER_INCH, figure.get_figheight())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return TaggedPicture(overview_tag(group), buffer.getvalue(), Image.open(buffer).size)


def render_archive(archive: ArchivePictures, step: int, pool: Executor) -> Iterator[str | None]:
    """Draw the archive picture of every probe at one step; yields, for each, None or what went wrong."""
    light = archive.without_records()
    asked = [pool.submit(draw_archive_picture, light, probe, step) for probe in archive.probes]
    yield from map(outcome_of, as_completed(asked))


def outcome_of(drawn: Future[str | None]) -> str | None:
    """What went wrong, also if the drawing process itself died (most likely out of memory)."""
    try:
        return drawn.result()
    except BrokenExecutor as error:
        return f"a drawing process ended early: {error}"


def probe_png(pair: ProbePair, best: str | None = None) -> bytes:
    """One probe's picture of all key layers. ``best``: as of ``ProbeSheet``."""
    sheet, maps = replace(probe_sheet(pair), best=best), pair.maps()
    return encode_png(draw_probe(sheet, maps), map_rows(sheet.picture.size, len(maps)))


def draw_archive_picture(archive: ArchivePictures, probe: Probe, step: int) -> str | None:
    """Draw one probe's picture of all key layers, from its records on disk; returns None or what went wrong."""
    try:
        pair = archive.pair(probe, step)
        write_atomically(archive.picture_path(probe.id, step), probe_png(pair, archive.best(step)))
    except (ValueError, OSError) as error:  # a bad picture or a full disk must not stop the others
        return f"picture of probe {probe.id}: {error}"
    return None


def first_of_groups(probes: Sequence[Probe], count: int) -> list[Probe]:
    """The first ``count`` probes of each group: those that TensorBoard shows."""
    return [probe for members in groups_of(probes).values() for probe in members[:count]]


def render_strips(archive: ArchivePictures, pool: Executor, probes: Sequence[Probe]) -> Iterator[str | None]:
    """Draw the strips of probes, each over the steps with a readable record; yields, for each, None or what went wrong,
    and before them a line for each step that some strips lack."""
    light = archive.without_records()
    steps = archive.training_steps()
    without: dict[int, dict[str, str]] = {}
    for step in steps:
        without[step] = record_faults(
            step_folder(archive.attention_dir, step), [probe.id for probe in probes]
        )
    yield from (left_out(step, faults) for step, faults in without.items() if faults)
    asked = []
    for probe in probes:
        whole = [step for step in steps if probe.id not in without[step]]
        chosen = [whole[index] for index in evenly_chosen(len(whole), STRIP_STEPS_MAX)]
        asked.append(pool.submit(draw_archive_strip, light, probe, chosen))
    yield from map(outcome_of, as_completed(asked))


def left_out(step: int, faults: Mapping[str, str]) -> str:
    name = next(iter(faults))
    others = f" (and {len(faults) - 1} others)" if len(faults) > 1 else ""
    return f"strip of probe {name}{others}: without step {step}, where {fault_words(faults)}"


def draw_archive_strip(archive: ArchivePictures, probe: Probe, steps: Sequence[int]) -> str | None:
    """Draw one probe over steps, every key layer, from its records on disk; returns None or what went wrong."""
    try:
        records = {step: AttentionRecord.load(archive.record_path(probe.id, step)) for step in steps}
        evolution = evolution_of({step: {probe.id: record} for step, record in records.items()})
        strips: list[Strip] = [strip_maps(probe, evolution, layer) for layer in evolution.layers]
        sheet = probe_sheet(pair_records(probe, records[steps[0]], records[steps[-1]]))
        picture = draw_strip(sheet, strips)
        write_atomically(archive.strip_path(probe.id), encode_png(picture))
    except (ValueError, OSError) as error:  # a bad picture or a full disk must not stop the others
        return f"strip of probe {probe.id}: {error}"
    return None


def render_board(
    archive: ArchivePictures, step: int, pool: Executor, per_group: int = SHOWN_PER_GROUP
) -> Iterator[TaggedPicture | str]:
    """The pictures for trackers: a group's drift strip, a probe's maps for each key layer, a group's layers x heads; or
    what went wrong. None of the best model, which was loaded at the end: trackers show steps."""
    if archive.best(step) is not None:
        return
    pairs, problems = archive.whole_pairs(step)
    yield from problems
    light, groups = archive.without_records(), pairs_by_group(pairs)
    steps = [one for one in archive.training_steps() if one <= step]
    asked = [
        pool.submit(draw_board_strip, light, strip_probe(group), steps, moved_most(group))
        for group in groups.values()
    ]
    asked += [
        pool.submit(draw_board_pictures, light, pair.probe, step) for pair in shown_probes(pairs, per_group)
    ]
    overviews = [overview_png(group) for group in groups.values()]
    for future in asked:
        yield from future.result()
    yield from (overview for overview in overviews if overview is not None)


def strip_probe(group: Sequence[ProbePair]) -> Probe:
    """The probe of a group whose strip is shown: typical of the untrained model, so that no result picks it and every
    step shows the same one."""
    chosen = typical_before(group, group[0].layers[-1].layer)
    assert chosen is not None
    return chosen.probe


def moved_most(group: Sequence[ProbePair]) -> int:
    """The key layer in which a group's attention has moved most from the base; the last one where none has."""
    drifts = np.array([[layer.drift_jsd_nats or 0.0 for layer in pair.layers] for pair in group]).mean(axis=0)
    return group[0].layers[int(np.argmax(drifts)) if drifts.any() else -1].layer


def draw_board_strip(
    archive: ArchivePictures, probe: Probe, steps: Sequence[int], layer: int
) -> list[TaggedPicture | str]:
    """Draw one probe and key layer over the steps that have its record; or say what went wrong."""
    try:
        whole = [
            step for step in steps if not record_faults(step_folder(archive.attention_dir, step), [probe.id])
        ]
        chosen = [whole[index] for index in evenly_chosen(len(whole), DRIFT_STEPS_MAX)]
        records = {step: AttentionRecord.load(archive.record_path(probe.id, step)) for step in chosen}
        evolution = evolution_of({step: {probe.id: record} for step, record in records.items()})
        pair = pair_records(probe, records[chosen[0]], records[chosen[-1]])
        picture = board_picture.draw_drift(probe_sheet(pair), strip_maps(probe, evolution, layer))
        content = io.BytesIO()
        picture.save(
            content, format="PNG"
        )  # one a group: true colour, as dithering is noise where maps are small
        return [TaggedPicture(strip_tag(probe.group), content.getvalue(), picture.size)]
    except (ValueError, OSError) as error:
        return [f"strip of probe {probe.id}: {error}"]


def draw_board_pictures(archive: ArchivePictures, probe: Probe, step: int) -> list[TaggedPicture | str]:
    """Draw one probe's maps for trackers, one picture for each key layer; or say what went wrong."""
    drawn: list[TaggedPicture | str] = []
    try:
        pair = archive.pair(probe, step)
        sheet = probe_sheet(pair)
        for maps in pair.maps():
            tag = map_tag(sheet.group, sheet.probe_id, maps.layer)
            drawn.append(_tagged(tag, board_picture.draw_maps(sheet, maps)))
    except (ValueError, OSError) as error:
        drawn.append(f"picture of probe {probe.id}: {error}")
    return drawn


def _tagged(tag: str, picture: Image.Image) -> TaggedPicture:
    return TaggedPicture(tag, encode_png(picture), picture.size)
