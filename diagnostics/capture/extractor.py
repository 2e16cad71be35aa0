"""Exact attention rows captured beside the model's own kernel, and keys knocked out.

Every model of transformers looks its kernel up by name in ``AttentionInterface`` and calls it with q and k as
they enter the product (after rotary embedding, norms and the cache). So the extractor wraps the kernel
(``finetune.attention.watch``): the real one is called with the same arguments, and then the softmax of only the
wanted query rows is computed, in fp32. The output of the model is that of the real kernel, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor, nn

from diagnostics.capture import masks
from diagnostics.capture.forwards import Forwards, by_name, stage_of_generate
from diagnostics.capture.kernel_tap import Tap
from diagnostics.capture.patterns import Keeping, KeptCall, Patterns, PuttingBack, check_names
from diagnostics.capture.rows import check_count, from_start, named_positions, span, to_numpy
from diagnostics.capture.tower_rows import Piece, TowerRows, image_rows, joined_calls
from diagnostics.capture.watcher import Proof, Watcher, check_masks
from finetune.attention.watch import Call, Watch, check_is_free
from finetune.families import Family, attention_copies, bare_model, copies_of, family_of
from finetune.families.base import Tiles, TowerSequence
from finetune.families.parts.modules import layer_words


class AttentionExtractor:
    """Which keys did each query look at in chosen layers? Captured while the model runs as usual.

    Attached from construction until ``remove()`` (or the end of a ``with`` block, ``diagnostics.remove_all(model)``, or
    until it is dropped); one at a time on a model. It does not keep the model alive, and copies of the model are not
    watched. While it is attached, compiled models run uncompiled.

    ``attention_weights`` has, from the model's last pass over a sequence (a plain forward, or ``generate`` as it reads
    its prompt), and from no other: everything is cleared when the next pass begins:

    - ``layer_N``         np.float32 (batch, heads, query tokens, key tokens), language layers
    - ``visual_attn``     np.float32 (images, heads, queries, patches), the connector's cross-attention
    - ``vision_layer_N``  np.float32 (images, heads, patches, patches), the vision tower; in towers that reorder,
      window or tile their patches (the family's ``tower_sequences``) patches are row-major over the whole picture
      here all the same, frame by frame in a video, and what lies in another window, tile or frame gets 0

    Rows are probabilities before dropout; each sums to 1, or to less where a head has a sink logit (GPT-OSS), which
    takes a share of its own; a padded query's is all 0 or what its kernel makes of it. ``decode_weights`` has what
    generation adds: ``layer_N`` → a list with one array for each cached step since that pass, (batch, heads, tokens of
    the step, keys so far), every new token's row whatever ``query_tokens`` says; steps that were cropped
    (``crop``) are dropped when the next one begins. ``highest_logits`` has the logit behind the largest probability of
    each row: ``layer_N`` → np.float32 (batch, heads, query tokens).

    Keys of language layers are all tokens so far, by place in the whole sequence, whatever the cache keeps of them:
    those that a sliding cache has dropped get 0. A pass may go on from a kept prefix, and then has rows of the tokens
    that it reads itself: over a cache that is not empty, a new picture, a prompt of ``generate``, and several tokens
    where the forward before left another cache, are passes; all other forwards are steps.

    key_layers     language layers by index; None: all of them; []: none (only to knock keys out)
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
                   ``vision_layer_N`` of a family with tiles; needed where the model does not get them itself (InternVL,
                   Idefics3, SmolVLM, and any in ``generate``)
    connector      keep the connector's rows, where the family's connector attends

    Cost: k·q of the wanted rows in fp32, queries × keys numbers a head; never keys × keys unless every row is
    requested.

    Raises ValueError if a layer does not exist, another extractor is attached, or a kernel cannot be
    observed; while the model runs, where a token has no row in a pass, where ``tiles`` are not the pass's, and where
    ``generate`` leaves no pass that has the prompt's rows and no other: assisted decoding, ``prefill_chunk_size``,
    ``guidance_scale``.
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
        self._patterns: Patterns | None = None
        self._proof: dict[str, Proof] | None = None
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
        whole = {name: joined_calls(name, calls) for name, calls in self._kept.rows.items()}
        return whole | {name: self._by_patch(name) for name in self._kept.pieces}

    @property
    def decode_weights(self) -> dict[str, list[np.ndarray]]:
        """Rows of each cached step since that pass; see the class. Copied from the device on each access.

        Raises ValueError if a step's sequences are not those of the pass, in its order (beam search).
        """
        if self._kept.regrouped:
            raise ValueError(
                f"decode_weights: {self._kept.regrouped}, so that rows of the steps belong to no one sequence of the "
                "result; generate with num_beams=1, or read the finished sequence in one forward"
            )
        return {name: [to_numpy(step.rows) for step in steps] for name, steps in self._kept.steps.items()}

    @property
    def highest_logits(self) -> dict[str, np.ndarray]:
        """The highest attention logit of each language row that ``attention_weights`` has, over the keys that it
        may see: scaled, soft-capped and biased, as it enters the softmax; unbounded, −inf where a row sees no
        key. One that grows from checkpoint to checkpoint, while entropy falls, tells of a collapse (Zhai et al.,
        σReparam, ICML 2023). Copied from the device on each access."""
        return {name: to_numpy(highest) for name, highest in self._kept.highest.items()}

    def clear(self) -> None:
        """Drop the rows captured so far."""
        self._images = (
            0  # of earlier calls of the tower in this pass: pictures come in one, videos in another
        )
        self._kept = _Kept()
        self._ahead = _Kept()  # captured in a tower before the forward that it runs for
        self._forwards = Forwards()
        self._inside = self._is_ahead = self._is_ahead_by_generate = False
        self._given: tuple[Any, dict[str, Any]] = (), {}  # arguments of the model's forward
        self._inputs: dict[str, Any] = {}  # those, and arguments of the tower's forward
        self._towers: dict[str, TowerRows] = {}

    def remove(self) -> None:
        """Leave the model as it was. Calling it twice is harmless; rows stay readable."""
        self._watch.close()

    def __enter__(self) -> AttentionExtractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @contextmanager
    def knocked_out(self, blocked: Mapping[str, Bool[Tensor, "batch query key"]]) -> Iterator[None]:
        """Knock keys out of the attention of queries while the block lasts.

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
                    f"no attention module {name!r} to knock out; expected one of {span(self._names)}"
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

    @contextmanager
    def keeping_patterns(self) -> Iterator[list[KeptCall]]:
        """While the block lasts, keep queries and keys of every kernel call of language layers and connector, in the
        order of the calls, captured or not: what ``with_patterns`` puts back. They stay on the model's device as long
        as the list does."""
        keeping = Keeping()
        with self._calls_through(keeping):
            yield keeping.calls

    @contextmanager
    def with_patterns(
        self, kept: Sequence[KeptCall], chosen: Mapping[str, Bool[Tensor, " sequences"]]
    ) -> Iterator[None]:
        """While the block lasts, language layers and connector look where the model of the ``kept`` calls looked
        (``diagnostics.capture.patterns``): kernels run with the kept queries and keys, and with their own values, masks
        and options.

        ``chosen`` has, by the names of ``attention_weights``, Bool[sequences]: True where a sequence of the batch gets
        the kept pattern. The block has to read the same tokens in the same forwards as the one that kept them, with one
        sequence or with several: a call of n times the kept sequences gets them n times over, and a call of n times
        the chosen ones treats n neighbours alike. A model's own patterns, put back, change nothing bit for bit.

        Raises ValueError for an unknown name; while the model runs, for calls of another order, number of tokens,
        heads, widths, precision, scale, cap or sink logits; at the end, where calls are missing.
        """
        check_names(chosen, self._names)
        put = PuttingBack(kept, chosen)
        with self._calls_through(put):
            yield
        put.finish()

    @contextmanager
    def _calls_through(self, patterns: Patterns) -> Iterator[None]:
        before, self._patterns = self._patterns, patterns
        try:
            yield
        finally:
            self._patterns = before

    @property
    def _model(self) -> Any:
        """The bare model; it exists while it runs."""
        return self._bare()

    def _attach(self, modules: Mapping[str, Sequence[nn.Module]]) -> None:
        check_is_free(chain.from_iterable(modules.values()))
        bare, tower = self._model, self.family.paths.vision_layers.rpartition(".")[0]
        self._watch = Watch(self, bare)
        try:
            for name, copies in modules.items():
                for module in copies:
                    self._watch.kernel(module, Watcher(self, name))
            self._watch.check_kernels()
            check_masks(bare, self.family)
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
        check_masks(self._model, self.family)
        self._given = arguments, options
        self._forwards.begin(self._model, arguments, options)
        if self._forwards.refused and any(name.startswith("layer_") for name in self._wanted):
            self._kept = _Kept()
            raise ValueError(
                f"{self._forwards.refused}: rows of the prompt cannot be identified; switch that off while "
                "attention is captured, or capture none (key_layers=[])"
            )
        if self._forwards.is_step:
            self._take_up_steps()
        else:
            self._begin_pass(takes_ahead=self._forwards.takes_embeddings)
        self._inside = True

    def _begin_pass(self, *, takes_ahead: bool) -> None:
        """takes_ahead   the forward uses the features that a tower computed before it"""
        if not takes_ahead:
            self._forget_ahead()
        self._kept, self._ahead = self._ahead, _Kept()

    def _forget_ahead(self) -> None:
        self._ahead, self._images, self._towers = _Kept(), 0, {}

    def _see_pictures(self) -> None:
        """A forward that began as a step has pictures, so it is a pass."""
        self._forwards.is_pass()
        self._kept = _Kept()

    def _take_up_steps(self) -> None:
        """Drops steps that were cropped since the last one; all of them where this step continues another pass."""
        kept, start = (_Kept() if self._forwards.is_alone else self._kept), self._forwards.start
        kept.steps = {name: [*_before(start, steps)] for name, steps in kept.steps.items()}
        kept.regrouped = kept.regrouped or self._forwards.regrouped
        self._kept = kept

    def _end(self, _: nn.Module, output: Any) -> None:
        towers = self._towers
        self._inside, self._images, self._towers, self._given = False, 0, {}, ((), {})
        self._forwards.end(output)
        if output is None:
            self._kept = _Kept()  # it raised: an incomplete pass is dropped
            return
        self._check_images(towers)

    def _check_images(self, towers: Mapping[str, TowerRows]) -> None:
        """After all towers have run: did every image to keep appear?"""
        name = next(
            (name for name, tower in towers.items() if tower.sequences and name in self._wanted), None
        )
        patches = self._kept.patches
        missing = [image for image in self.images or () if name is not None and image not in patches]
        if missing:
            raise ValueError(f"{name}: image {missing[0]} does not exist; expected one of {sorted(patches)}")
        if name is not None and self.vision_tokens is not None:
            tokens = named_positions(self.vision_tokens, name)
            if tokens.ndim == 2:
                check_count(tokens, len(self._kept.pictures if self.images is None else self.images), name)
        for name, blocked in self._blocked.items():
            if name in towers and towers[name].sequences:
                masks.check_count(
                    name, len(blocked), pictures=len(self._kept.pictures), images=max(patches) + 1
                )

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
                self._forget_ahead()  # pictures embedded by hand, for no forward of the model
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
            self._inputs = {}  # a cache is among them, and must not be kept alive
            for tower in self._towers.values() if output is not None else ():
                tower.finish()
        if self._is_ahead:
            self._inside = self._is_ahead = False

    @property
    def _now(self) -> _Kept:
        """Where rows captured now are stored."""
        return self._ahead if self._is_ahead else self._kept

    def _store(self, name: str, rows: Tensor) -> None:
        if name.startswith("layer_"):
            self._now.rows[name] = [rows]
            self._now.steps[name] = []
        else:
            self._now.rows.setdefault(name, []).append(rows)  # towers that call once per image or window

    def _store_step(self, name: str, start: int, rows: Tensor) -> None:
        self._now.steps.setdefault(name, []).append(_Step(start, rows))

    def _store_piece(self, name: str, piece: Piece) -> None:
        self._now.pieces.setdefault(name, []).append(piece)

    # Towers that reorder or window their patches: which patch is where is the family's to say.
    def _sequences_of(self, name: str, call: Call) -> list[TowerSequence] | None:
        is_asked = name in self._wanted or name in self._blocked
        if not is_asked or not name.startswith("vision_layer_"):
            return None
        if name not in self._towers:
            index = int(name.removeprefix("vision_layer_"))
            sequences = self.family.tower_sequences(self._model.config, index, self._inputs)
            self._towers[name] = tower = TowerRows(name, sequences, first=self._images)
            now = self._now
            now.patches = (now.patches if self._images else {}) | tower.patches
            now.pictures = [image for image in now.pictures if image < self._images] + tower.pictures
        return self._towers[name].next(call)

    def _asks_for(self, name: str, sequence: TowerSequence) -> np.ndarray:
        """Bool[places]: which rows of a sequence are to be kept."""
        now = self._now
        images = self.images if self.images is not None else now.pictures
        kept = (sequence.patch >= 0) & np.isin(sequence.image, images)
        if self.vision_tokens is None:
            return kept
        asked = [
            (sequence.image == image)
            & np.isin(sequence.patch, self._patches_asked(name, at, now.patches[image]))
            for at, image in enumerate(images)
            if image in sequence.image
        ]
        return kept & np.any(asked, axis=0)

    def _patches_asked(self, name: str, at: int, count: int) -> Int[np.ndarray, " rows"]:
        """The patches of the at-th kept image, which has ``count``, whose rows are wanted, from the start."""
        if self.vision_tokens is None:
            return np.arange(count)
        tokens = named_positions(self.vision_tokens, name)
        if tokens.ndim == 2:
            if at >= len(tokens):  # how many images there are is known when all towers have run
                check_count(tokens, at + 1, name)
            tokens = tokens[at]
        return from_start(tokens, count, name).cpu().numpy()

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
                image_rows(
                    self._kept.pieces[name],
                    image,
                    self._patches_asked(name, at, patches[image]),
                    patches[image],
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
    """What was captured of one pass over a sequence, by the names of ``attention_weights``, and of the steps after it.

    patches    of each image of the pass that the pieces are of
    pictures   the images that are not overviews
    regrouped  why the steps are of other sequences than the pass; "" if they are not
    """

    rows: dict[str, list[Tensor]] = field(default_factory=dict)
    highest: dict[str, Tensor] = field(default_factory=dict)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    patches: dict[int, int] = field(default_factory=dict)
    pictures: list[int] = field(default_factory=list)
    steps: dict[str, list[_Step]] = field(default_factory=dict)
    regrouped: str = ""


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


def _before(start: int, steps: Sequence[_Step]) -> Iterator[_Step]:
    """Of steps, the rows of tokens before a place in the sequence."""
    for step in steps:
        left = start - step.start
        if left >= step.rows.shape[2]:
            yield step
        elif left > 0:
            yield _Step(step.start, step.rows[:, :, :left, :start])
