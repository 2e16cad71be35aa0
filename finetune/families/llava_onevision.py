"""LLaVA-OneVision (2024): one picture in tiles behind an overview of it; several as squares with margins.

A picture that is alone in its conversation is fitted into the best of some canvases of whole tiles (of 384 pixels, 27 ×
27 patches by SigLIP), black around it. The tokens of the tiles, joined to one grid, lose the rows or columns of the
margins, are pooled where they are too many, and get a newline token at each row's end; those of the overview (the
picture squeezed into one tile) come before them:

    768 × 500 pixels → 768 × 768, 2 × 2 tiles → 54 × 54 patches, 9 rows above and 9 below are margins
    → 729 of the overview, then 36 rows of 54 and a newline: 2,709 × <image>

Cells are the tokens of the tiles; the overview's tokens are of the same places, only coarser
(``ImageTokens.overview``). A newline is of no place: attention on it is in no map and in no share of the picture.

A video's frames are squeezed into one tile each, and their tokens pooled to half as many a side, rounded up, without a
newline but one after the last frame: 14 × 14 × <video> a frame, and one. They come to the tower in a call of their own,
after the pictures, and all videos of a batch as one array: they must have as many frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.families.base import (
    DECODER_LAYERS,
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ImageTokens,
    ModulePaths,
    ParameterCounts,
    Tiles,
    TowerSequence,
    restarting_positions,
)
from finetune.families.parts import film_strips, parameter_counts, tiles, tower
from finetune.families.parts.boxes import as_json, in_thousandths
from finetune.families.parts.chat import Chat, Picture, Piece, TurnByTurn, encode_conversation
from finetune.families.parts.processors import (
    chat_template,
    language_shape,
    required_settings,
    tower_shape,
    without_videos,
)
from finetune.families.parts.squares import square_tokens
from finetune.families.parts.tiles import Size, Tiling, squeezed_tokens
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Part, VideoRef
from finetune.samples.images import known_size, open_image
from finetune.samples.videos import open_frames

if TYPE_CHECKING:
    import torch

IGNORED = -100
IMAGE, VIDEO, IM_END, END_OF_TEXT = "<image>", "<video>", "<|im_end|>", "<|endoftext|>"


class LlavaOnevisionFamily:
    name = "llava-onevision"
    paths = ModulePaths(
        language=("model.language_model", "lm_head"),
        language_layers="model.language_model.layers",
        language_attention="self_attn",
        vision=("model.vision_tower",),
        vision_layers="model.vision_tower.encoder.layers",
        vision_attention="self_attn",
        connector=("model.multi_modal_projector", "model.image_newline"),
        connector_attention=None,
    )
    lora_targets = DECODER_LAYERS

    def matches(self, config: Any) -> bool:
        return (
            getattr(config, "model_type", None) == "llava_onevision"
            and config.vision_config.model_type == "siglip_vision_model"
            and config.text_config.model_type == "qwen2"
            and config.vision_feature_select_strategy == "full"
        )

    # --- conversations -----------------------------------------------------------------------------------
    def encode(
        self,
        processor: Any,
        conversation: Conversation,
        *,
        add_generation_prompt: bool = False,
        media: bool = True,
    ) -> Encoded:
        """Through the model's own chat template, which puts a turn's pictures, then its videos, before its words.
        The number of pictures in the conversation decides whether they are tiled, as in training."""
        refs = [ref for ref in conversation.media if isinstance(ref, ImageRef)]
        videos = [ref for ref in conversation.media if isinstance(ref, VideoRef)]
        _check_alike(videos)
        opened = [self.load_image(ref) for ref in refs] if media else []
        sizes = [one.size for one in opened] if media else [known_size(ref) for ref in refs]
        bounded = [tiles.bounded(processor, ref, size) for ref, size in zip(refs, sizes, strict=True)]
        tiling, alone = _of_processor(processor), len(refs) == 1
        counts = iter([_count(tiling, one, ref, alone) for one, ref in zip(bounded, refs, strict=True)])
        chat = encode_conversation(
            TurnByTurn(processor, IM_END),
            conversation,
            lambda part: [_piece(part, counts, tiling)],
            image_token=IMAGE,
            video_token=VIDEO,
            end_of_turn=IM_END,
            add_generation_prompt=add_generation_prompt,
        )
        if not media:
            return chat.encoded()
        frames = [open_frames(ref, self.load_image) for ref in videos]
        starts = _starts(processor, chat)
        stills = zip(starts[IMAGE], bounded, sizes, strict=True)
        films_at = zip(starts[VIDEO], videos, frames, strict=True)
        found = {
            ImageRef: iter([_tokens(tiling, at, new, old, alone) for at, new, old in stills]),
            VideoRef: iter([_strip(tiling, at, ref, its[0].size) for at, ref, its in films_at]),
        }
        return chat.encoded(
            images=(next(found[type(ref)]) for ref in conversation.media),
            media=(_pixels(processor, opened, bounded) if opened else {}) | _video_pixels(processor, frames),
        )

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        return tuple(processor.tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT]))

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """LlavaOnevisionProcessor without its video half, which asks for torchvision."""
        from transformers.models.auto.video_processing_auto import get_video_processor_config
        from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
            LlavaOnevisionImageProcessorPil,
        )

        tokenizer = load_tokenizer(name_or_path, **hub)
        settings, _ = processor_class().get_processor_dict(name_or_path, **hub)
        needed = ("num_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio")
        processor = processor_class()(
            LlavaOnevisionImageProcessorPil.from_pretrained(name_or_path, **hub),
            tokenizer,
            chat_template=chat_template(name_or_path, settings, tokenizer),
            **required_settings(name_or_path, {"vision_aspect_ratio": "anyres_max_9", **settings}, needed),
        )
        processor.videos = get_video_processor_config(name_or_path, **hub)
        return processor

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """Written as ``image_processor.max_pixels`` (``tiles.set_most_pixels``)."""
        tiles.set_most_pixels(processor, self.name, min_pixels=min_pixels, max_pixels=max_pixels)

    def ignored_elsewhere(self, processor: Any) -> str:
        """What other libraries ignore of the processor's settings."""
        return tiles.ignored_elsewhere(processor, self.name)

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """A square of one tile, its mean colour: overview, tile and newlines, so that all that a picture reaches is
        reached."""
        import torch

        tiling = _of_processor(processor)
        size = (tiling.pixels, tiling.pixels)
        count = tiles.layout(tiling, size).tokens
        ids = np.full(count, processor.tokenizer.convert_tokens_to_ids(IMAGE), dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(_tokens(tiling, 0, size, size, alone=True),),
            media={
                "pixel_values": torch.zeros(2, 3, *size),
                "image_sizes": torch.tensor([size]),
                "batch_num_images": torch.tensor([1]),
            },
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [1, tokens]: each sample's tokens counted from 0, by which transformers tells them apart."""
        return {"position_ids": restarting_positions(samples)[None]}

    # --- configuration alone -----------------------------------------------------------------------------
    def not_read(self, config: Any) -> tuple[str, ...]:
        """SigLIP's norm and pooling, behind the layer that is read."""
        return tower.not_read(self.paths, config, "post_layernorm", "head")

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        """A picture's overview, then its tiles, row by row, joined to the grid of its canvas: margins have patches too,
        though no cells. In a call after it a video's frames, joined to a strip: pictures are numbered first."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        pictures, videos = _of_pass(config, inputs)
        here = videos if videos and (inputs.get("images_before") or not pictures) else pictures
        return tower.tiled(here, (side, side), overview_first=True, images=len(pictures) + len(videos))

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            return language_shape(config.text_config)
        return tower_shape(config.vision_config, "patches at patches of their tile")

    def parameter_counts(self, config: Any) -> ParameterCounts:
        return parameter_counts.llava(
            config, parameter_counts.siglip_tower(config.vision_config), newline=True
        )

    def image_arithmetic(
        self, config: Any, size_pixels: Size, settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        """Of a picture that is alone in its conversation."""
        most = _most_tiles(config.vision_aspect_ratio)
        return tiles.arithmetic(replace(tiles.of_config(config), most_tiles=most), size_pixels, settings)


def processor_class() -> Any:
    """transformers' processor without video support; created on first use."""
    from transformers import LlavaOnevisionProcessor

    return without_videos(LlavaOnevisionProcessor)


# ---------------------------------------------------------------------------------------------------------------------
# Tiles
# ---------------------------------------------------------------------------------------------------------------------


def _tokens(tiling: Tiling, start: int, bounded: Size, size: Size, alone: bool) -> ImageTokens:
    """Cells of a picture of (width, height) pixels, which the model gets scaled down to ``bounded``."""
    if alone:
        return tiles.picture_tokens(tiling, start, bounded, size)
    return square_tokens(start, tiling.side, size, edges=tiles.tile_edges(tiling, 1) / tiling.pixels)


def _strip(tiling: Tiling, start: int, ref: VideoRef, size: Size) -> ImageTokens:
    """A video of frames of (width, height) pixels, from ``start`` on."""
    side = _pooled(tiling)
    edges = np.interp(
        np.linspace(0, tiling.side, side + 1), np.arange(tiling.side + 1), tiles.tile_edges(tiling, 1)
    )
    return film_strips.strip(
        [
            squeezed_tokens(start + at * side**2, side, size, edges=edges / tiling.pixels)
            for at in range(len(ref.seconds))
        ],
        ref.seconds,
    )


def _pooled(tiling: Tiling) -> int:
    """Tokens a side of a frame."""
    return math.ceil(tiling.side / 2)


def _check_alike(videos: Sequence[VideoRef]) -> None:
    frames = [len(ref.seconds) for ref in videos]
    if len(set(frames)) > 1:
        raise ValueError(
            f"found videos of {min(frames)} and of {max(frames)} frames, expected as many of each: the model takes "
            "them as one array; give their frames as pictures, as many of each"
        )


def _starts(processor: Any, chat: Chat) -> dict[str, list[int]]:
    """Where pictures and where videos begin: a turn may have them in another order than its template."""
    found: dict[str, list[int]] = {IMAGE: [], VIDEO: []}
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    for start in chat.image_starts:
        found[IMAGE if chat.input_ids[start] == image else VIDEO].append(start)
    return found


def _of_pass(config: Any, inputs: Mapping[str, Any]) -> tuple[Sequence[Tiles | None], Sequence[Tiles | None]]:
    """The tiles of a pass's pictures and of its videos, as given by ``tiles``, or by the model's inputs."""
    if "tiles" in inputs:
        given = inputs["tiles"]
        videos = [one for one in given if one is not None and len(one) == 1]
        return [one for one in given if one is None or len(one) == 2], videos
    films_given = inputs.get("pixel_values_videos")
    videos = [] if films_given is None else [(films_given.shape[1],)] * films_given.shape[0]
    if videos and inputs.get("pixel_values") is None:
        return [], videos
    return tiles.tiles_of_pass(config, inputs, len(inputs["inputs_embeds"])), videos


def _count(tiling: Tiling, size: Size, ref: ImageRef, alone: bool) -> int:
    """Tokens of one picture. Of several, each is a square of one tile and a newline."""
    return tiles.count(tiling, size, ref) if alone else tiling.side**2 + 1


def _of_processor(processor: Any) -> Tiling:
    size = processor.image_processor.size
    return Tiling(
        size["shortest_edge"] or size["height"],
        math.isqrt(processor.num_image_tokens),
        processor.image_processor.image_grid_pinpoints,
        _most_tiles(processor.vision_aspect_ratio),
    )


def _most_tiles(aspect_ratio: str) -> int:
    """9 in "anyres_max_9"."""
    return int(aspect_ratio.removeprefix("anyres_max_"))


def _piece(part: Part, counts: Iterator[int], tiling: Tiling) -> Piece:
    """The publication does not say how the model writes boxes: they are JSON, in thousandths of the picture.

    counts   tokens of each picture, in order
    """
    if isinstance(part, ImageRef):
        return Picture(next(counts))
    if isinstance(part, VideoRef):
        return Picture(len(part.seconds) * _pooled(tiling) ** 2 + 1, "video")
    if isinstance(part, BoxRef):
        return as_json(part, [in_thousandths(box) for box in part.boxes])
    return part


def _pixels(processor: Any, opened: Sequence[Any], bounded: Sequence[Size]) -> dict[str, torch.Tensor]:
    """``pixel_values`` Float[overviews and tiles, 3, pixels, pixels], ``image_sizes`` Int[pictures, 2] (height, width),
    ``batch_num_images`` Int[1]."""
    import torch

    scaled = tiles.resized(processor, opened, bounded)
    # A list in a list is one conversation: then several pictures are not tiled.
    found = processor.image_processor([scaled], return_tensors="pt")
    return {
        "pixel_values": torch.cat(list(found["pixel_values"])),
        "image_sizes": torch.as_tensor(found["image_sizes"]),
        "batch_num_images": torch.tensor([len(scaled)]),
    }


def _video_pixels(processor: Any, frames: Sequence[Sequence[Any]]) -> dict[str, torch.Tensor]:
    """``pixel_values_videos`` Float[videos, frames, 3, pixels, pixels]; ``frames``: those of each video."""
    import torch

    if not frames:
        return {}
    side = _of_processor(processor).pixels
    return {
        "pixel_values_videos": torch.stack(
            [film_strips.pixels(processor, one, [(side, side)]) for one in frames]
        )
    }
