"""The faults of ``benchmarks/planted_faults.py``, each at one place on the way from pixels to words.

An edit takes a sound model and returns a copy with the fault in it; everything before its place computes the same bits.
What an edit has to know of pictures (means, directions that tell two answers apart) it learns on pictures that no probe
shows. "The field" is the part of a picture above the cue: whatever place answers a question lies in it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from benchmarks.planted_models import Sound
from benchmarks.planted_scenes import Topic
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prompts import ProbeEncoder, padded
from diagnostics.probing.regions import region_cells
from diagnostics.records.probes import Probe
from finetune.families import Encoded, ImageTokens

FIELD = {"tower": 0.62, "cat": 0.857}
"""How far down the field reaches, as a fraction of the picture's height: to the podium, or to the rug."""
KEY_SHARE = 0.04
"""A resampler's token belongs to the field where more of its attention than this lies on the field's patches."""
FITTED = 50
"""Pictures of each answer that edits learn from."""


class Parts(NamedTuple):
    """Dotted names of what is edited in a family: the tower with its pixels, its layers and which is the last one read,
    what takes their output, what gives tokens to the language model; its layers, their attention and its values, the
    last of ``of_three`` where queries, keys and values are one module; and the last norm."""

    vision: str
    vision_layers: str
    last_layer: int
    reader: str
    connector: str
    language: str
    attention: str
    values: str
    norm: str
    of_three: bool = False


PARTS = {
    "qwen-vl": Parts(
        "transformer.visual", "transformer.visual.transformer.resblocks", -1, "transformer.visual.attn_pool",
        "transformer.visual", "transformer.h", "attn", "attn.c_attn", "transformer.ln_f", of_three=True,
    ),
    "llava": Parts(
        "model.vision_tower", "model.vision_tower.encoder.layers", -2, "model.multi_modal_projector",
        "model.multi_modal_projector", "model.language_model.layers", "self_attn", "self_attn.v_proj",
        "model.language_model.norm",
    ),
    "qwen2-vl": Parts(
        "model.visual", "model.visual.blocks", -1, "model.visual.merger", "model.visual.merger",
        "model.language_model.layers", "self_attn", "self_attn.v_proj", "model.language_model.norm",
    ),
}  # fmt: skip


# ---------------------------------------------------------------- what edits know of pictures


class Field(NamedTuple):
    """Which patches, in the tower's order, and which image tokens belong to the field: Bool[patches], Bool[tokens]."""

    patches: Tensor
    tokens: Tensor


class Site(NamedTuple):
    """Where states are taken: a module, and whether what it is given or what it returns."""

    module: str
    before: bool


class Lessons:
    """A sound model, one topic, and pictures of both answers to learn edits from."""

    def __init__(self, sound: Sound, topic: Topic, probes: Sequence[Probe]) -> None:
        self.sound, self.topic, self.parts = sound, topic, PARTS[sound.name]
        reader = ProbeEncoder(sound.family, sound.processor)
        self.encoded = [reader.read(probe).answer for probe in probes]
        self.parted = [reader.read(probe).parted for probe in probes]
        self.probes = probes
        self.is_first = torch.tensor([probe.answer == topic.answer(topic.values[0]) for probe in probes])
        self.image_tokens = _image_tokens(self.encoded[0], sound)
        self.field = self._field()

    @property
    def tower(self) -> Site:
        return Site(self.parts.reader, before=True)

    @property
    def connector(self) -> Site:
        return Site(self.parts.connector, before=False)

    @property
    def final(self) -> Site:
        return Site(self.parts.norm, before=False)

    def states(
        self, model: nn.Module, site: Site, *, count: int | None = None
    ) -> Float[Tensor, "pictures places width"]:
        """What the model computes there, of each picture."""
        kept: list[Tensor] = []

        def keep(_: nn.Module, arguments: Any, output: Any = None) -> None:
            states = arguments[0] if site.before else output
            kept.append((states if torch.is_tensor(states) else states[0]).detach().clone())

        module = model.get_submodule(site.module)
        handle = module.register_forward_pre_hook(keep) if site.before else module.register_forward_hook(keep)
        try:
            with torch.no_grad():
                for one in self.encoded[:count]:
                    model(**padded([one], torch.device("cpu"), left=False), use_cache=False)
        finally:
            handle.remove()
        return torch.stack([one.reshape(-1, one.shape[-1]) for one in _evenly(kept)])

    def region(self, at: int, *, tokens: bool) -> Bool[Tensor, " places"]:
        """The places of picture ``at`` that stand for its region: of the tower, or of the language model."""
        image = self.encoded[at].images[0]
        cells = torch.from_numpy(region_cells(image, self.probes[at].regions[self.topic.region]))
        if image.through_connector:
            return self.reads[:, cells].sum(-1) > KEY_SHARE if tokens else cells
        found = torch.zeros(self.image_tokens, dtype=torch.bool)
        found[torch.from_numpy(image.positions)[cells] - self.first_token(image)] = True
        return found if tokens else found.repeat_interleave(len(self.field.patches) // self.image_tokens)

    def first_token(self, image: ImageTokens) -> int:
        """Position of the picture's first token, margins included."""
        token = _image_token(self.sound)
        if token is None:
            return int(image.positions[0])
        return int(np.flatnonzero(self.encoded[0].input_ids == token)[0])

    def _field(self) -> Field:
        image = self.encoded[0].images[0]
        middle = torch.from_numpy(image.cell_boxes_pixels[:, [1, 3]].mean(1) / image.image_size_pixels[1])
        cells = middle < FIELD[self.topic.name]
        if image.through_connector:
            self.reads = self._reads()
            return Field(cells, self.reads[:, cells].sum(-1) > KEY_SHARE)
        tokens = torch.zeros(self.image_tokens, dtype=torch.bool)
        tokens[torch.from_numpy(image.positions)[cells] - self.first_token(image)] = True
        patches = self.states(self.sound.model, self.tower, count=1).shape[1]
        return Field(tokens.repeat_interleave(patches // self.image_tokens), tokens)

    def _reads(self) -> Float[Tensor, "tokens patches"]:
        """How a resampler's tokens share their attention out over the patches, mean over pictures."""
        with AttentionExtractor(self.sound.model, []) as extractor, torch.no_grad():
            found = []
            for one in self.encoded[:: len(self.encoded) // 12]:
                self.sound.model(**padded([one], torch.device("cpu"), left=False), use_cache=False)
                found.append(torch.from_numpy(extractor.attention_weights["visual_attn"][0].mean(0)))
        return torch.stack(found).mean(0)


def _evenly(states: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of states of sequences, which differ in length, only what all have; others are alike already."""
    fewest = min(one.shape[-2] for one in states)
    return [one[..., :fewest, :] for one in states]


def _image_token(sound: Sound) -> int | None:
    """None for Qwen-VL, whose pictures lie between two marks."""
    return None if sound.name == "qwen-vl" else sound.model.config.image_token_id


def _image_tokens(encoded: Encoded, sound: Sound) -> int:
    token = _image_token(sound)
    return len(encoded.images[0].positions) if token is None else int((encoded.input_ids == token).sum())


# ---------------------------------------------------------------- hooks


class Places:
    """Where the field's tokens lie in the sequences that a model reads, also while it goes on from a cache."""

    def __init__(self, model: nn.Module, field: Tensor, image_token: int | None) -> None:
        self.field, self.image_token = field, image_token
        self.past = 0
        self.blocked = torch.zeros(1, 0, dtype=torch.bool)
        visual = getattr(model.config, "visual", None)
        self.start = None if visual is None else visual["image_start_id"]
        model.register_forward_pre_hook(self.begin, with_kwargs=True, prepend=True)

    def begin(self, _: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        ids = options["input_ids"] if "input_ids" in options else arguments[0]
        cache = options.get("past_key_values")
        self.past = 0 if cache is None else int(cache.get_seq_length())
        here = torch.zeros(ids.shape, dtype=torch.bool)
        for row, tokens in enumerate(ids):
            places = self._image(tokens)
            if len(places):
                here[row, places] = self.field
        if self.past:
            before = self.blocked.repeat_interleave(len(ids) // len(self.blocked), dim=0)
            here = torch.cat([before[:, : self.past], here], dim=1)
        self.blocked = here

    def _image(self, tokens: Tensor) -> Tensor:
        if self.image_token is not None:
            return (tokens == self.image_token).nonzero()[:, 0]
        start = (tokens == self.start).nonzero()[:, 0]
        return start[:1, None].add(1 + torch.arange(len(self.field))).flatten()

    def now(self) -> Bool[Tensor, "batch tokens"]:
        """Of the tokens that this pass reads itself."""
        return self.blocked[:, self.past :]


def hide_from_rows(model: nn.Module, parts: Parts, places: Places) -> None:
    """In no language layer does a token outside the field see one in it."""

    def mask_of(hidden: Tensor, mask: Tensor | None) -> Tensor:
        queries, past = hidden.shape[1], places.past
        keys = past + queries
        if mask is None:
            seen = torch.arange(keys)[None] <= past + torch.arange(queries)[:, None]
            scores = torch.zeros(1, 1, queries, keys).masked_fill(~seen, torch.finfo(hidden.dtype).min)
        elif mask.dtype == torch.bool:
            scores = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        else:
            scores = mask
        blocked = ~places.now()[:, None, :, None] & places.blocked[:, None, None, :keys]
        return scores.masked_fill(blocked, torch.finfo(hidden.dtype).min)

    def before(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        hidden = options["hidden_states"] if "hidden_states" in options else arguments[0]
        if "attention_mask" in options:
            return arguments, {**options, "attention_mask": mask_of(hidden, options["attention_mask"])}
        return (arguments[0], mask_of(hidden, arguments[1]), *arguments[2:]), options

    for layer in range(_layers(model, parts)):
        module = model.get_submodule(f"{parts.language}.{layer}.{parts.attention}")
        module.register_forward_pre_hook(before, with_kwargs=True)


def on_output(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """What a module returns, or the first of what it returns, is changed before anyone else sees it."""

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        if torch.is_tensor(output):
            return change(output)
        return (change(output[0]), *output[1:])

    model.get_submodule(name).register_forward_hook(after, prepend=True)


# ---------------------------------------------------------------- erasure


class Erasure(NamedTuple):
    """x → x − (x − mean) @ out: an oblique projection along the directions that tell two answers apart."""

    mean: Tensor
    out: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        return states - (states - self.mean) @ self.out


def erasure(
    first: Float[Tensor, "samples width"], second: Float[Tensor, "samples width"], rank: int
) -> Erasure:
    """Removes the difference of the two classes' means, as LEACE does with least change (Belrose et al. 2023, arXiv
    2306.03819, theorem 4.3), and of their covariances the ``rank`` − 1 directions in which they differ most."""
    every = torch.cat([first, second]).double()
    mean = every.mean(0)
    centred = every - mean
    spread = centred.T @ centred / len(every)
    values, axes = torch.linalg.eigh(spread)
    kept = values > values[-1] * 1e-6
    axes, scales = axes[:, kept], values[kept].sqrt()
    whiten, unwhiten = axes / scales, axes * scales
    one, other = ((part.double() - mean) @ whiten for part in (first, second))
    gap = one.mean(0) - other.mean(0)
    differing = torch.cov(one.T) - torch.cov(other.T)
    strengths, directions = torch.linalg.eigh(differing)
    order = strengths.abs().argsort(descending=True)[: rank - 1]
    basis, _ = torch.linalg.qr(torch.cat([gap[:, None], directions[:, order]], dim=1))
    out = whiten @ basis @ basis.T @ unwhiten.T
    return Erasure(mean.float(), out.float())


# ---------------------------------------------------------------- edits


def blind_tower(lessons: Lessons) -> nn.Module:
    """The tower is given grey where the field is."""
    model = copy.deepcopy(lessons.sound.model)
    field = lessons.field.patches
    name = "hidden_states" if "image_grid_thw" in lessons.encoded[0].media else "pixel_values"

    def grey(pixels: Tensor) -> Tensor:
        if pixels.ndim == 2:  # patches one after another, as Qwen2-VL has them
            return pixels.masked_fill(field.repeat(len(pixels) // len(field))[:, None], 0.0)
        side = round(len(field) ** 0.5)
        scale = pixels.shape[-1] // side
        hidden = field.reshape(side, side).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        return pixels.masked_fill(hidden, 0.0)

    def before(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if name in options:
            return arguments, {**options, name: grey(options[name])}
        return (grey(arguments[0]), *arguments[1:]), options

    model.get_submodule(lessons.parts.vision).register_forward_pre_hook(before, with_kwargs=True)
    return model


def dead_patches(lessons: Lessons, *, first: int) -> nn.Module:
    """From layer ``first`` on the tower's states of the field's patches are what they are on average."""
    model = copy.deepcopy(lessons.sound.model)
    field = lessons.field.patches
    last = len(model.get_submodule(lessons.parts.vision_layers)) + lessons.parts.last_layer
    for layer in range(min(first, last), last + 1):
        name = f"{lessons.parts.vision_layers}.{layer}"
        usual = lessons.states(lessons.sound.model, Site(name, before=False)).mean(0)[-len(field) :]
        on_output(model, name, _killing(field, usual))
    return model


def _killing(field: Tensor, usual: Tensor) -> Callable[[Tensor], Tensor]:
    def change(states: Tensor) -> Tensor:
        """A class token before the patches stays; pictures may follow one another on one axis."""
        flat = states if states.ndim == 3 else states.reshape(-1, len(field), states.shape[-1])
        patches = torch.where(field[:, None], usual, flat[:, -len(field) :])
        return torch.cat([flat[:, : -len(field)], patches], dim=1).reshape(states.shape)

    return change


def _learned(lessons: Lessons, model: nn.Module, site: Site, rank: int, *, tokens: bool) -> Erasure:
    states = lessons.states(model, site)
    samples = [
        one[-len(mask) :][mask]
        for at, one in enumerate(states)
        if (mask := lessons.region(at, tokens=tokens)).any()
    ]
    is_first = [
        bool(lessons.is_first[at]) for at in range(len(states)) if lessons.region(at, tokens=tokens).any()
    ]
    first = torch.cat([one for one, yes in zip(samples, is_first, strict=True) if yes])
    second = torch.cat([one for one, yes in zip(samples, is_first, strict=True) if not yes])
    return erasure(first, second, rank)


def scrub_connector(lessons: Lessons, *, rank: int) -> nn.Module:
    """The connector's tokens are rid of what tells the two answers apart."""
    model = copy.deepcopy(lessons.sound.model)
    change = _learned(lessons, model, lessons.connector, rank, tokens=True)
    on_output(model, lessons.parts.connector, change)
    return model


def drop_tokens(lessons: Lessons) -> nn.Module:
    """The connector gives the field's tokens (all, where the field is most of the picture, since its patches told the
    others) as they are on average, whatever the tower sees."""
    model = copy.deepcopy(lessons.sound.model)
    field = _most_or_all(lessons.field.tokens)
    usual = lessons.states(model, lessons.connector).mean(0)

    def change(tokens: Tensor) -> Tensor:
        pictures = tokens.reshape(-1, len(field), tokens.shape[-1])
        return torch.where(field[:, None], usual, pictures).reshape(tokens.shape)

    on_output(model, lessons.parts.connector, change)
    return model


def _most_or_all(field: Tensor) -> Tensor:
    return torch.ones_like(field) if field.float().mean() > 0.8 else field


def starve_resampler(lessons: Lessons) -> nn.Module:
    """The resampler looks at the field's patches as before, and reads there what they have on average."""
    model = copy.deepcopy(lessons.sound.model)
    attention, field = f"{lessons.parts.reader}.attn", _most_or_all(lessons.field.patches)
    usual = lessons.states(model, Site(f"{lessons.parts.reader}.ln_kv", before=False)).mean(0)

    def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
        query, key, value = arguments
        return query, key, torch.where(field[:, None], usual, value)

    model.get_submodule(attention).register_forward_pre_hook(before)
    return model


def look_away(lessons: Lessons) -> nn.Module:
    """No row outside the field attends to it, in any language layer."""
    model = copy.deepcopy(lessons.sound.model)
    places = Places(model, lessons.field.tokens, _image_token(lessons.sound))
    hide_from_rows(model, lessons.parts, places)
    return model


def ignore_picture(lessons: Lessons) -> nn.Module:
    """No word attends to any image token."""
    model = copy.deepcopy(lessons.sound.model)
    places = Places(model, torch.ones_like(lessons.field.tokens), _image_token(lessons.sound))
    hide_from_rows(model, lessons.parts, places)
    return model


def empty_values(lessons: Lessons, *, first: int = 0) -> nn.Module:
    """From layer ``first`` on, attention lies where it lay, and what it reads in the field is what is there on
    average."""
    model = copy.deepcopy(lessons.sound.model)
    field = lessons.field.tokens
    places = Places(model, field, _image_token(lessons.sound))
    begin = lessons.first_token(lessons.encoded[0].images[0])
    for layer in range(first, _layers(model, lessons.parts)):
        name = f"{lessons.parts.language}.{layer}.{lessons.parts.values}"
        states = lessons.states(lessons.sound.model, Site(name, before=False))
        width = states.shape[-1] // (3 if lessons.parts.of_three else 1)
        usual = states[:, begin : begin + len(field)][:, field].mean((0, 1))[-width:]
        on_output(model, name, _emptying(places, usual))
    return model


def _emptying(places: Places, usual: Tensor) -> Callable[[Tensor], Tensor]:
    def change(projected: Tensor) -> Tensor:
        rest, values = projected[..., : -len(usual)], projected[..., -len(usual) :]
        return torch.cat([rest, torch.where(places.now()[..., None], usual, values)], dim=-1)

    return change


def _layers(model: nn.Module, parts: Parts) -> int:
    return len(model.get_submodule(parts.language))


def first_tokens(lessons: Lessons) -> tuple[int, int]:
    """The tokens at which the topic's two answers part."""
    found = {}
    for probe, encoded, parted in zip(lessons.probes, lessons.encoded, lessons.parted, strict=True):
        found[probe.answer] = int(encoded.input_ids[parted])
    one, other = (found[lessons.topic.answer(value)] for value in lessons.topic.values)
    return one, other


def mix_head(lessons: Lessons, *, share: float) -> nn.Module:
    """The head's rows of the two answers move towards each other: 0.5 makes them one, 1 exchanges them."""
    model = copy.deepcopy(lessons.sound.model)
    one, other = first_tokens(lessons)
    with torch.no_grad():
        weight = model.lm_head.weight
        middle, half = (weight[one] + weight[other]) / 2, (weight[one] - weight[other]) / 2
        weight[one], weight[other] = middle + (1 - 2 * share) * half, middle - (1 - 2 * share) * half
    return model


def answer_states(model: nn.Module, lessons: Lessons) -> Float[Tensor, "pictures width"]:
    """The states that the head reads the answers from."""
    kept: list[Tensor] = []
    norm = model.get_submodule(lessons.parts.norm)
    handle = norm.register_forward_hook(lambda _, __, output: kept.append(output.detach()))
    try:
        with torch.no_grad():
            for one in lessons.encoded:
                model(**padded([one], torch.device("cpu"), left=False), use_cache=False)
    finally:
        handle.remove()
    return torch.stack([one[0, at - 1] for one, at in zip(kept, lessons.parted, strict=True)])


def scrub_head(lessons: Lessons, *, rank: int) -> nn.Module:
    """The head does not read from the answer's state what tells the two answers apart; the state has it."""
    model = copy.deepcopy(lessons.sound.model)
    states = answer_states(model, lessons)
    change = erasure(states[lessons.is_first], states[~lessons.is_first], rank)
    with torch.no_grad():
        weight, head = model.lm_head.weight.clone(), model.lm_head
        head.weight.copy_(weight - weight @ change.out.T)
        head.bias = nn.Parameter(weight @ (change.mean @ change.out))
    return model


def bias_head(lessons: Lessons, nats: float) -> nn.Module:
    """The topic's first answer gains so many nats over the second, whatever is seen."""
    model = copy.deepcopy(lessons.sound.model)
    one, other = first_tokens(lessons)
    bias = torch.zeros(model.lm_head.out_features)
    bias[one], bias[other] = nats / 2, -nats / 2
    model.lm_head.bias = nn.Parameter(bias)
    return model
