"""LLaVA-NeXT (LLaVA-1.6, 2024): every picture in tiles behind an overview of it; Vicuna, Mistral, Llama 3 or Qwen.

A picture is fitted into the best of some canvases of whole tiles (of 336 pixels, 24 × 24 patches by CLIP, its class
token left out), black around it. The tokens of the tiles, joined to one grid, lose the rows or columns of the margins,
and get a newline token at each row's end; those of the overview (the picture squeezed into one tile) come before them:

    1000 × 700 pixels → 672 × 672, 2 × 2 tiles → 48 × 48 patches, 7 rows above and 7 below are margins
    → 576 of the overview, then 34 rows of 48 and a newline: 2,242 × <image>

Cells are the tokens of the tiles; the overview's tokens are of the same places, only coarser
(``ImageTokens.overview``). A newline is of no place: attention on it is in no map and in no share of the picture.
Chats are those of the language model, by the checkpoint's own template; boxes are written as in LLaVA-1.5's data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.families.base import (
    DECODER_LAYERS,
    AttentionShape,
    Encoded,
    ImageArithmetic,
    ModulePaths,
    ParameterCounts,
    TowerSequence,
    restarting_positions,
)
from finetune.families.parts import parameter_counts, tiles, tower
from finetune.families.parts.boxes import written_boxes
from finetune.families.parts.chat import Picture, Piece, TurnByTurn, encode_conversation, end_of_answers
from finetune.families.parts.processors import chat_template, language_shape, required_settings, tower_shape
from finetune.families.parts.tiles import Size, Tiling
from finetune.families.parts.tokenizer import load_tokenizer
from finetune.samples.conversation import BoxRef, Conversation, ImageRef
from finetune.samples.images import known_size, open_image

if TYPE_CHECKING:
    import torch

IGNORED = -100
IMAGE = "<image>"


class LlavaNextFamily:
    name = "llava-next"
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
        """CLIP before Llama (Vicuna among them), Mistral or Qwen2, a token for each patch."""
        return (
            getattr(config, "model_type", None) == "llava_next"
            and config.vision_config.model_type == "clip_vision_model"
            and config.text_config.model_type in ("llama", "mistral", "qwen2")
            and config.vision_feature_select_strategy == "default"
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
        """Through the model's own chat template, which puts the pictures of a turn before its words. All pictures are
        tiled, also several. With ``media=False`` pictures' headers tell their sizes."""
        refs = conversation.images
        opened = [self.load_image(ref) for ref in refs] if media else []
        sizes = [one.size for one in opened] if media else [known_size(ref) for ref in refs]
        bounded = [tiles.bounded(processor, ref, size) for ref, size in zip(refs, sizes, strict=True)]
        tiling, end = _of_processor(processor), end_of_answers(processor)
        counts = iter([tiles.count(tiling, one, ref) for one, ref in zip(bounded, refs, strict=True)])
        chat = encode_conversation(
            TurnByTurn(processor, end),
            conversation,
            lambda part: [_piece(part, sizes, counts)],
            image_token=IMAGE,
            end_of_turn=end,
            add_generation_prompt=add_generation_prompt,
        )
        places = zip(chat.image_starts, bounded, sizes, strict=True)
        return chat.encoded(
            images=(tiles.picture_tokens(tiling, at, new, old) for at, new, old in places) if media else (),
            media=_pixels(processor, opened, bounded) if opened else {},
        )

    def load_image(self, ref: ImageRef) -> Any:
        return open_image(ref.path if ref.data is None else ref)

    def stop_token_ids(self, processor: Any) -> tuple[int, ...]:
        tokenizer = processor.tokenizer
        end = tokenizer.convert_tokens_to_ids(end_of_answers(processor))
        return tuple(dict.fromkeys((end, tokenizer.eos_token_id)))

    # --- processor ---------------------------------------------------------------------------------------
    def load_processor(self, name_or_path: str, **hub: Any) -> Any:
        """LlavaNextProcessor, resizing with Pillow whatever is installed."""
        from transformers import LlavaNextProcessor
        from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

        tokenizer = load_tokenizer(name_or_path, **hub)
        settings, _ = LlavaNextProcessor.get_processor_dict(name_or_path, **hub)
        needed = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
        return LlavaNextProcessor(
            LlavaNextImageProcessorPil.from_pretrained(name_or_path, **hub),
            tokenizer,
            chat_template=chat_template(name_or_path, settings, tokenizer),
            **required_settings(name_or_path, settings, needed),
        )

    def set_pixel_budget(self, processor: Any, *, min_pixels: int | None, max_pixels: int | None) -> None:
        """Written as ``image_processor.max_pixels`` (``tiles.set_most_pixels``)."""
        tiles.set_most_pixels(processor, self.name, min_pixels=min_pixels, max_pixels=max_pixels)

    def ignored_elsewhere(self, processor: Any) -> str:
        """What other libraries ignore of the processor's settings."""
        return tiles.ignored_elsewhere(processor, self.name)

    # --- rows --------------------------------------------------------------------------------------------
    def blank(self, processor: Any) -> Encoded:
        """A square of one tile's pixels, its mean colour, on the canvas that it gets: overview, tiles and newlines, so
        that all that a picture reaches is reached."""
        import torch

        tiling = _of_processor(processor)
        size = (tiling.pixels, tiling.pixels)
        found = tiles.layout(tiling, size)
        ids = np.full(found.tokens, processor.tokenizer.convert_tokens_to_ids(IMAGE), dtype=np.int64)
        return Encoded(
            input_ids=ids,
            labels=np.full_like(ids, IGNORED),
            turn_spans=(),
            images=(tiles.picture_tokens(tiling, 0, size, size),),
            media={
                "pixel_values": torch.zeros(1 + found.tiles[0] * found.tiles[1], 3, *size),
                "image_sizes": torch.tensor([size]),
            },
        )

    def packed(self, config: Any, samples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        """``position_ids`` [1, tokens]: each sample's tokens counted from 0, by which transformers tells them apart."""
        return {"position_ids": restarting_positions(samples)[None]}

    # --- configuration alone -----------------------------------------------------------------------------
    def not_read(self, config: Any) -> tuple[str, ...]:
        """CLIP's last layers, and its norm of the class token."""
        return tower.not_read(self.paths, config, "post_layernorm")

    def tower_sequences(
        self, config: Any, layer: int, inputs: Mapping[str, Any]
    ) -> list[TowerSequence] | None:
        """A class token and the patches of one tile: a picture's overview, then its tiles, row by row, joined to the
        grid of its canvas: margins have patches too, though no cells."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        of_pictures = tiles.tiles_of_pass(config, inputs, len(inputs["inputs_embeds"]))
        return tower.tiled(of_pictures, (side, side), overview_first=True, class_tokens=1)

    def attention_shape(self, config: Any, name: str) -> AttentionShape:
        if name.startswith("layer_"):
            return language_shape(config.text_config)
        return tower_shape(config.vision_config, "patches at patches of their tile, and a class token")

    def parameter_counts(self, config: Any) -> ParameterCounts:
        return parameter_counts.llava(config, parameter_counts.clip_tower(config.vision_config), newline=True)

    def image_arithmetic(
        self, config: Any, size_pixels: Size, settings: Mapping[str, Any] | None = None
    ) -> ImageArithmetic:
        return tiles.arithmetic(tiles.of_config(config), size_pixels, settings)


def _of_processor(processor: Any) -> Tiling:
    size = processor.image_processor.size
    pixels = size["shortest_edge"] or size["height"]
    return Tiling(pixels, pixels // processor.patch_size, processor.image_processor.image_grid_pinpoints)


def _piece(part: Any, sizes: Sequence[Size], counts: Iterator[int]) -> Piece:
    if isinstance(part, ImageRef):
        return Picture(next(counts))
    return written_boxes(part, sizes[part.image]) if isinstance(part, BoxRef) else part


def _pixels(processor: Any, opened: Sequence[Any], bounded: Sequence[Size]) -> dict[str, torch.Tensor]:
    """``pixel_values`` Float[overviews and tiles of all, 3, pixels, pixels], ``image_sizes`` Int[pictures, 2] (height,
    width)."""
    import torch

    found = [
        processor.image_processor(one, return_tensors="pt")
        for one in tiles.resized(processor, opened, bounded)
    ]
    return {
        "pixel_values": torch.cat([one["pixel_values"][0] for one in found]),
        "image_sizes": torch.cat([torch.as_tensor(one["image_sizes"]) for one in found]),
    }
