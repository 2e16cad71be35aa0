"""The interface of a model family: its parts, how it encodes a conversation, where its image tokens are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from finetune.image_arithmetic import ImageArithmetic

if TYPE_CHECKING:
    import torch

    from finetune.samples.conversation import Conversation, ImageRef

IGNORED = -100
Size = tuple[int, int]  # width, height in pixels
Tiles = tuple[int, int] | tuple[int]  # rows and columns; or the frames of a video


@dataclass(frozen=True)
class ModulePaths:
    """Dotted names of a family's parts inside the bare (not PEFT-wrapped) model.

    ``language_layers`` and ``vision_layers`` are ModuleLists; ``*_attention`` is the attribute, inside one
    layer, of the module that calls the attention interface. ``connector_attention`` is the full dotted name of
    the cross-attention of a resampler, or None if the connector has no attention.
    """

    language: tuple[str, ...]
    language_layers: str
    language_attention: str
    vision: tuple[str, ...]
    vision_layers: str
    vision_attention: str
    connector: tuple[str, ...]
    connector_attention: str | None
    never_trained: tuple[str, ...] = ()  # parameters that are tables, not weights (fixed position tables)


@dataclass(frozen=True)
class ImageTokens:
    """Where one image lies in the token sequence and which pixels of the original image each cell stands for.

    A video is a film strip: an image that has its frames one below another, each frame one step of the model's time
    (Qwen merges two pictures of the file into one, other families none). So whatever is true of an image's map is true
    of a video's.

    positions           Int[tokens]: index in the sequence of each of the image's tokens, in order
    grid                (rows, columns) of cells
    cell_boxes_pixels   Float[rows * columns, 4]: x0 y0 x1 y1 of each cell, row-major, in original pixels
    image_size_pixels   (width, height) of the original image
    through_connector   True: tokens are a resampler's queries, cells are patches, and a row over tokens becomes
                        a row over cells by composing it with the connector's attention [tokens, cells].
                        False: token i is cell i.
    seconds             of a video: when each of its frames is shown; () for an image
    overview            the coarser tokens of the same picture, where it is read in tiles and once more as a whole:
                        positions, grid and boxes of their own, never through a connector. They are no cells; what
                        attention lies on them is spread over the cells under them (``diagnostics.measures.geometry``)
    tiles               (rows, columns) of the tiles that the tower reads it in, beside the overview; (frames,) of a
                        video whose frames it reads as pictures, without an overview; None: as one
    margin_positions    Int[tokens]: of a picture padded to a square, the tokens that show nothing but margins. They are
                        no cells, but the tower may have mixed the picture into them
    """

    positions: np.ndarray
    grid: tuple[int, int]
    cell_boxes_pixels: np.ndarray
    image_size_pixels: tuple[int, int]
    through_connector: bool
    seconds: tuple[float, ...] = ()
    overview: ImageTokens | None = None
    tiles: Tiles | None = None
    margin_positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def frames(self) -> int:
        """Of a video; 1 for an image."""
        return max(len(self.seconds), 1)

    def frame(self, index: int) -> ImageTokens:
        """One frame of a video as an image of its own. Raises IndexError for a frame that it does not have."""
        if not 0 <= index < self.frames:
            raise IndexError(f"frame {index}: found a video of {self.frames} frames, counted from 0")
        rows, columns = self.grid[0] // self.frames, self.grid[1]
        width, height = self.image_size_pixels[0], self.image_size_pixels[1] // self.frames
        own = slice(index * rows * columns, (index + 1) * rows * columns)
        return ImageTokens(
            positions=self.positions[own],
            grid=(rows, columns),
            cell_boxes_pixels=self.cell_boxes_pixels[own] - np.array([0, height, 0, height]) * index,
            image_size_pixels=(width, height),
            through_connector=self.through_connector,
        )

    @property
    def all_positions(self) -> np.ndarray:
        """Int[all tokens]: ``positions``, then the overview's. Newlines, marks and margins, of no place, are not among
        them."""
        if self.overview is None:
            return self.positions
        return np.concatenate([self.positions, self.overview.positions])


@dataclass(frozen=True)
class Encoded:
    """A conversation as the model reads it.

    input_ids      Int[tokens]
    labels         Int[tokens], -100 where not trained on
    turn_spans     for each turn, (start, end) of its content's tokens (role header and terminator excluded)
    images         one ImageTokens for each image and video, in order
    media          tensors that the collator concatenates on their first axis (pixel_values, ...)
    per_token      further Int[tokens] arrays that go with the ids (mm_token_type_ids); padded with 0
    """

    input_ids: np.ndarray
    labels: np.ndarray
    turn_spans: tuple[tuple[int, int], ...]
    images: tuple[ImageTokens, ...] = ()
    media: Mapping[str, torch.Tensor] = field(default_factory=dict)
    per_token: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionShape:
    """What one attention module is.

    heads        query heads
    key_heads    key and value heads: fewer than ``heads`` where they are shared (grouped queries)
    head_width   numbers in a head's query or key
    looks        which positions attend to which, in words: "tokens at tokens before them"
    """

    heads: int
    key_heads: int
    head_width: int
    looks: str


class ParameterCounts(NamedTuple):
    """Of a model: parameters by the dotted name of a module or parameter, and how many layers its two stacks have."""

    by_module: Mapping[str, int]
    language_layers: int
    vision_layers: int


@dataclass(frozen=True)
class TowerSequence:
    """One sequence within which a layer of the tower attends.

    image         Int[places]: which of the pass's images each place belongs to
    patch         Int[places]: which patch of that image, row-major in its grid (frame by frame in a video); −1: none
    is_overview   of a picture that is read in tiles too
    """

    image: np.ndarray
    patch: np.ndarray
    is_overview: bool = False

    def __len__(self) -> int:
        return len(self.patch)


ATTENTION_LAYERS: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD_LAYERS: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
DECODER_LAYERS = ATTENTION_LAYERS + FEED_FORWARD_LAYERS
"""The linear modules of a decoder layer, as transformers calls them since Llama."""


class Family(Protocol):
    """The questions that the rest of the project asks of a family; one implementation is one file."""

    name: str
    paths: ModulePaths
    lora_targets: tuple[str, ...]  # default suffixes of LoRA targets, inside ``paths.language`` only

    def matches(self, config: Any) -> bool:
        """Is this configuration of this family? Decided by what it says, never by a path or a name."""

    def encode(
        self,
        processor: Any,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        media: bool = True,
    ) -> Encoded:
        """Read one conversation; with ``add_generation_prompt`` it ends where an answer would begin.

        Boxes are written as the family was trained on them, for the picture as it is after the family's resize.
        ``media=False`` opens no picture, at most its header, and gives ids, labels and spans only: for counting
        tokens.
        """

    def load_image(self, ref: ImageRef) -> Any:
        """Open one image as the family does (a PIL image), with an error that names it."""

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        """Tokens at which an answer ends."""

    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """The processor of a checkpoint, from a folder or a hub name.

        hub   ``cache_dir``, ``revision`` and the like
        """

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """Write the least and most pixels of a picture into the processor, the only place that is read.

        Raises ValueError if the family's pictures all have one size, or where the budget is impossible.
        """

    def blank(self, processor: Any) -> Encoded:
        """The shortest token sequence with one picture, no label trained.

        It goes to the end of a row that has no picture, so that every process computes the same modules;
        nothing before it can attend to it.
        """

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """What a model needs beside ids and media so that samples in one row do not see each other.

        samples   the row's samples, in order
        Returns tensors with a batch axis of 1 (position_ids, ...); they replace ``attention_mask``. The call must
        say ``use_cache=False``: where there is a cache, transformers does not look for samples in a row.
        """

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        """The sequences within which a layer of the vision tower attends, in the order in which it is called.

        inputs   what the forwards of the model and of the tower (the module above its layers) were given, by their
                 parameters' names, the tower's where both have one; before a model's forward, the tower's alone.
                 ``tiles``, where it is known: of each image of the pass, as in ``ImageTokens``. ``images_before``: how
                 many images earlier calls of the tower in this pass had (pictures in one, videos in another)
        None: one sequence an image, whose places are its patches, row-major. Images are numbered from 0 in each call;
        overviews from the number of images that the whole pass has.

        Raises ValueError if the inputs do not tell which tiles make which picture.
        """

    def attention_shape(self, config: Any, name: str) -> AttentionShape | None:
        """Of the module ``layer_N``, ``visual_attn`` or ``vision_layer_N``; None: the layer has no attention map
        (linear attention)."""

    def image_arithmetic(
        self, config: Any, size_pixels: tuple[int, int], settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        """The preprocessing of a picture of (width, height) pixels, without a processor.

        settings   of the checkpoint's image processor, as its file has them (``parts.processors.picture_settings``);
                   None: not known, so that where they decide, the published ones are taken, and the words say so
        """


@runtime_checkable
class TowerApart(Protocol):
    """A family whose vision tower can run before the rest of the model."""

    def tower_states(self, model: Any, media: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the tower makes of pictures, under the name by which the model (a bare one) takes it in their place. The
        first axis is that of the media: a sample's pictures can be cut out of a batch's."""


def encode_for_training(
    family: Family, processor: Any, conversation: Conversation, *, media: bool = True
) -> Encoded:
    """``Family.encode``, with the labels of answers that are not trained (``Turn.trained``) masked: the content of the
    answer and the token that ends it.
    """
    encoded = family.encode(processor, conversation, media=media)
    if all(turn.trained for turn in conversation.turns):
        return encoded
    labels = encoded.labels.copy()
    for turn, (start, end) in zip(conversation.turns, encoded.turn_spans, strict=True):
        if not turn.trained:
            labels[start : end + 1] = IGNORED
    return replace(encoded, labels=labels)


SHARED_SHOWN = 3  # <|im_start|>assistant\n


class OtherContext(NamedTuple):
    """A trained answer that is learned in another context than it is generated in.

    turn      its number
    learned   the last tokens before it as it is learned: those that differ, after a few that do not
    prompt    and in the prompt from which it is generated
    """

    turn: int
    learned: np.ndarray
    prompt: np.ndarray


def learned_elsewhere(family: Family, processor: Any, conversation: Conversation) -> Iterator[OtherContext]:
    """The trained answers whose context is not the prompt from which they are generated. No picture is opened.

    Some chat templates write an answer otherwise where the conversation goes on: Qwen3.5's leaves out the empty thought
    that ends every prompt.
    """
    encoded = family.encode(processor, conversation, media=False)
    for index, (turn, (start, _)) in enumerate(zip(conversation.turns, encoded.turn_spans, strict=True)):
        if turn.role != "assistant" or not turn.trained or index == 0:
            continue
        before = replace(conversation, turns=conversation.turns[:index])
        prompt = family.encode(processor, before, add_generation_prompt=True, media=False).input_ids
        learned = encoded.input_ids[:start]
        if not np.array_equal(learned, prompt):
            shared = min(len(learned), len(prompt))
            unlike = np.flatnonzero(learned[:shared] != prompt[:shared])
            at = max((int(unlike[0]) if len(unlike) else shared) - SHARED_SHOWN, 0)
            yield OtherContext(index, learned[at:], prompt[at:])


def parameter_counts(family: Family, config: Any) -> ParameterCounts | None:
    """Of the model that a configuration describes, without building it; None where the family does not count.

    Raises AttributeError for a value that the configuration leaves out, LookupError for one that is not counted.
    """
    own = getattr(family, "parameter_counts", None)  # optional, as ``looks_ahead`` is
    return None if own is None else own(config)


def ignored_elsewhere(family: Family, processor: Any) -> str:
    """A sentence on what other libraries ignore of a processor's settings, so that they read pictures otherwise; "" if
    nothing."""
    own = getattr(family, "ignored_elsewhere", None)  # optional, as ``looks_ahead`` is
    return "" if own is None else own(processor)


def image_places(family: Family, processor: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Where a picture's tokens are, told from ids alone, so that no picture need be opened.

    Returns Int[tokens] → Bool[tokens]. In most families one id stands in every place (and in some in a frame's too);
    Qwen-VL of 2023 writes the picture's path into them, and says so itself.
    """
    own = getattr(family, "image_places", None)  # optional, as ``looks_ahead`` is
    if own is not None:
        return functools.partial(own, processor)
    blank = family.blank(processor)
    slot = blank.input_ids[blank.images[0].positions[0]]
    return lambda input_ids: input_ids == slot


def not_read(family: Family, config: Any) -> tuple[str, ...]:
    """Dotted paths of what a model of this configuration holds and never reads: nothing there can learn."""
    own = getattr(family, "not_read", None)  # optional, as ``looks_ahead`` is
    return () if own is None else own(config)


def flash_fault(family: Family) -> str:
    """Why flash kernels would change what a family computes; "" if they do not. They are given no mask, so every
    token sees exactly those before it, without a warning from transformers."""
    # Few families differ here, so this is an optional attribute and not a question of the Protocol.
    ahead = getattr(family, "looks_ahead", "")
    return f"{family.name}: {ahead}, which flash kernels cannot do" if ahead else ""


def reads_prompts_whole(family: Family) -> bool:
    """Do all tokens of a prompt see all others, so that its pictures cannot be read before its question?"""
    return bool(getattr(family, "reads_prompts_whole", False))  # optional, as ``looks_ahead`` is


def restarting_positions(samples: Sequence[Encoded]) -> torch.Tensor:
    """Int64[tokens of the row]: each sample's tokens counted from 0. Samples of 3 and 2: [0, 1, 2, 0, 1]."""
    import torch

    return torch.cat([torch.arange(len(one.input_ids)) for one in samples])


def joined_media(samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The media of a batch's samples, each joined on its first axis in their order.

    Raises ValueError if a model takes videos as one array (LLaVA-OneVision) and they have different numbers of
    frames.
    """
    import torch

    joined = {}
    for name in sorted({name for one in samples for name in one.media}):
        found = [one.media[name] for one in samples if name in one.media]
        frames = sorted({one.shape[1] for one in found}) if name == "pixel_values_videos" else []
        if len(frames) > 1 and found[0].ndim == 5:
            raise ValueError(
                f"found videos of {frames[0]} and of {frames[-1]} frames in one batch, expected as many of each: the "
                "model takes them as one array; put one sample in a batch (--per_device_train_batch_size 1, "
                "--per_device_eval_batch_size 1, no --packing), or give every video as many frames"
            )
        joined[name] = torch.cat(found)
    return joined
