"""The TensorBoard sink: event files, the Custom Scalars page, the HParams tab, and the address that shows the curves as
they are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from diagnostics.drawing import tags
from diagnostics.drawing.cards import Card
from diagnostics.drawing.sink import Sink, TaggedPicture
from finetune.files import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Flags = Mapping[str, str | bool | int | float]
HPARAMS_FILE = "events.out.tfevents.0000000000.hparams.attention"
"""The event file of the HParams tab, a file of its own: TensorBoard shows the first description of a run that it finds,
so that a verdict comes in only where the file is replaced. It ends like the monitor's other event files."""
LAYOUT = "custom_scalars__config__"
PORT = 6006
"""Where TensorBoard listens unless told otherwise."""
PINNED_GROUPS = 3
PICTURES_KEPT = "images=1000,text=1000"
_TEXT_END = "/text_summary"  # which TensorBoard's writer appends to the tag of a text


class TensorBoardSink(Sink):
    """Writes to a SummaryWriter that the caller owns and closes.

    A closed SummaryWriter opens a new event file when written to; each write ends with ``flush``, so nothing is lost
    whoever closes it.

    flags   the run's flags, for the HParams tab; None: there is no such tab
    """

    name = "TensorBoard"

    def __init__(
        self,
        writer: SummaryWriter,
        log_dir: str | Path,
        *,
        written: Iterable[tuple[str, int]] = (),
        flags: Flags | None = None,
    ) -> None:
        """``written``: what an earlier start wrote (``written_tags``), which is not written twice."""
        super().__init__((tag.removesuffix(_TEXT_END), step) for tag, step in written)
        self.writer = writer
        self.log_dir = Path(log_dir)
        self.flags = flags
        self._has_layout = (LAYOUT, 0) in self.written

    def verdicts(self, verdicts: Mapping[str, str]) -> None:
        """Write the HParams tab with these verdicts."""
        if self.flags is not None:
            write_hparams(self.log_dir, self.flags, verdicts)

    def close(self) -> None:
        """Leave the writer to its owner."""
        self.writer.flush()

    def _numbers(self, values: Mapping[str, float], step: int) -> None:
        if not self._has_layout:
            self.writer.add_custom_scalars(layout(list(values)))
            self._has_layout = True
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def _cards(self, cards: Mapping[str, Card], step: int) -> None:
        for tag, card in cards.items():
            self.writer.add_text(tag, card.markdown(), step)
        self.writer.flush()

    def _pictures(self, pictures: Sequence[TaggedPicture], step: int) -> None:
        """Write pictures as they are encoded: ``add_image`` would decode and encode them again on this thread."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        # No public method of SummaryWriter takes a ready Summary; this one also reopens a closed writer.
        file_writer = self.writer._get_file_writer()
        for picture in pictures:
            width, height = picture.size
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture.png)
            file_writer.add_summary(Summary(value=[Summary.Value(tag=picture.tag, image=image)]), step)
        self.writer.flush()


def layout(charted: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """The Custom Scalars page: a section for each group, the targets first, and a last one for all probes together.

    A chart has a line for each layer. Lines of one run share a colour there: groups in one could not be told apart.

    charted   tags of the numbers that a step has
    """
    sections: dict[str, dict[str, list[Any]]] = {}
    for tag in sorted(charted, key=lambda one: (one.startswith(tags.DRIFT), one.startswith(tags.GUARDS))):
        section, what, *rest = tag.split("/")
        of = f"{tags.DRIFT}: all probes" if section == tags.DRIFT else rest[0]
        charts = sections.setdefault(of, {})
        charts.setdefault(what, ["Multiline", []])[1].append(f"^{re.escape(tag)}$")
    return sections


def write_hparams(log_dir: Path, flags: Flags, verdicts: Mapping[str, str]) -> None:
    """Write the run's line of the HParams tab: each group's verdict, and its flags.

    A run has one line however often it resumes: the file is replaced. Its metrics are the run's last numbers, which
    TensorBoard finds by itself.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.summary.writer.record_writer import RecordWriter

    # The table shows the first few columns only, by name.
    shown = {f"{tags.verdict_section(group)}: {group}": words for group, words in verdicts.items()}
    values = {**shown, **flags}
    place = log_dir.resolve()
    mark = hashlib.sha256(str(place).encode()).hexdigest()[:4]  # lines of one name would become one
    summary = hparams_pb(values, trial_id=f"{place.parent.name} {mark}")
    content = io.BytesIO()
    records = RecordWriter(content)
    records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    records.write(Event(wall_time=time.time(), summary=summary).SerializeToString())
    write_atomically(log_dir / HPARAMS_FILE, content.getvalue())


def plain_flags(flags: Mapping[str, Any]) -> Flags:
    """Flags as the HParams tab takes them: a list in one line, without what is not set and without secrets."""
    found: dict[str, str | bool | int | float] = {}
    for name, value in flags.items():
        words = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
        if isinstance(words, str | bool | int | float) and words != "" and not name.endswith("_token"):
            found[name] = words
    return found


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
    return f"tensorboard --logdir {shlex.quote(str(log_dir))} --samples_per_plugin {PICTURES_KEPT}"


def address(groups: Sequence[str], layers: Sequence[int], host: str = f"http://localhost:{PORT}") -> str:
    """The address of TensorBoard's first page without smoothing, which bends curves of few points, and with the curves
    that matter pinned at its top: of the first targets the margin and the last of these layers' enrichment, then what
    the guards answer.

    layers   the key layers whose attention is not trained on

    Its names are those of TensorBoard 2.21, whose own address bar shows them; the last is that of its older pages.
    """
    targets = [group for group in groups if not tags.is_guard(group)][:PINNED_GROUPS]
    pinned = [tags.answers_tag("margin_nats", group) for group in targets]
    pinned += [tags.attention_tag("enrichment", group, layer) for group in targets for layer in layers[-1:]]
    pinned += [tags.answers_tag("accuracy", group) for group in groups if tags.is_guard(group)]
    cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in pinned], separators=(",", ":"))
    return f"{host}/?smoothing=0&pinnedCards={quote(cards, safe='')}#timeseries&_smoothingWeight=0"


def groups_and_layers(written: Iterable[str]) -> tuple[list[str], list[int]]:
    """The groups, and the key layers whose attention is not trained on, that tags of numbers tell of."""
    groups, layers, told = set(), set(), set()
    for tag in written:
        if found := re.fullmatch(rf"(?:{tags.ANSWERS}|{tags.GUARDS})/accuracy/([^/]+)", tag):
            groups.add(unquote(found[1]))
        elif found := re.fullmatch(rf"{tags.DRIFT}/drift_jsd_nats/layer_(\d+)", tag):
            layers.add(int(found[1]))
        elif found := re.search(rf"/layer_(\d+){tags.TRAINED_ON}$", tag):
            told.add(int(found[1]))
    return sorted(groups), sorted(layers - told)
