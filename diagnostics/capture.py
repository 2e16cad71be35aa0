"""The only file that knows how attention is obtained: exact rows beside the real kernel, and keys taken away.

Every model of transformers looks its kernel up by name in ``AttentionInterface`` and calls it with q and k as
they enter the product (after rotary embedding, norms and the cache). So the extractor stands beside the kernel
(``diagnostics.watch``): the real one is called with the very same arguments, and then the softmax of the wanted query
rows alone is computed, in fp32. The output of the model is that of the real kernel, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diagnostics import flash
from diagnostics.forwards import Forwards, by_name, check_is_whole, stage_of_generate
from diagnostics.watch import Call, Watch, check_is_free
from finetune.families import Family, attention_copies, bare_model, copies_of, family_of
from finetune.families.base import Tiles, attending_layers, flash_fault, language_layers, layer_words
from finetune.families.tower import TowerSequence, joined

ROW_SUM_TOLERANCE = 1e-4
HEAD_MEANS_LIMIT_BYTES = 2 * 2**30
CHUNK_BYTES = 32 * 2**20  # of one buffer of rows, where all are computed but none is kept
UNSUPPORTED_TERMS = ("position_bias",)  # rows without it would be wrong
SINK_LOGITS, SOFT_CAP = "s_aux", "softcap"  # transformers' names, in the options of a call
LEFT_OUT_BY_SDPA = (SINK_LOGITS, SOFT_CAP)


class AttentionExtractor:
    """Which keys did each query look at, in chosen layers, while the model runs as it always does?

    Attached from construction until ``remove()`` (or the end of a ``with`` block, ``diagnostics.remove_all(model)``, or
    until it is dropped); one at a time on a model. It does not keep the model alive, and copies of the model are not
    watched. While it is attached, compiled models run uncompiled.

    ``attention_weights`` has, from the model's last pass over a sequence (a plain forward, or ``generate`` as it reads
    its prompt), and from no other: all is forgotten when the next pass begins, and what that one leaves out is absent:

    - ``layer_N``         np.float32 (batch, heads, query tokens, key tokens), language layers
    - ``visual_attn``     np.float32 (images, heads, queries, patches), the connector's cross-attention
    - ``vision_layer_N``  np.float32 (images, heads, patches, patches), the vision tower; in towers that reorder,
      window or tile their patches (the family's ``tower_sequences``) patches are row-major over the whole picture
      here all the same, frame by frame in a video, and what lies in another window, tile or frame gets 0

    Rows are probabilities before dropout; each sums to 1, or to less where a head has a sink logit (GPT-OSS), which
    takes a share of its own; a padded query's is all 0 or what its kernel makes of it. ``decode_weights`` has what
    generation adds: ``layer_N`` → a list with one array for each cached step since that pass, (batch, heads, tokens of
    the step, keys so far), every new token's row whatever ``query_tokens`` says; steps that were taken back (``crop``)
    are forgotten when the next one begins. ``highest_logits`` has what the largest probability of a row was made of:
    ``layer_N`` → np.float32 (batch, heads, query tokens).

    Keys of language layers are all tokens so far, by place in the whole sequence, whatever the cache keeps of them:
    those that a sliding cache has forgotten get 0. A pass may go on from a kept prefix, and then has rows of the tokens
    that it reads itself: over a cache that is not empty, a new picture, a prompt of ``generate``, and several tokens
    where the forward before left another cache, are passes; all else are steps.

    key_layers     language layers by index; None: all of them; []: none (to take keys away only)
    heads          heads of the language layers by index; None: all
    query_tokens   positions of the rows to keep, in the whole sequence, from its end where negative: a list for all of
                   the batch, or Int[batch, queries], one list for each kept sequence; None: every row
    vision_tokens  the same for the rows of ``vision_layer_N``, by place in the tower's sequence (by patch where
                   the family says which patch is where): a list for all images, or Int[images, queries], one list
                   for each kept image; None: every row
    sequences      which sequences of the batch to keep; None: all
    images         which images of the pass to keep for ``visual_attn`` and ``vision_layer_N``, in the order of the
                   conversation, but pictures first and then videos where towers get them in calls of their own
                   (Qwen's, LLaVA-OneVision; not InternVL, SmolVLM); None: all. The overview of image i of n, videos
                   counted, where it is read in tiles and once more as a whole, is image n + i, and kept only where it
                   is named
    vision_layers  layers of the vision tower by index
    tiles          (rows, columns) of the tiles of each image of the pass, None for one that is read as one, (frames,)
                   of a video, as in ``ImageTokens.tiles`` and in the order of the conversation. Only for
                   ``vision_layer_N`` of a family with tiles; needed where the model is not told them itself (InternVL,
                   Idefics3, SmolVLM, and any in ``generate``)
    connector      keep the connector's rows, where the family's connector attends

    Cost: k·q of the wanted rows in fp32, queries × keys numbers a head; never keys × keys unless every row is
    asked.

    Raises ValueError where a layer does not exist, another extractor is attached, or a kernel cannot be
    observed; while the model runs, where a token has no row in a pass, and where ``generate`` leaves no pass that
    has the prompt's rows and no other: assisted decoding, ``prefill_chunk_size``, ``guidance_scale``.
    """

    def __init__(
        self,
        model: nn.Module,
        key_layers: Sequence[int] | None = None,
        *,
        heads: Sequence[int] | None = None,
        query_tokens: Sequence[int] | Int[Tensor, "batch query"] | None = None,
        vision_tokens: Sequence[int] | Int[Tensor, "images query"] | None = None,
        sequences: Sequence[int] | None = None,
        images: Sequence[int] | None = None,
        vision_layers: Sequence[int] = (),
        tiles: Sequence[Tiles | None] | None = None,
        connector: bool = True,
        family: Family | None = None,
    ) -> None:
        bare = bare_model(model)
        self._bare = weakref.ref(bare)
        self.family = family or family_of(bare.config)
        modules = attention_copies(bare, self.family)
        self._names = tuple(modules)
        self._wanted = _wanted_names(self._names, key_layers, vision_layers, connector=connector)
        self.heads = None if heads is None else list(heads)
        self.query_tokens = query_tokens
        self.vision_tokens = vision_tokens
        self.sequences = None if sequences is None else list(sequences)
        self.images = None if images is None else list(images)
        self.tiles = None if tiles is None else list(tiles)
        self._blocked: dict[str, Tensor] = {}
        self._tap: Tap | None = None
        self._proof: dict[str, _Proof] | None = None
        self.clear()
        self._attach(modules)

    @property
    def names(self) -> tuple[str, ...]:
        """Every module that attends, in the words of ``attention_weights``; only some of them are
        captured."""
        return self._names

    @property
    def language_names(self) -> tuple[str, ...]:
        """``layer_0`` to the last language layer, in order; without those that have no attention map."""
        return tuple(name for name in self._names if name.startswith("layer_"))

    @property
    def captured_names(self) -> tuple[str, ...]:
        """The modules whose rows are kept, in the order of ``names``."""
        return tuple(name for name in self._names if name in self._wanted)

    @property
    def attention_weights(self) -> dict[str, np.ndarray]:
        """Rows of the last pass over a sequence; see the class. Empty again when the model's next pass begins: copies
        that were read before stay. Copied from the device on each access."""
        whole = {name: _joined(name, calls) for name, calls in self._kept.rows.items()}
        return whole | {name: self._by_patch(name) for name in self._kept.pieces}

    @property
    def decode_weights(self) -> dict[str, list[np.ndarray]]:
        """Rows of each cached step since that pass; see the class. Copied from the device on each access.

        Raises ValueError where a step's sequences are not those of the pass, in its order (beam search).
        """
        if self._kept.regrouped:
            raise ValueError(
                f"decode_weights: {self._kept.regrouped}, so that rows of the steps belong to no one sequence of the "
                "result; generate with num_beams=1, or read the finished sequence in one forward"
            )
        return {name: [_to_numpy(step.rows) for step in steps] for name, steps in self._kept.steps.items()}

    @property
    def highest_logits(self) -> dict[str, np.ndarray]:
        """The highest attention logit of each language row that ``attention_weights`` has, over the keys that it
        may see: scaled, soft-capped and biased, as it enters the softmax; unbounded, −inf where a row sees no
        key. One that grows from checkpoint to checkpoint, while entropy falls, tells of a collapse (Zhai et al.,
        σReparam, ICML 2023). Copied from the device on each access."""
        return {name: _to_numpy(highest) for name, highest in self._kept.highest.items()}

    def clear(self) -> None:
        """Forget the rows seen so far."""
        self._images = (
            0  # of earlier calls of the tower in this pass: pictures come in one, videos in another
        )
        self._kept = _Kept()
        self._ahead = _Kept()  # seen by a tower before the forward that it runs for
        self._forwards = Forwards()
        self._inside = self._is_ahead = self._is_ahead_by_generate = False
        self._given: tuple[Any, dict[str, Any]] = (), {}  # what the model's forward was given
        self._inputs: dict[str, Any] = {}  # that, and what the tower's forward was given
        self._towers: dict[str, _Tower] = {}

    def remove(self) -> None:
        """Give the model back as it was. Doing it twice does no harm; rows stay readable."""
        self._watch.close()

    def __enter__(self) -> AttentionExtractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @contextmanager
    def knocked_out(self, blocked: Mapping[str, Bool[Tensor, "batch query key"]]) -> Iterator[None]:
        """Take keys away from queries while the block lasts.

        ``blocked`` has, by the names of ``attention_weights`` (captured or not), Bool[batch or images,
        queries or 1, keys]: True where a query may not see a key (overviews, images of their own, see all where
        it has no entry for them). Queries and keys count in the whole sequence, whatever cache holds it; those
        beyond the mask's are left alone. The mask is handed to the real kernel, so the same path is used as
        without; only flash kernels, which take no mask, are replaced by SDPA in the modules named.

        Raises ValueError for an unknown name; while the model runs, for a mask of another number of sequences or
        images than one and theirs.
        """
        for name in blocked:
            if name not in self._names:
                raise ValueError(
                    f"no attention module {name!r} to knock out; expected one of {_span(self._names)}"
                )
        before, self._blocked = self._blocked, {**self._blocked, **blocked}
        try:
            yield
        finally:
            self._blocked = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep no rows while the block lasts; keys are knocked out all the same."""
        wanted, self._wanted = self._wanted, set()
        try:
            yield
        finally:
            self._wanted = wanted

    @contextmanager
    def tapped(self, tap: Tap) -> Iterator[None]:
        """While the block lasts, call ``tap(name, call, output)`` after the kernel of every attention module, and
        let the model go on with what it returns.

        ``output`` is the kernel's, Float[batch, queries, heads, dim], before the projection. Called with
        gradients as the model runs, in the order of the forward.
        """
        before, self._tap = self._tap, tap
        try:
            yield
        finally:
            self._tap = before

    @property
    def _model(self) -> Any:
        """The bare model, which is there while it runs."""
        return self._bare()

    def _attach(self, modules: Mapping[str, Sequence[nn.Module]]) -> None:
        check_is_free(chain.from_iterable(modules.values()))
        bare, tower = self._model, self.family.paths.vision_layers.rpartition(".")[0]
        self._watch = Watch(self, bare)
        try:
            for name, copies in modules.items():
                for module in copies:
                    self._watch.kernel(module, _Watcher(self, name))
            self._watch.check_kernels()
            _check_masks(bare, self.family)
            self._watch.forward(bare, before=self._begin, after=self._end)
            for module in self._towers_of(bare):
                self._watch.forward(module, before=self._begin_tower, after=self._end_tower)
        except BaseException:
            self._watch.close()
            raise
        self._tower_copies = weakref.WeakSet(copies_of(bare, tower))

    # Rows are taken while the whole model's forward runs: activation checkpointing runs layers again in
    # backward, and those calls must not be taken for new ones.
    def _begin(self, _: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        self._watch.check_kernels()  # it may have been changed since
        _check_masks(self._model, self.family)
        self._given = arguments, options
        self._forwards.begin(self._model, arguments, options)
        if self._forwards.refused and any(name.startswith("layer_") for name in self._wanted):
            self._kept = _Kept()
            raise ValueError(
                f"{self._forwards.refused}: rows of the prompt cannot be told apart; leave that out while attention is "
                "captured, or capture none (key_layers=[])"
            )
        if self._forwards.is_step:
            self._take_up_steps()
        else:
            self._begin_pass(takes_ahead=self._forwards.takes_embeddings)
        self._inside = True

    def _begin_pass(self, *, takes_ahead: bool) -> None:
        """takes_ahead   the forward goes on with what a tower made of pictures before it"""
        if not takes_ahead:
            self._forget_ahead()
        self._kept, self._ahead = self._ahead, _Kept()

    def _forget_ahead(self) -> None:
        self._ahead, self._images, self._towers = _Kept(), 0, {}

    def _see_pictures(self) -> None:
        """What began as a step has pictures, so it is a pass."""
        self._forwards.is_pass()
        self._kept = _Kept()

    def _take_up_steps(self) -> None:
        """What was taken back since the last step is forgotten; all, where this step goes on from another pass."""
        kept, start = (_Kept() if self._forwards.is_alone else self._kept), self._forwards.start
        kept.steps = {name: [*_before(start, steps)] for name, steps in kept.steps.items()}
        kept.regrouped = kept.regrouped or self._forwards.regrouped
        self._kept = kept

    def _end(self, _: nn.Module, output: Any) -> None:
        towers = self._towers
        self._inside, self._images, self._towers, self._given = False, 0, {}, ((), {})
        self._forwards.end(output)
        if output is None:
            self._kept = _Kept()  # it raised: half a pass is none
            return
        self._check_images(towers)

    def _check_images(self, towers: Mapping[str, _Tower]) -> None:
        """All towers have run: were the images there that are to be kept?"""
        name = next(
            (name for name, tower in towers.items() if tower.sequences and name in self._wanted), None
        )
        patches = self._kept.patches
        missing = [image for image in self.images or () if name is not None and image not in patches]
        if missing:
            raise ValueError(f"{name}: image {missing[0]} does not exist; expected one of {sorted(patches)}")

    # ``generate`` runs the tower of some families ahead of the model's forward, to which its pictures belong.
    def _towers_of(self, model: nn.Module) -> Iterator[nn.Module]:
        paths = self.family.paths
        inside = (paths.vision_layers, paths.connector_attention)
        for root in dict.fromkeys(path.rpartition(".")[0] for path in inside if path is not None):
            yield from copies_of(model, root)

    def _begin_tower(self, module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        if not self._inside:
            self._inside = self._is_ahead = True
            if (is_by_generate := stage_of_generate().is_generate) is not self._is_ahead_by_generate:
                self._forget_ahead()  # pictures that someone embedded by hand, for no forward of the model
                self._is_ahead_by_generate = is_by_generate
        if module in self._tower_copies:
            self._images += next((len(tower.pictures) for tower in self._towers.values()), 0)
            given = by_name(self._model, *self._given)
            self._inputs, self._towers = {**given, **by_name(module, arguments, options)}, {}
            self._inputs["images_before"] = self._images
            if self.tiles is not None:
                self._inputs["tiles"] = self.tiles

    def _end_tower(self, module: nn.Module, output: Any) -> None:
        if module in self._tower_copies:
            self._inputs = {}  # a cache is among them, and need not outlive its reader
        if self._is_ahead:
            self._inside = self._is_ahead = False

    @property
    def _now(self) -> _Kept:
        """Where what is seen now is kept."""
        return self._ahead if self._is_ahead else self._kept

    def _store(self, name: str, rows: Tensor) -> None:
        if name.startswith("layer_"):
            self._now.rows[name] = [rows]
            self._now.steps[name] = []
        else:
            self._now.rows.setdefault(name, []).append(rows)  # towers that call once per image or window

    def _store_step(self, name: str, start: int, rows: Tensor) -> None:
        self._now.steps.setdefault(name, []).append(_Step(start, rows))

    def _store_piece(self, name: str, piece: _Piece) -> None:
        self._now.pieces.setdefault(name, []).append(piece)

    # Towers that reorder or window their patches: which patch is where is the family's to say.
    def _sequences_of(self, name: str, call: Call) -> list[TowerSequence] | None:
        is_asked = name in self._wanted or name in self._blocked
        if not is_asked or not name.startswith("vision_layer_"):
            return None
        if name not in self._towers:
            index = int(name.removeprefix("vision_layer_"))
            sequences = self.family.tower_sequences(self._model.config, index, self._inputs)
            self._towers[name] = tower = _Tower(name, sequences, first=self._images)
            now = self._now
            now.patches = (now.patches if self._images else {}) | tower.patches
            now.pictures = [image for image in now.pictures if image < self._images] + tower.pictures
        return self._towers[name].next(call)

    def _asks_for(self, sequence: TowerSequence) -> np.ndarray:
        """Bool[places]: which rows of a sequence are to be kept."""
        now = self._now
        images = self.images if self.images is not None else now.pictures
        kept = (sequence.patch >= 0) & np.isin(sequence.image, images)
        if self.vision_tokens is None:
            return kept
        asked = [
            (sequence.image == image) & np.isin(sequence.patch, self._patches_asked(at, now.patches[image]))
            for at, image in enumerate(images)
        ]
        return kept & np.any(asked, axis=0)

    def _patches_asked(self, at: int, count: int) -> Int[np.ndarray, " rows"]:
        """The patches of the at-th kept image, which has ``count``, whose rows are wanted, from the start."""
        if self.vision_tokens is None:
            return np.arange(count)
        tokens = np.asarray(self.vision_tokens)
        return (tokens if tokens.ndim == 1 else tokens[at]) % count

    def _by_patch(self, name: str) -> np.ndarray:
        """Rows and keys of a tower's layer put back in the order of patches: (images, heads, patches, patches)."""
        patches = self._kept.patches
        images = self.images if self.images is not None else self._kept.pictures
        if len({patches[image] for image in images}) > 1:
            sizes = ", ".join(f"{patches[image]:,}" for image in images)
            raise ValueError(
                f"{name}: found images of {sizes} patches, expected one size for one array; ask for one at a time: "
                "images=[0]"
            )
        return np.stack(
            [
                _image_rows(
                    self._kept.pieces[name], image, self._patches_asked(at, patches[image]), patches[image]
                )
                for at, image in enumerate(images)
            ]
        )


class _Step(NamedTuple):
    """Rows of one cached step, Float[sequences, heads, tokens, keys], and the place of its first token."""

    start: int
    rows: Tensor


@dataclass
class _Kept:
    """What was seen of one pass over a sequence, by the names of ``attention_weights``, and of the steps after it.

    patches    of each image of the pass that the pieces are of
    pictures   those images that are no overview
    regrouped  why the steps are of other sequences than the pass; "" if they are not
    """

    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    highest: dict[str, Tensor] = field(default_factory=dict)
    pieces: dict[str, list[_Piece]] = field(default_factory=dict)
    patches: dict[int, int] = field(default_factory=dict)
    pictures: list[int] = field(default_factory=list)
    steps: dict[str, list[_Step]] = field(default_factory=dict)
    regrouped: str = ""


class _Piece(NamedTuple):
    """Rows of one sequence of a tower: of which places they are, Int[rows], and Float[heads, rows, places]."""

    sequence: TowerSequence
    places: np.ndarray
    rows: Tensor


class _Proof(NamedTuple):
    """How far rows × values are from the kernel's output, relative to it, and whether rows may sum to less than 1."""

    wrong: float
    has_sink_logits: bool = False


class _Tower:
    """The sequences of one vision layer in a pass, taken up as its kernel is called."""

    def __init__(self, name: str, sequences: Sequence[TowerSequence] | None, *, first: int = 0) -> None:
        """first   how many images earlier calls of the tower had"""
        self.name, self.sequences, self.taken = name, sequences, 0
        if sequences is not None and first:
            self.sequences = [replace(one, image=one.image + first) for one in sequences]

    @property
    def patches(self) -> dict[int, int]:
        """How many patches each image has."""
        if not self.sequences:
            return {}
        every = joined(list(self.sequences))
        return {int(i): int(every.patch[every.image == i].max()) + 1 for i in np.unique(every.image)}

    @property
    def pictures(self) -> list[int]:
        """The images that are no overview."""
        found = [one.image for one in self.sequences or () if not one.is_overview]
        return np.unique(np.concatenate(found)).tolist() if found else []

    def next(self, call: Call) -> list[TowerSequence] | None:
        """Those of this call; None where sequences are images and places are patches."""
        if self.sequences is None:
            return None
        if call.is_flash and call.options.get("cu_seq_lens_q") is not None:
            found = [joined(self.sequences)]  # one call; the kernel keeps the stretches apart
        else:
            found = list(self.sequences[self.taken : self.taken + call.query.shape[0]])
            self.taken += len(found)
        lengths = [len(one) for one in found]
        if len(found) != call.query.shape[0] or set(lengths) != {call.lengths[0]}:
            raise ValueError(
                f"{self.name}: its kernel was called with {call.query.shape[0]} sequences of {call.lengths[0]} places, "
                f"expected {lengths} as the family says: these are not the tower's patches"
            )
        return found


Tap: TypeAlias = Callable[
    [str, Call, Tensor], Tensor
]  # name, call, kernel's output → the output to go on with


class _Watcher:
    """What happens around the real kernel of one attention module."""

    def __init__(self, owner: AttentionExtractor, name: str) -> None:
        self._owner = weakref.ref(owner)
        self.name = name
        self.is_language = name.startswith("layer_")

    @property
    def owner(self) -> AttentionExtractor:
        owner = self._owner()
        assert owner is not None, "a watch ends with its owner"
        return owner

    def run(self, call: Call) -> tuple[Tensor, Any]:
        owner = self._owner()
        if owner is None or not owner._inside:
            return call.run()
        if self.is_language:
            call = _placed(call, owner._forwards)
        elif owner._forwards.is_step and not owner._is_ahead:
            owner._see_pictures()
        sequences = owner._sequences_of(self.name, call)
        if (blocked := owner._blocked.get(self.name)) is not None:
            blocked = blocked if sequences is None else _by_place(blocked, sequences)
            call = (
                call.of_tokens() if call.is_flash else call
            )  # a mask of its is over tokens, not over places
            call = _with_mask(call, _mask_without(call, blocked, start=call.past or 0))
        output = call.run()
        if self.name in owner._wanted:
            if sequences is None:
                self._observe(call.of_tokens(), output[0])
            else:
                self._observe_tower(call, output[0], sequences)
        if owner._tap is not None:
            output = (owner._tap(self.name, call, output[0]), *output[1:])
        return output

    @torch.no_grad()
    def _observe(self, call: Call, output: Tensor) -> None:
        owner, name = self.owner, self.name
        batch, heads, _, _ = call.query.shape
        device = call.query.device
        if self.is_language:
            sequences = _indices(owner.sequences, batch, f"{name}: sequence", device)
        else:
            sequences = _indices(owner.images, batch, f"{name}: image", device)
        kept_heads = _indices(owner.heads if self.is_language else None, heads, f"{name}: head", device)
        positions = self._positions(call, len(sequences))
        logits = attention_logits(call, sequences, positions)
        rows = attention_rows(logits, sink_logits(call))
        if owner._proof is not None:
            wrong = _disagreement(rows, call.value[sequences], output[sequences], positions)
            owner._proof[name] = _Proof(wrong, sink_logits(call) is not None)
        rows = call.by_token(rows[:, kept_heads])
        if self.is_language and owner._forwards.is_step:
            owner._store_step(name, owner._forwards.start, rows)
            return
        owner._store(name, rows)
        if self.is_language:
            owner._now.highest[name] = _highest(call, logits)[:, kept_heads]

    def _positions(self, call: Call, kept: int) -> Int[Tensor, "kept rows"]:
        """Places among this call's queries of the rows to keep: all of a step's."""
        owner, name, device = self.owner, self.name, call.query.device
        queries, _ = call.lengths
        if not self.is_language:
            tokens = owner.vision_tokens if name.startswith("vision_layer_") else None
            return row_positions(tokens, kept, queries, name, device)
        past = call.past or 0
        if owner._forwards.is_step or owner.query_tokens is None:
            return row_positions(None, kept, queries, name, device)
        positions = row_positions(owner.query_tokens, kept, past + queries, name, device)
        if past and len(early := positions[positions < past]):
            raise ValueError(
                f"{name}: query token {int(early[0])} was read by an earlier forward and is in the cache; this one "
                f"has rows of tokens {past} to {past + queries - 1} alone: ask for those, or read all in one forward"
            )
        return positions - past

    @torch.no_grad()
    def _observe_tower(self, call: Call, output: Tensor, sequences: Sequence[TowerSequence]) -> None:
        owner, device = self.owner, call.query.device
        for at, sequence in enumerate(sequences):
            places = np.flatnonzero(owner._asks_for(sequence))
            if len(places):
                positions = torch.from_numpy(places).to(device)[None]
                logits = attention_logits(call, torch.tensor([at], device=device), positions)
                rows = attention_rows(logits, sink_logits(call))
                if owner._proof is not None:
                    wrong = _disagreement(rows, call.value[[at]], output[[at]], positions)
                    before = owner._proof.get(self.name, _Proof(0.0))
                    owner._proof[self.name] = _Proof(max(wrong, before.wrong), sink_logits(call) is not None)
                owner._store_piece(self.name, _Piece(sequence, places, rows[0]))


class KernelTap:
    """Hands a tap every kernel call of some attention modules, and does nothing else: for one generation after another,
    where a new ``AttentionExtractor`` each time would be felt. What can be prepared is.

    names   as ``attention_weights`` has them

    One at a time on a model, in the place of an extractor; it does not keep the model alive.
    """

    def __init__(self, model: nn.Module, names: Collection[str], *, family: Family | None = None) -> None:
        bare = bare_model(model)
        self._bare, self._family = weakref.ref(bare), family or family_of(bare.config)
        modules = attention_copies(bare, self._family)
        self._modules = [
            (name, weakref.ref(module)) for name in names if name in modules for module in modules[name]
        ]

    @contextmanager
    def tapped(self, tap: Tap) -> Iterator[None]:
        """While the block lasts, as ``AttentionExtractor.tapped``; also outside the model's own forward.

        Raises ValueError where the model is gone.
        """
        bare = self._bare()
        found = [(name, module) for name, reference in self._modules if (module := reference()) is not None]
        if bare is None or len(found) < len(self._modules):
            raise ValueError("KernelTap: its model is gone; make a new one for the model in use")
        check_is_free(module for _, module in found)
        forwards = Forwards()
        watch = Watch(self, bare)
        try:
            watch.forward(bare, before=forwards.begin, after=forwards.after)
            for name, module in found:
                watch.kernel(module, _Listener(name, tap, forwards))
            watch.check_kernels()
            _check_masks(bare, self._family)
            yield
        finally:
            watch.close()


class _Listener(NamedTuple):
    name: str
    tap: Tap
    forwards: Forwards

    def run(self, call: Call) -> tuple[Tensor, Any]:
        if self.name.startswith("layer_"):
            call = _placed(call, self.forwards)
        output, more = call.run()
        return self.tap(self.name, call, output), more


def _check_masks(model: nn.Module, family: Family) -> None:
    """Raises ValueError where the language model runs a kernel that leaves out a part of the family's mask."""
    fault = flash_fault(family)
    for layer in attending_layers(model, family) if fault else ():
        attention = model.get_submodule(
            f"{family.paths.language_layers}.{layer}.{family.paths.language_attention}"
        )
        if "flash" in str(vars(attention)["config"]._attn_implementation):
            raise ValueError(f"{fault}; load the model with attn_implementation='sdpa' or 'eager'")


def _placed(call: Call, forwards: Forwards) -> Call:
    return call._replace(past=forwards.start, keeps_keys=forwards.keeps_keys)


def attention_logits(
    call: Call, sequences: Int[Tensor, " kept"], positions: Int[Tensor, "kept rows"]
) -> Float[Tensor, "kept heads rows key"]:
    """q·k·scale + mask of chosen rows of a call, in fp32: what its kernel takes the softmax of, beside
    ``sink_logits``. −inf where a row may not see a key.

    ``sequences`` are places in the batch, ``positions`` places among this call's queries. Grouped keys are not
    repeated: each group's queries are multiplied with their one key head.

    Raises ValueError for terms that rows cannot show.
    """
    present = [term for term in UNSUPPORTED_TERMS if call.options.get(term) is not None]
    if present:
        module = type(call.module).__name__
        raise ValueError(f"{module} adds {', '.join(present)} to its attention; its rows cannot be shown")
    batch, heads, _, dim = call.query.shape
    kept, rows = positions.shape
    precision = flash.computed_in(call) if call.is_flash else call.query.dtype
    with torch.autocast(call.query.device.type, enabled=False):
        query = call.query[sequences[:, None], :, positions].transpose(1, 2).to(precision).float()
        key = call.key.expand(batch, -1, -1, -1)[sequences].to(precision).float()
        folded = query.reshape(kept, key.shape[1], heads // key.shape[1] * rows, dim)
        logits = (folded @ key.transpose(2, 3)).view(kept, heads, rows, key.shape[2])
        scale = call.options.get("scaling")
        logits *= dim**-0.5 if scale is None else scale
        if (cap := call.options.get(SOFT_CAP)) is not None:
            logits = torch.tanh(logits / cap) * cap
        allowed, bias = _rules(call, sequences, positions)
        if bias is not None:
            logits += bias.float()
        return logits if allowed is None else logits.masked_fill_(~allowed, float("-inf"))


def sink_logits(call: Call) -> Float[Tensor, " heads"] | None:
    """One learnt logit a head, in fp32, that stands among a row's logits as if of one more key, which has no value.
    None where the module has none.

    Raises ValueError where the kernel does not take them: the model is then not the one that was trained.

    Source: gpt-oss-120b & gpt-oss-20b Model Card (arXiv 2508.10925), section 2.2.
    """
    sinks = call.options.get(SINK_LOGITS)
    if sinks is None:
        return None
    taken = ("s_aux", "learnable_sink")  # as packages call them
    if call.kernel == "sdpa" or (
        call.is_flash and not any(flash.supports(call.kernel, name) for name in taken)
    ):
        raise ValueError(
            f"{type(call.module).__name__} has sink logits, which the kernel {call.kernel!r} leaves out; load the "
            "model with attn_implementation='eager'"
        )
    return sinks.detach().to(call.query.dtype).float()  # as kernels take them


def attention_rows(
    logits: Float[Tensor, "*batch heads rows key"], sinks: Float[Tensor, " heads"] | None = None
) -> Float[Tensor, "*batch heads rows key"]:
    """Attention logits → probabilities, range [0, 1], each row's sum 1. A row that may see no key is all 0.

    With ``sinks`` (``sink_logits``) each row has one logit more, and what falls to it is left out of the row, whose sum
    is then below 1: logits [0, 0] beside a sink logit of log 2 give [1/4, 1/4].
    """
    if sinks is not None:
        beside = sinks[:, None, None].expand(*logits.shape[:-1], 1)
        return torch.cat([logits, beside], dim=-1).softmax(-1)[..., :-1]
    blind = logits.amax(-1, keepdim=True).isneginf()
    return logits.softmax(-1).masked_fill_(blind, 0.0)


def _highest(call: Call, logits: Float[Tensor, "kept heads rows key"]) -> Float[Tensor, "kept heads rows"]:
    """The largest logit of each row. A mask that adds forbids by its type's lowest number: −inf here too."""
    highest = logits.amax(-1)
    if call.mask is None or not call.mask.is_floating_point():
        return highest
    return highest.masked_fill(highest <= torch.finfo(call.mask.dtype).min / 2, float("-inf"))


def _rules(call: Call, sequences: Tensor, positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What the kernel lets chosen rows see: (Bool[kept, 1 or heads, rows, keys] or None, additive or None)."""
    queries, keys = call.lengths
    mask = call.mask
    if mask is not None and mask.ndim == 4:
        mask = mask[..., :keys].expand(call.query.shape[0], -1, -1, -1)
        if mask.shape[2] > 1:
            mask = mask[sequences[:, None], :, positions].transpose(1, 2)
        else:
            mask = mask[sequences]
        return (mask, None) if mask.dtype == torch.bool else (None, mask)
    if call.is_flash:
        return flash.seen(call, sequences, positions), None
    rules = []
    # Eager applies its mask and nothing else; sdpa without a mask is causal, aligned at the start.
    if call.kernel != "eager" and queries > 1 and mask is None and flash.is_causal(call):
        rules.append(torch.arange(keys, device=positions.device) <= positions[:, None, :, None])
    if mask is not None:
        rules.append(mask[sequences, -keys:].bool()[:, None, None, :])
    return (reduce(torch.logical_and, rules) if rules else None), None


def _with_mask(call: Call, mask: Tensor) -> Call:
    """The call with another mask of four axes. Flash kernels take none, and are replaced by one that does: SDPA, or
    eager where there is something that SDPA leaves out."""
    if not call.is_flash:
        return call._replace(mask=mask)
    if all(call.options.get(term) is None for term in LEFT_OUT_BY_SDPA):
        return call.under("sdpa", mask)
    return call.under("eager", _additive(mask, call.query.dtype))


def _additive(seen: Bool[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """A mask as eager attention takes it: 0 where a key is seen, the lowest number where it is not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _mask_without(call: Call, blocked: Bool[Tensor, "batch query key"], *, start: int) -> Tensor:
    """The call's mask with the blocked keys taken out, in the form that its kernel takes.

    ``start`` is the place in the whole sequence of this call's first query (0 but where it goes on from a cache).
    """
    batch, _, queries, _ = call.query.shape
    keys, device = call.key.shape[2], call.query.device
    if blocked.shape[0] not in (1, batch):
        raise ValueError(
            f"knock-out: found a mask of {blocked.shape[0]}, the attention is of {batch} sequences or images; expected "
            "one for all, or one for each (beams and several answers count as sequences)"
        )
    part = blocked[:, :, call.first_key : call.first_key + keys].to(device)
    part = part if part.shape[1] == 1 else part[:, start : start + queries]
    out = torch.zeros(blocked.shape[0], 1, queries, keys, dtype=torch.bool, device=device)
    out[:, 0, : queries if part.shape[1] == 1 else part.shape[1], : part.shape[2]] = part
    if call.mask is not None and call.mask.ndim == 4:
        mask = call.mask[..., :keys]
        return mask & ~out if mask.dtype == torch.bool else mask.masked_fill(out, torch.finfo(mask.dtype).min)
    every = torch.arange(batch, device=device)
    allowed, _ = _rules(call, every, torch.arange(queries, device=device).expand(batch, -1))
    seen = (~out if allowed is None else allowed & ~out).expand(batch, -1, queries, keys)
    return seen if call.kernel != "eager" else _additive(seen, call.query.dtype)


def self_check(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    key_layers: Sequence[int] | None = None,
    family: Family | None = None,
) -> None:
    """Prove, on one input, that what will be shown is what the model does. Silent where all is well.

    In turn: the logits with capture are those without, bit for bit; every row has its shape and sums to 1 (with sink
    logits to 1 at most); rows × values give the very output of the kernel; and taking keys away through the same path
    changes the logits, in each key layer and in the connector. Run it in eval mode, under no_grad, with at least two
    tokens.

    Raises ValueError naming the first layer that fails, with found and expected.
    """
    check_is_whole(inputs, "self-check")
    plain = model(**inputs).logits
    with AttentionExtractor(model, key_layers, family=family) as extractor:
        extractor._proof = {}
        observed = model(**inputs).logits
        if not torch.equal(plain, observed):
            worst = (plain - observed).abs().max().item()
            raise ValueError(
                f"logits with attention captured differ by {worst:.3g}, expected 0: capture is wired wrongly"
            )
        batch, length = inputs["input_ids"].shape
        _check_rows(extractor, batch, length, inputs.get("attention_mask"), observed.dtype)
        for name, rows in extractor.attention_weights.items():
            blocked = _all_but_own(name, rows.shape)
            with extractor.knocked_out({name: blocked}):
                changed = model(**inputs).logits
            if torch.equal(changed, plain):
                raise ValueError(
                    f"{name}: taking keys away left the logits as they were, expected a change: "
                    "this is not the attention that the model uses"
                )


@torch.no_grad()
def head_means(
    model: nn.Module,
    inputs: Mapping[str, Any],
    family: Family | None = None,
    *,
    limit_bytes: int = HEAD_MEANS_LIMIT_BYTES,
) -> Float[np.ndarray, "layers query key"]:
    """Every row of every language layer that attends, averaged over heads, of one sequence: np.float32, range [0, 1],
    each row's sum 1 (with sink logits below 1). What rollout multiplies.

    The one thing here that is tokens × tokens: 4 · layers · tokens² bytes on the host, 128 MiB for 32 layers and
    1,024 tokens, 2 GiB for 4,096. Beyond it, on the device: a few buffers of ``CHUNK_BYTES`` (32 MiB), or of one
    row of all heads where that is more, since rows are taken one layer and one stretch of queries at a time.
    Run it in eval mode.

    Raises ValueError for a batch of more than one, where the result would be larger than ``limit_bytes``, and
    where a layer's attention cannot be observed.
    """
    check_is_whole(inputs, "head means")
    batch, tokens = inputs["input_ids"].shape
    if batch != 1:
        raise ValueError(f"head means: found a batch of {batch}, expected one sequence; call once for each")
    with AttentionExtractor(model, [], connector=False, family=family) as extractor:
        names = extractor.language_names
        size = 4 * len(names) * tokens**2
        if size > limit_bytes:
            raise ValueError(
                f"head means of {len(names)} layers × {tokens:,} × {tokens:,} tokens take {size / 2**20:,.1f} MiB, "
                f"expected at most {limit_bytes / 2**20:,.1f}; ask a shorter question, use a smaller picture, or raise "
                "limit_bytes"
            )
        means = np.empty((len(names), tokens, tokens), np.float32)
        missing = set(names)

        def tap(name: str, call: Call, output: Tensor) -> Tensor:
            if name in missing:
                _write_head_means(call, means[names.index(name)])
                missing.discard(name)
            return output

        with extractor.tapped(tap):
            bare_model(model)(**{**inputs, "use_cache": False})
    if missing:
        raise ValueError(f"{min(missing)}: its attention never ran through the interface; expected one call")
    return means


def _write_head_means(call: Call, out: Float[np.ndarray, "query key"]) -> None:
    device = call.query.device
    queries, keys = call.lengths
    chunk = max(CHUNK_BYTES // (4 * call.query.shape[1] * keys), 1)
    for start in range(0, queries, chunk):
        positions = torch.arange(start, min(start + chunk, queries), device=device)[None]
        logits = attention_logits(call, torch.zeros(1, dtype=torch.long, device=device), positions)
        out[start : start + chunk] = _to_numpy(attention_rows(logits, sink_logits(call))[0].mean(0))


def in_all_layers(
    model: nn.Module, family: Family, values: Float[np.ndarray, "attending ..."]
) -> Float[np.ndarray, "layers ..."]:
    """Numbers of the layers that attend → of all language layers, so that a layer's number is its place: np.float32,
    NaN where a layer has no attention map."""
    found = np.full((len(language_layers(model, family)), *values.shape[1:]), np.nan, np.float32)
    found[list(attending_layers(model, family))] = values
    return found


def _check_rows(
    extractor: AttentionExtractor, batch: int, length: int, padding: Tensor | None, dtype: torch.dtype
) -> None:
    real = np.ones((batch, length), bool) if padding is None else padding.bool().cpu().numpy()
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    missing = [
        name for name in extractor._wanted if name.startswith("layer_") and name not in extractor._kept.rows
    ]
    if missing:
        raise ValueError(
            f"{missing[0]}: its attention never ran through the interface; expected one call in a forward"
        )
    for name, rows in extractor.attention_weights.items():
        if name.startswith("layer_") and (rows.shape[0], *rows.shape[2:]) != (batch, length, length):
            raise ValueError(
                f"{name}: rows of shape {rows.shape}, expected ({batch}, heads, {length}, {length})"
            )
        sums = rows.sum(-1)
        if name.startswith("layer_"):
            sums = sums.transpose(0, 2, 1)[real]
        proof = _Proof(0.0) if extractor._proof is None else extractor._proof[name]
        off = sums - 1
        worst = float(off.max() if proof.has_sink_logits else np.abs(off).max())
        if worst > ROW_SUM_TOLERANCE:
            most = " at most" if proof.has_sink_logits else ""
            raise ValueError(
                f"{name}: a row's sum is off by {worst:.3g}, expected 1{most} within {ROW_SUM_TOLERANCE}"
            )
        if proof.wrong > tolerance:
            raise ValueError(
                f"{name}: rows × values differ from the kernel's output by {proof.wrong:.3g} of its size, "
                f"expected at most {tolerance}: the rows are not what the kernel used"
            )


def _all_but_own(name: str, shape: tuple[int, ...]) -> Tensor:
    """Blocks, for each token, every other one; for the connector, every second patch."""
    queries, keys = shape[2:]
    if name.startswith("layer_"):
        return ~torch.eye(queries, keys, dtype=torch.bool)[None]
    return (torch.arange(keys) % 2 == 0)[None, None]


def _disagreement(rows: Tensor, value: Tensor, output: Tensor, positions: Tensor) -> float:
    """Largest |rows × values − kernel output|, relative to the largest output, over rows that see
    anything."""
    value = value.float().repeat_interleave(rows.shape[1] // value.shape[1], dim=1)
    index = positions[:, None, :, None].expand(-1, rows.shape[1], -1, value.shape[-1])
    true = output.transpose(1, 2).float().gather(2, index)
    seen = rows.sum(-1, keepdim=True) > 0
    return float((((rows @ value) - true) * seen).abs().max() / true.abs().max().clamp(min=1e-12))


def _wanted_names(
    modules: Collection[str],
    key_layers: Sequence[int] | None,
    vision_layers: Sequence[int],
    *,
    connector: bool,
) -> set[str]:
    language = [name for name in modules if name.startswith("layer_")]
    vision = [name for name in modules if name.startswith("vision_layer_")]
    wanted = set(language) if key_layers is None else {f"layer_{index}" for index in key_layers}
    attending = [int(name.removeprefix("layer_")) for name in language]
    for name in sorted(wanted - set(language)):
        raise ValueError(
            f"no language layer {name.removeprefix('layer_')}; expected {layer_words(attending)}"
        )
    for name in (f"vision_layer_{index}" for index in vision_layers):
        if name not in modules:
            index = name.removeprefix("vision_layer_")
            raise ValueError(f"no vision layer {index}; expected 0 to {len(vision) - 1}")
        wanted.add(name)
    return wanted | ({"visual_attn"} & set(modules) if connector else set())


def _indices(
    chosen: Sequence[int] | None, size: int, what: str, device: torch.device
) -> Int[Tensor, " chosen"]:
    if chosen is None:
        return torch.arange(size, device=device)
    for index in chosen:
        if not 0 <= index < size:
            raise ValueError(f"{what} {index} does not exist; expected 0 to {size - 1}")
    return torch.tensor(list(chosen), device=device, dtype=torch.long)


def row_positions(
    tokens: Sequence[int] | Tensor | None, kept: int, length: int, name: str, device: torch.device
) -> Int[Tensor, "kept rows"]:
    """Places of the rows to keep, from the start; ``tokens`` as in ``AttentionExtractor``'s ``query_tokens``.

    Raises ValueError naming the module, for a token or a number of sequences that it does not have.
    """
    if tokens is None:
        return torch.arange(length, device=device).expand(kept, -1)
    token, whole = ("vision token", "image") if name.startswith("vision") else ("query token", "sequence")
    positions = torch.as_tensor(tokens, device=device, dtype=torch.long)
    positions = positions.expand(kept, -1) if positions.ndim == 1 else positions
    if positions.shape[0] != kept:
        raise ValueError(f"{name}: {token}s for {positions.shape[0]} {whole}s, expected {kept}")
    wrong = positions[(positions >= length) | (positions < -length)]
    if len(wrong):
        raise ValueError(f"{name}: {token} {int(wrong[0])} does not exist; the {whole} has {length} tokens")
    return positions % length


def _joined(name: str, calls: Sequence[Tensor]) -> np.ndarray:
    """One array of a module's calls in one pass. Windows of unequal size have no common array."""
    if len({call.shape[1:] for call in calls}) > 1:
        raise ValueError(
            f"{name} attends in windows of unequal size, {[tuple(c.shape) for c in calls]}: no single array"
        )
    return _to_numpy(torch.cat(list(calls)) if len(calls) > 1 else calls[0])


def _image_rows(
    pieces: Sequence[_Piece], image: int, rows: Int[np.ndarray, " rows"], patches: int
) -> Float[np.ndarray, "heads rows patches"]:
    """An image's rows out of the sequences that its patches lie in; what is in another sequence gets 0."""
    out = np.zeros((pieces[0].rows.shape[0], len(rows), patches), np.float32)
    for piece in pieces:
        own = (piece.sequence.image == image) & (piece.sequence.patch >= 0)
        keys = np.flatnonzero(own)
        values = _to_numpy(piece.rows)[:, :, keys]
        of = np.where(own[piece.places], piece.sequence.patch[piece.places], -1)
        at, taken = np.nonzero(rows[:, None] == of[None, :])
        out[:, at[:, None], piece.sequence.patch[keys][None, :]] = values[:, taken]
    return out


def _by_place(
    blocked: Bool[Tensor, "images query key"], sequences: Sequence[TowerSequence]
) -> Bool[Tensor, "sequences query key"]:
    """A knock-out by patch → by place of the sequences; class tokens are left alone."""
    found = []
    for one in sequences:
        if one.is_overview and int(one.image[0]) >= len(blocked):
            found.append(torch.zeros(1 if blocked.shape[1] == 1 else len(one), len(one), dtype=torch.bool))
            continue
        image, patch = torch.from_numpy(one.image), torch.from_numpy(one.patch)
        keys = blocked.to("cpu")[image.clamp(max=len(blocked) - 1)]  # places, query or 1, patches
        keys = keys[torch.arange(len(one)), :, patch.clamp(min=0)]  # places as keys, query or 1
        keys &= (patch >= 0)[:, None]
        rows = keys.T if keys.shape[1] == 1 else keys[:, patch.clamp(min=0)].T
        same = (
            (image[:, None] == image[None, :])
            if rows.shape[0] > 1
            else torch.ones(1, len(one), dtype=torch.bool)
        )
        found.append(rows & same)
    return torch.stack(found)


def _before(start: int, steps: Sequence[_Step]) -> Iterator[_Step]:
    """Of steps, the rows of tokens before a place in the sequence."""
    for step in steps:
        left = start - step.start
        if left >= step.rows.shape[2]:
            yield step
        elif left > 0:
            yield _Step(step.start, step.rows[:, :, :left, :start])


def _to_numpy(rows: Tensor) -> np.ndarray:
    return rows.cpu().numpy()


def _span(names: Iterable[str]) -> str:
    return ", ".join(names)
