"""What the monitor writes into TensorBoard. The only place with tag names.

Tags (G a group, L a key layer, ID a probe that is shown):

    accuracy/G                       share of probes with a positive margin
    margin_nats/G                    mean of log p(answer) - log p(foil)
    box_accuracy/G                   share of boxes with an IoU above .5, where right answers are boxes
    box_iou/G, box_pointing/G        their mean IoU, and the share whose centre lies within the right box
    region_mass/G/layer_L            share of the attention to the image that is on the judged region
    enrichment/G/layer_L             the same over the region's share of the image; 1 is uniform attention
    visual_share/layer_L             share of the answer query's attention on image tokens, all probes
    drift_jsd_nats/layer_L           how far attention within the image moved from the base, all probes
    maps: G/ID/layer_L               the probe picture: base | now | difference
    layers x heads/G                 region mass of every layer and head: base | now | difference
    probes/G/ID                      text card: prompt, right and wrong answer, the model's answers
    architecture                     text card at the start: components, parameters, attention layers, image tokens
    diagnosis                        text card at the start: where the untrained model loses the right answers
    verdict/G                        text card at the end: the verdict and the legs it rests on, or its reasons
    onset/G                          text card at the end: what began when, from three checkpoints
"""

from __future__ import annotations

import os
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diagnostics.comparison.box_answers import of_probe
from diagnostics.comparison.legs.shown import LEGEND, shown_legs
from diagnostics.comparison.pairs import ProbePair, pairs_by_group
from diagnostics.records.names import tag_part
from finetune.families.parts.box_scores import box_scores

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN_PER_GROUP = 3
"""Probes of each group whose pictures and cards go to TensorBoard; the archive on disk has all."""


class TaggedPicture(NamedTuple):
    """An encoded picture and its tag; ``size`` is (width, height) in pixels."""

    tag: str
    png: bytes
    size: tuple[int, int]


def map_tag(group: str, probe_id: str, layer: int) -> str:
    """Tag of a probe picture; its first part gathers a group's pictures under one heading."""
    return f"maps: {tag_part(group)}/{probe_id}/layer_{layer}"


def overview_tag(group: str) -> str:
    """Tag of a group's layers x heads picture."""
    return f"layers x heads/{tag_part(group)}"


def picture_tags(pairs: Sequence[ProbePair], per_group: int = SHOWN_PER_GROUP) -> list[str]:
    """Tags of every picture of one step."""
    maps = [
        map_tag(pair.probe.group, pair.probe.id, layer.layer)
        for pair in shown_probes(pairs, per_group)
        for layer in pair.layers
    ]
    groups = pairs_by_group(pairs).items()
    return maps + [
        overview_tag(name) for name, group in groups if any(pair.region is not None for pair in group)
    ]


def scalars(pairs: Sequence[ProbePair]) -> dict[str, float]:
    """Tag → value of every scalar of one step; means over probes, and over heads where there are heads.

    Groups without a foil have no accuracy and margin, groups without a region no mass and enrichment.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        group = tag_part(pair.probe.group)
        margin = pair.after.scores.margin_nats
        if margin is not None:
            values[f"accuracy/{group}"].append(float(margin > 0))
            values[f"margin_nats/{group}"].append(margin)
        box, said = of_probe(pair), pair.after.scores.generated
        if box is not None and said:
            scores = box_scores([box._replace(said=said)])
            values[f"box_accuracy/{group}"].append(scores.accuracy)
            values[f"box_iou/{group}"].append(scores.mean_iou)
            values[f"box_pointing/{group}"].append(scores.pointing)
        for layer in pair.layers:
            reading = pair.reading(layer)
            if reading is not None:
                values[f"region_mass/{group}/layer_{layer.layer}"].append(reading.mass_after)
                values[f"enrichment/{group}/layer_{layer.layer}"].append(reading.enrichment_after)
            share = float(pair.after.visual_share[layer.layer].mean())
            values[f"visual_share/layer_{layer.layer}"].append(share)
            values[f"drift_jsd_nats/layer_{layer.layer}"].append(layer.drift_jsd_nats)
    return {tag: float(np.mean(of_probes)) for tag, of_probes in values.items()}


def layout(pairs: Sequence[ProbePair]) -> dict[str, dict[str, list[Any]]]:
    """The custom-scalars page: all groups in one chart each, in the order in which a reader asks."""
    tags = list(scalars(pairs))

    def lines(start: str) -> list[Any]:
        return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags if tag.startswith(start)]]

    groups = [tag_part(group) for group in pairs_by_group(pairs)]
    pages = {
        "1 What does it answer?": {
            "accuracy": lines("accuracy/"),
            "margin, nats": lines("margin_nats/"),
            "boxes right": lines("box_accuracy/"),
        },
        "2 Does it look at the region?": {
            f"enrichment, {group}": lines(f"enrichment/{group}/layer_") for group in groups
        },
        "3 How far has it moved?": {
            "drift, nats": lines("drift_jsd_nats/"),
            "visual share": lines("visual_share/"),
        },
    }
    filled = {
        page: {name: chart for name, chart in charts.items() if chart[1]} for page, charts in pages.items()
    }
    return {page: charts for page, charts in filled.items() if charts}


def shown_probes(pairs: Sequence[ProbePair], per_group: int = SHOWN_PER_GROUP) -> list[ProbePair]:
    """The first ``per_group`` of each group, in file order: fixed before training, not picked by result."""
    return [pair for group in pairs_by_group(pairs).values() for pair in group[:per_group]]


def card(pair: ProbePair) -> str:
    """Markdown: the question, the right answer, and the model's answers at the start and now."""
    probe = pair.probe
    rows = [
        "| | answer | margin, nats |",
        "|---|---|---|",
        _card_row(
            f"base (step {pair.before.step})", pair.before.scores.generated, pair.before.scores.margin_nats
        ),
        _card_row(
            f"now (step {pair.after.step})", pair.after.scores.generated, pair.after.scores.margin_nats
        ),
    ]
    words = [f"**{_escape(probe.question)}**", f"right: {_escape(probe.answer)}"]
    words += [f"wrong: {_escape(probe.foil)}"] if probe.foil is not None else []
    region = [f"judged on the region *{_escape(pair.region)}*"] if pair.region is not None else []
    return "\n\n".join([*words, "\n".join(rows), *region])


def verdict_words(group: Mapping[str, Any]) -> str:
    """Markdown: the verdict and the legs it rests on, one row each; its reasons where it rests on none."""
    claim, legs = f"**{_escape(group['verdict'])}**", shown_legs(group)
    if not legs:
        return "\n".join([claim, "", *(f"- {_escape(reason)}" for reason in group["reasons"])])
    rows = [
        f"| {leg.mark} {leg.name} {leg.chinese} | {_escape(f'{leg.value} {leg.unit}' if leg.value else '')} "
        f"| {_escape(leg.interval)} | {leg.threshold if leg.value else ''} | {_escape(leg.reason)} |"
        for leg in legs
    ]
    head = ["| leg | value | interval | at least | |", "|---|---|---|---|---|"]
    return "\n".join([claim, "", *head, *rows, "", LEGEND])


class AttentionBoard:
    """Writes step after step to a SummaryWriter that the caller owns and closes.

    A closed SummaryWriter opens a new event file when written to; each step ends with ``flush``, so nothing is lost
    whoever closes it.
    """

    def __init__(self, writer: SummaryWriter, written: Iterable[tuple[str, int]] = ()) -> None:
        """``written``: what an earlier start wrote (``written_tags``), which is not written twice."""
        self.writer = writer
        self._written = set(written)
        self._has_layout = False

    def write_architecture(self, words: str) -> None:
        """Write the architecture of the trained model, given as Markdown."""
        self.writer.add_text("architecture", words, 0)
        self.writer.flush()

    def write_diagnosis(self, words: str) -> None:
        """Write where the untrained model loses the right answer, given as Markdown."""
        self.writer.add_text("diagnosis", words, 0)
        self.writer.flush()

    def write_step(self, pairs: Sequence[ProbePair], step: int, *, per_group: int = SHOWN_PER_GROUP) -> None:
        """Write scalars of every group, and the cards of the shown probes."""
        if not self._has_layout:
            self.writer.add_custom_scalars(layout(pairs))
            self._has_layout = True
        for tag, value in scalars(pairs).items():
            if (tag, step) not in self._written:
                self.writer.add_scalar(tag, value, step)
        for pair in shown_probes(pairs, per_group):
            tag = f"probes/{tag_part(pair.probe.group)}/{pair.probe.id}"
            if (f"{tag}/text_summary", step) not in self._written:
                self.writer.add_text(tag, card(pair), step)
        self.writer.flush()

    def lacks_pictures(self, pairs: Sequence[ProbePair], step: int) -> bool:
        """Is any picture of this step missing?"""
        return any((tag, step) not in self._written for tag in picture_tags(pairs))

    def write_verdicts(self, comparison: Mapping[str, Any], step: int) -> None:
        """Write each group's verdict with its legs, or its reasons where it rests on none."""
        for name, group in comparison["groups"].items():
            self.writer.add_text(f"verdict/{tag_part(name)}", verdict_words(group), step)
        for name, group in (comparison.get("onset") or {"groups": {}})["groups"].items():
            self.writer.add_text(f"onset/{tag_part(name)}", _escape(group["words"]), step)
        self.writer.flush()

    def write_pictures(self, pictures: Iterable[TaggedPicture], step: int) -> None:
        """Write pictures as they are encoded: ``add_image`` would decode and encode them again on this thread."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        # No public method of SummaryWriter takes a ready Summary; this one also reopens a closed writer.
        file_writer = self.writer._get_file_writer()
        for picture in pictures:
            if (picture.tag, step) in self._written:
                continue
            width, height = picture.size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture.png)
            file_writer.add_summary(Summary(value=[Summary.Value(tag=picture.tag, image=image)]), step)
        self.writer.flush()


def written_tags(log_dir: str | Path) -> set[tuple[str, int]]:
    """(tag, step) of everything that TensorBoard shows of a folder, without what a later start purged."""
    from tensorboard.compat.proto.event_pb2 import SessionLog

    found: set[tuple[str, int]] = set()
    for path in sorted(Path(log_dir).glob("*tfevents*")):
        for event in _events(path):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                found = {(tag, step) for tag, step in found if step < event.step}
            found.update((value.tag, event.step) for value in event.summary.value)
    return found


def _events(path: Path) -> Iterator[Any]:
    """Every complete event of a file, whose last one may be cut off if the run was killed.

    TensorBoard's own reader checks each picture's checksum in Python, which takes minutes for a long run.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    size = path.stat().st_size
    with path.open("rb") as file:
        # A record is its length in 8 bytes, their checksum in 4, the event, and its checksum in 4.
        while len(head := file.read(12)) == 12:
            length = int.from_bytes(head[:8], "little")
            if file.tell() + length + 4 > size:
                return
            content = file.read(length)
            file.seek(4, os.SEEK_CUR)
            try:
                yield Event.FromString(content)
            except DecodeError:
                return


def open_command(log_dir: str | Path) -> str:
    """The command that opens the logs and keeps every image: TensorBoard's own default keeps ten of each tag."""
    return f"tensorboard --logdir {shlex.quote(str(log_dir))} --samples_per_plugin images=1000,text=1000"


def _card_row(name: str, said: str, margin: float | None) -> str:
    verdict = "" if margin is None else "right · " if margin > 0 else "wrong · "
    number = "no foil" if margin is None else f"{verdict}{margin:+.2f}"
    return f"| {name} | {_escape(said) or '*not generated*'} | {number} |"


def _escape(text: str) -> str:
    """Text for a Markdown table: one line, with Markdown's characters escaped."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-!|<>" else c for c in flat)
