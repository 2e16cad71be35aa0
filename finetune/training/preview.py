"""Preview of a run: samples with their labels, lengths, memory, steps.

``--dry_run`` prints all of it without loading weights; every run begins with the short form.
"""

import inspect
import itertools
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from finetune.data.dataset import ConversationDataset, Sample
from finetune.data.lengths import IGNORED, Lengths
from finetune.data.schedule import Schedule, StepShape
from finetune.families.base import Encoded, Family, OtherContext, ignored_elsewhere, learned_elsewhere
from finetune.families.parts.modules import bare_model
from finetune.families.parts.picture_order import moves_pictures, puts_pictures_first
from finetune.flags.arguments import TrainingArguments
from finetune.model import memory_estimate
from finetune.model.adaptation import left_unread
from finetune.samples.conversation import Conversation
from finetune.training.run_schedule import schedule_of

MOST_SAMPLES_SHOWN = 3
"""Sources to show a sample from: formats and faults of corrective data and base data may differ."""
MOST_SAMPLES_READ, MOST_SAMPLES_CHECKED = 512, 64
"""Of each source, for answers that are learned in another context than generated: so many spread over the source are
read, and of those with several answers so many encoded: their form says whether it has any."""
MOST_ORDERS_READ = 4096
"""Of each source, for pictures between words: about a second. Where one sample in 1,000 has them, 98 times of 100 one
is found."""
BINS, BAR = 8, 40
_IMAGE, _VIDEO = 1, 2  # of a token that is a place of one
_TRAINED, _NOT_TRAINED, _SLOTS, _PLAIN = "\033[1;32m", "\033[2m", "\033[36m", "\033[0m"


_CONTROL = re.compile(
    r"<\|[\w-]+\|>|</?(?:img|imgpad|ref|box|quad|image|video|s|bos|eos|start_of_turn|end_of_turn|start_of_image|"
    r"IMG_CONTEXT)>"
)
"""How control tokens of the families look. As a token it is one; in words it is what somebody typed."""
_WORDS_NOTE = "  (a backslash before the name of a control token: here it is plain text)"


class Samples(NamedTuple):
    """What there is to train on.

    names        of the sources
    source_of    Int[samples]: each sample's source
    """

    conversations: Sequence[Conversation]
    lengths: Lengths
    names: tuple[str, ...]
    source_of: Int[np.ndarray, "samples"]


@dataclass(frozen=True)
class Preview:
    """A run before it starts; each method returns text to print.

    model       with the trained parameters unfrozen; it may be on the meta device, without weights
    precision   what training computes in
    """

    model: nn.Module
    dataset: ConversationDataset
    args: TrainingArguments
    packing: bool
    precision: torch.dtype

    def samples(self, *, most: int = 1) -> str:
        """A sample of each source, of the first ``most`` sources, with its labels."""
        dataset, shown = self.dataset, []
        for number in range(min(most, len(dataset.mixture.names))):
            sample = self._first_of(number)
            name = short_name(dataset.conversations[sample.number])
            shown.append(sample_text(sample.encoded, dataset.processor, name=name, colour=wants_colour()))
        notes = [
            ignored_elsewhere(dataset.family, dataset.processor),
            self._learned_elsewhere(),
            self._pictures_first(),
            unread_text(left_unread(self.model, dataset.family)),
        ]
        return "\n".join([*shown, *(f"note: {one}" for one in notes if one)])

    def _learned_elsewhere(self) -> str:
        """Which answers are learned in another context than they are generated in, by the first such sample that is
        checked; "" if none."""
        dataset = self.dataset
        for number in range(len(dataset.mixture.names)):
            for conversation in itertools.islice(self._of_several_answers(number), MOST_SAMPLES_CHECKED):
                try:
                    found = next(learned_elsewhere(dataset.family, dataset.processor, conversation), None)
                except ValueError:  # a sample that is left out; the others may show it
                    continue
                if found is not None:
                    return elsewhere_text(found, dataset.processor, short_name(conversation))
        return ""

    def _of_several_answers(self, source: int) -> Iterator[Conversation]:
        """Conversations with several learned answers among some that are spread over a source: those may be anywhere
        in it."""
        members = np.flatnonzero(self.dataset.source_of == source)
        for conversation in self._spread(members, MOST_SAMPLES_READ):
            if sum(turn.role == "assistant" and turn.trained for turn in conversation.turns) > 1:
                yield conversation

    def _spread(self, members: Int[np.ndarray, "samples"], most: int) -> Iterator[Conversation]:
        """At most so many of these samples, spread over them."""
        for index in members[:: max(1, -(-len(members) // most))].tolist():
            try:
                yield self.dataset.conversations[index]
            except ValueError:  # a sample that is left out; the others may show it
                continue

    def _pictures_first(self) -> str:
        """How many samples have pictures between words, where the model reads a turn's pictures before its words; "" if
        none."""
        dataset = self.dataset
        if not puts_pictures_first(dataset.family, dataset.processor):
            return ""
        lengths, looked, moved = dataset.lengths, 0, list[str]()
        has_media = True if lengths is None else lengths.images + lengths.videos > 0
        members = [
            np.flatnonzero((dataset.source_of == number) & has_media)
            for number in range(len(dataset.mixture.names))
        ]
        for several in members:
            for conversation in self._spread(several, MOST_ORDERS_READ):
                looked += bool(conversation.media)
                if moves_pictures(conversation):
                    moved.append(short_name(conversation))
        return order_text(moved, looked, is_all=all(len(several) <= MOST_ORDERS_READ for several in members))

    def lengths(self) -> str:
        """Sources, tokens per picture, and sample lengths."""
        found = self._counted()
        if found is None:
            return self.lengths_line()
        return "\n".join(
            [
                source_table(found),
                picture_text(found),
                "sample lengths in tokens:",
                histogram(found.lengths.tokens),
            ]
        )

    def lengths_line(self) -> str:
        """The same in a line for each source, and one of pictures."""
        found = self._counted()
        if found is None:
            return f"{len(self.dataset):,} samples, streamed: lengths are not counted in advance"
        return f"{source_table(found)}\n{picture_text(found)}"

    def device_memory(self) -> str:
        """Memory of a step by kind, and what would reduce it where it does not fit."""
        tokens = self._row_tokens()
        return memory_text(
            self._step(), tokens, self.args.per_device_train_batch_size, memory_estimate.device_bytes()
        )

    def device_memory_line(self) -> str:
        return memory_line(self._step(), memory_estimate.device_bytes())

    def steps(self) -> str:
        """Optimizer steps of an epoch and of the run, and samples of a step."""
        dataset, args = self.dataset, self.args
        shape = StepShape(args.per_device_train_batch_size, args.world_size, args.gradient_accumulation_steps)
        schedule = schedule_of(dataset, args, shape, packing=self.packing)
        return step_text(schedule, args, len(dataset.mixture.order(0)))

    def _counted(self) -> Samples | None:
        dataset = self.dataset
        if dataset.lengths is None:
            return None
        return Samples(dataset.conversations, dataset.lengths, dataset.mixture.names, dataset.source_of)

    def _first_of(self, source: int) -> Sample:
        """The first sample of a source, with a picture if one has; with streaming, bad ones may be left out."""
        dataset = self.dataset
        members = np.flatnonzero(dataset.source_of == source)
        if dataset.lengths is not None:
            return dataset[int(members[np.argmax(dataset.lengths.images[members] > 0)])]
        for index in members.tolist():
            try:
                return dataset[index]
            except ValueError:
                if dataset.on_bad_sample != "drop":
                    raise
        raise ValueError(f"{dataset.mixture.names[source]}: found no sample that can be read")

    def _longest(self) -> Sample:
        lengths = self.dataset.lengths
        return self._first_of(0) if lengths is None else self.dataset[int(lengths.tokens.argmax())]

    def _row_tokens(self) -> int:
        """Tokens of the longest row: of the longest sample, or up to what rows are packed; the most, if uncounted."""
        lengths = self.dataset.lengths
        return self.dataset.max_length if lengths is None or self.packing else int(lengths.tokens.max())

    def _step(self) -> memory_estimate.Step | None:
        return memory_step(
            self.model,
            self.dataset.family,
            self.args,
            longest=self._longest().encoded,
            tokens=self._row_tokens(),
            precision=self.precision,
        )


# ---------------------------------------------------------------------------------------------------------------------
# A sample and its labels
# ---------------------------------------------------------------------------------------------------------------------


def wants_colour(stream: TextIO | None = None) -> bool:
    """Colour on a terminal; ``NO_COLOR`` (no-color.org) forbids it, ``FORCE_COLOR`` asks for it anywhere else."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return (sys.stdout if stream is None else stream).isatty()


def sample_text(encoded: Encoded, processor: Any, *, name: str, colour: bool) -> str:
    """A sample as the model reads it: each run of tokens that trains, and each that doesn't, on a line of its own.

    An image's slots are written as their count, since the image's features replace their ids. Control tokens
    are written out, words that spell one have a backslash before it, line breaks are ``⏎``. With ``colour``, what
    trains is bold green and the rest is dim.
    """
    ids, trained = encoded.input_ids, encoded.labels != IGNORED
    trained[:1] = False  # nothing predicts the first token
    slots = np.zeros(len(ids), int)
    for image in encoded.images:
        slots[image.all_positions] = _VIDEO if image.seconds else _IMAGE
    videos = sum(bool(image.seconds) for image in encoded.images)
    count = len(encoded.images) - videos
    also = f", {videos} video{'s' * (videos != 1)}" if videos else ""
    lines = [
        f"{name}: {len(ids):,} tokens, {int(trained.sum()):,} trained, {count} image{'s' * (count != 1)}{also}"
    ]
    for start, end in _runs(trained):
        mark, shade = ("train |", _TRAINED) if trained[start] else ("      |", _NOT_TRAINED)
        text = _readable(ids[start:end], slots[start:end], processor, shade if colour else "")
        lines.append(f"  {shade}{mark} {text}{_PLAIN}" if colour else f"  {mark} {text}")
    if any("\\<" in line for line in lines):
        lines.append(_WORDS_NOTE)
    return "\n".join(lines)


def elsewhere_text(found: OtherContext, processor: Any, name: str) -> str:
    """What follows from an answer that is learned in another context than it is generated in."""
    learned, prompt = (
        visible(_spelled(ids.tolist(), processor.tokenizer)) for ids in (found.learned, found.prompt)
    )
    return (
        f"{name}, turn {found.turn} (assistant): this answer and others before the last one of a conversation are "
        f"learned after …{learned}, where prompts end in …{prompt}: the model's chat template writes answers otherwise "
        "once the conversation goes on. Only last answers are learned as they are generated: to learn all so, make a "
        "sample of each answer"
    )


def order_text(moved: Sequence[str], looked: int, *, is_all: bool) -> str:
    """What becomes of pictures between words where a model reads pictures first; "" where no sample has any.

    moved    names of the samples that have such pictures
    looked   samples with pictures that were looked at
    is_all   these are all there are
    """
    if not moved:
        return ""
    of = f"{looked:,} samples with pictures{'' if is_all else ' looked at'}"
    return (
        f"pictures between words come first: {len(moved):,} of {of}, the first {moved[0]}. This model reads the "
        "pictures of a turn before its words, in training as in use: words that mean one of several should call it by "
        "its number"
    )


def unread_text(paths: Sequence[str]) -> str:
    """What of a trained component stays frozen since nothing reads it; "" if nothing."""
    return f"not trained, because the model does not read it: {', '.join(paths)}" if paths else ""


def _readable(ids: np.ndarray, slots: np.ndarray, processor: Any, shade: str) -> str:
    """Ids decoded; slots of images and videos in a colour of their own where there is one, then back to ``shade``."""
    parts = []
    for start, end in _runs(slots):
        if not slots[start]:
            parts.append(visible(_spelled(ids[start:end].tolist(), processor.tokenizer)))
        else:
            written = f"({end - start} {'video' if slots[start] == _VIDEO else 'image'} tokens)"
            parts.append(f"{_PLAIN}{_SLOTS}{written}{_PLAIN}{shade}" if shade else written)
    return "".join(parts)


def _spelled(ids: Sequence[int], tokenizer: Any) -> str:
    """Ids decoded; what spells a control token in words has a backslash before it: ``\\<|im_end|>``."""
    names = [tokenizer.decode([one]) for one in ids]
    is_control = np.array([_CONTROL.fullmatch(name) is not None for name in names])
    parts = []
    for start, end in _runs(is_control):
        text = tokenizer.decode(ids[start:end])
        parts.append(text if is_control[start] else _CONTROL.sub(r"\\\g<0>", text))
    return "".join(parts)


def visible(text: str) -> str:
    """Text on one line, with what a terminal would obey written out: ``"a\\n\\x1b[2J"`` → ``"a⏎␛[2J"``.

    Data may hold escape sequences and marks that turn the direction of writing; none of them may act here.
    """
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "⏎"
    if code < 0x20:
        return chr(0x2400 + code)
    turns_writing = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    if turns_writing or unicodedata.category(character) == "Cc":
        return f"[U+{code:04X}]"
    return character


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of each run of one value."""
    return itertools.pairwise([0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)])


# ---------------------------------------------------------------------------------------------------------------------
# Lengths
# ---------------------------------------------------------------------------------------------------------------------


def source_table(samples: Samples) -> str:
    """Samples, tokens, trained tokens, pictures and, if there are any, videos of each source, and its longest sample by
    name."""
    lengths = samples.lengths
    media = {"pictures": lengths.images} | ({"videos": lengths.videos} if lengths.videos.any() else {})
    cells = [("source", "samples", "tokens", "trained", "", *media, "longest", "")]
    everything = np.arange(len(lengths.tokens))
    groups = [(name, everything[samples.source_of == i]) for i, name in enumerate(samples.names)]
    if len(groups) > 1:
        groups.append(("all", everything))
    for name, members in groups:
        if not len(members):
            cells.append((name, "0", "0", "0", "", *("0" for _ in media), "", ""))
            continue
        tokens, trained = int(lengths.tokens[members].sum()), int(lengths.trained_tokens[members].sum())
        longest = members[int(lengths.tokens[members].argmax())]
        cells.append(
            (
                name,
                f"{len(members):,}",
                f"{tokens:,}",
                f"{trained:,}",
                f"({trained / tokens:.0%})",
                *(f"{int(count[members].sum()):,}" for count in media.values()),
                f"{int(lengths.tokens[longest]):,}",
                short_name(samples.conversations[int(longest)]),
            )
        )
    return _columns(cells, left=(0, len(cells[0]) - 1))


def short_name(conversation: Conversation) -> str:
    """A sample's name without its file's folder: ``"/a/b.json: record 3 (id '1/2')"`` → ``"b.json: record 3 …"``."""
    path, colon, rest = conversation.source.partition(": ")
    return path.replace("\\", "/").rsplit("/", 1)[-1] + colon + rest


def picture_text(samples: Samples) -> str:
    """Tokens per picture: minimum, maximum and median, by source where there are several."""
    lengths = samples.lengths
    lines = []
    for i, name in enumerate(samples.names):
        members = (samples.source_of == i) & (lengths.images > 0)
        if not members.any():
            continue
        each = np.repeat(lengths.image_tokens[members] / lengths.images[members], lengths.images[members])
        low, middle, high = each.min(), np.median(each), each.max()
        told = f"{low:,.0f} in each" if low == high else f"{low:,.0f} to {high:,.0f}, median {middle:,.0f}"
        mean = " (a sample's mean where it has several)" if low != high and lengths.images.max() > 1 else ""
        lines.append(f"tokens per picture{f', {name}' if len(samples.names) > 1 else ''}: {told}{mean}")
    return "\n".join(lines) if lines else "no pictures"


def histogram(tokens: Int[np.ndarray, "samples"]) -> str:
    """How many samples are how long, in up to eight steps of equal width: a line and a bar for each."""
    low, high = int(tokens.min()), int(tokens.max())
    bins = min(BINS, high - low + 1)
    edges = np.linspace(low, high + 1, bins + 1).round().astype(int)
    counts, _ = np.histogram(tokens, edges)
    cells = [
        (f"{start:,}", "-", f"{end - 1:,}", f"{count:,}", "█" * math.ceil(BAR * count / counts.max()))
        for (start, end), count in zip(itertools.pairwise(edges.tolist()), counts.tolist(), strict=True)
    ]
    return "\n".join(f"  {line}" for line in _columns(cells, left=(4,)).splitlines())


def _columns(cells: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Lines of equal columns, flush right but for those named."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def step_text(schedule: Schedule, args: TrainingArguments, samples: int) -> str:
    """``3 steps per epoch of 12 samples, 9 in total (3 epochs); 4 samples per step (2 per device × 2 accumulated)``

    schedule   as the Trainer follows it
    samples    of an epoch, packed or not
    """
    shape, an_epoch = schedule.shape, schedule.steps(0)
    steps = args.max_steps if args.max_steps > 0 else schedule.steps_of(args.num_train_epochs)
    rows = "samples" if schedule.capacity is None else "packed rows"
    packed = "" if schedule.capacity is None else f" in {len(schedule.rows(0)):,} packed rows"
    factors = [
        f"{count} {what}"
        for count, what in ((shape.accumulation, "accumulated"), (shape.processes, "processes"))
        if count > 1
    ]
    product = f" ({' × '.join([f'{shape.rows} per device', *factors])})" if factors else ""
    return (
        f"{_steps(an_epoch)} per epoch of {samples:,} samples{packed}, {steps:,} in total "
        f"({steps / an_epoch:.3g} epochs); {shape.rows * shape.accumulation * shape.processes:,} {rows} per step"
        f"{product}" + _warmup_note(args, steps)
    )


def _warmup_note(args: TrainingArguments, steps: int) -> str:
    if args.warmup_steps < max(steps, 1):
        return ""
    return (
        f"\n--warmup_steps {args.warmup_steps:g} is not below the number of steps: the learning rate never reaches "
        f"{args.learning_rate:g}"
    )


def _steps(count: int) -> str:
    return f"{count:,} step{'s' * (count != 1)}"


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def quantise_outline(model: nn.Module, family: Family) -> None:
    """Give a model on the meta device the shapes of 4-bit weights where loading with ``--q_lora`` would."""
    layers = bare_model(model).get_submodule(family.paths.language_layers)
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            packed = torch.empty(((module.weight.numel() + 1) // 2, 1), dtype=torch.uint8, device="meta")
            module.weight = nn.Parameter(packed, requires_grad=False)


def memory_step(
    model: nn.Module,
    family: Family,
    args: TrainingArguments,
    *,
    longest: Encoded,
    tokens: int,
    precision: torch.dtype,
) -> memory_estimate.Step | None:
    """A training step whose samples are all as long as the longest; None if the layers' layout is not known.

    longest     that sample, with its pictures
    tokens      of a row: the longest's, or what packing fills it up to
    precision   what training computes in
    """
    bare: Any = bare_model(model)
    paths, batch = family.paths, args.per_device_train_batch_size
    language = memory_estimate.layer_of(bare, paths.language_layers, paths.language_attention)
    if language is None:
        return None
    stacks = [memory_estimate.Stack(*language, tokens=batch * tokens)]
    if any(parameter.requires_grad for parameter in bare.get_submodule(paths.vision_layers).parameters()):
        tower = memory_estimate.layer_of(bare, paths.vision_layers, paths.vision_attention)
        if tower is None:
            return None
        stacks.append(memory_estimate.Stack(*tower, tokens=batch * patches(longest, bare.config)))
    width = precision.itemsize
    is_mixed = width < memory_estimate.FP32 and not args.deepspeed
    vocabulary = bare.config.get_text_config().vocab_size
    words = [
        one for one in bare.modules() if isinstance(one, nn.Embedding) and one.num_embeddings == vocabulary
    ]
    stream_width = max(one.weight.element_size() for one in words) if is_mixed else width
    trained = int((longest.labels[1:] != IGNORED).sum()) * tokens // len(longest.labels)
    # Logits are asked for where any row of the batch has a trained token; at worst the rows' have none in common.
    keeps = "logits_to_keep" in inspect.signature(bare.forward).parameters
    positions = min(tokens, batch * trained) if keeps else tokens
    return memory_estimate.Step(
        parameters=memory_estimate.parameters_of(model),
        stacks=tuple(stacks),
        vocabulary=vocabulary,
        rows=batch * positions,
        trained_rows=batch * trained,
        width=width,
        stream_width=stream_width,
        is_mixed=is_mixed,
        checkpointing=checkpoints_activations(args),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        sharding=sharding_of(args),
    )


def checkpoints_activations(args: TrainingArguments) -> bool:
    """transformers 5.23 has a new name for the flag; older ones know only the old one."""
    return any(getattr(args, name, False) for name in ("activation_checkpointing", "gradient_checkpointing"))


def patches(encoded: Encoded, config: Any) -> int:
    """Patches of all pictures of a sample: cells, each of them merge × merge patches where the family merges them."""
    cells = sum(rows * columns for rows, columns in (image.grid for image in encoded.images))
    merge = getattr(getattr(config, "vision_config", None), "spatial_merge_size", 1)
    return cells * merge**2


def sharding_of(args: TrainingArguments) -> memory_estimate.Sharding:
    """What DeepSpeed's configuration says of sharing out and putting aside."""
    if not args.deepspeed:
        return memory_estimate.Sharding(ranks=args.world_size)
    given = args.deepspeed
    config = given if isinstance(given, dict) else json.loads(Path(given).read_text(encoding="utf-8"))
    zero = config.get("zero_optimization", {})
    aside = {
        name: zero.get(f"offload_{name}", {}).get("device", "none") != "none"
        for name in ("optimizer", "param")
    }
    return memory_estimate.Sharding(
        stage=zero.get("stage", 0),
        ranks=args.world_size,
        is_deepspeed=True,
        offloads_optimizer=aside["optimizer"],
        offloads_weights=aside["param"],
    )


def memory_text(
    step: memory_estimate.Step | None, tokens: int, batch: int, device: tuple[str, int] | None
) -> str:
    """The estimate with its title, and what would reduce it where it does not fit."""
    if step is None:
        return "memory: not estimated, because the layer layout of this model is not known"
    title = f"estimated memory of a step with a batch of {batch} × {tokens:,} tokens"
    lines = [title, memory_estimate.estimate_text(step, device)]
    if device is not None and not memory_estimate.fits(memory_estimate.estimate(step).peak, device[1]):
        lines.append("to reduce it, in this order, with the peak after each step:")
        lines += [f"  {line}" for line in memory_estimate.advice(step, batch, device[1])]
    return "\n".join(lines)


def memory_line(step: memory_estimate.Step | None, device: tuple[str, int] | None) -> str:
    """The short form: the peak alone."""
    if step is None:
        return "memory: not estimated"
    peak = memory_estimate.estimate(step).peak
    size, verdict = memory_estimate.gibibytes(peak), memory_estimate.verdict(peak, device)
    return f"memory: about {size} at the longest samples, {verdict}"
