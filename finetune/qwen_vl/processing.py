"""QwenVLProcessor: text and pictures → model inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import cached_file

from finetune.files import write_atomically
from finetune.qwen_vl.batching import Fitting, Row
from finetune.qwen_vl.configuration import QwenVLConfig
from finetune.qwen_vl.images import OPTIONS as IMAGE_OPTIONS
from finetune.qwen_vl.images import ImageSource, QwenVLImageProcessor
from finetune.qwen_vl.options import check_options, check_variables, refuse
from finetune.qwen_vl.rendering import flattened, render, unmarked, written
from finetune.qwen_vl.tokenization import QwenVLTokenizer

_HUB_OPTIONS = (
    "cache_dir", "revision", "token", "local_files_only", "force_download", "proxies", "subfolder",
)  # fmt: skip
# Options that the Auto classes pass on, without effect here: there is no remote code and no other backend.
_AUTO_OPTIONS = ("trust_remote_code", "code_revision", "use_fast", "backend", "_from_auto", "_commit_hash")
_IMAGE_SETTINGS = (
    "image_size", "patch_size", "image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize",
)  # fmt: skip
_TOKENIZER_SETTINGS = (
    "image_tokens", "errors", "padding_side", "truncation_side", "model_max_length", "eos_token", "pad_token",
    "bos_token", "unk_token", "cls_token", "sep_token", "mask_token", "chat_template", "clean_up_tokenization_spaces",
)  # fmt: skip
_TEXT_OPTIONS = (
    "padding", "truncation", "max_length", "pad_to_multiple_of", "padding_side", "truncation_side",
    "return_attention_mask", "add_special_tokens", "return_tensors", "verbose",
)  # fmt: skip
_UNMET_TEXT_OPTIONS = (
    "stride", "return_overflowing_tokens", "return_offsets_mapping", "return_special_tokens_mask", "return_length",
    "return_token_type_ids", "return_mm_token_type_ids", "return_text_replacement_offsets", "split_special_tokens",
    "is_split_into_words", "text_pair", "text_target", "text_pair_target",
)  # fmt: skip
# Video options: general scripts pass them to every processor; without a video they have no effect.
_FILM_OPTIONS = ("num_frames", "fps", "do_sample_frames")
_BATCH_OPTIONS = {"padding", "return_tensors", "text_kwargs"}
_CALL_OPTIONS = (
    *_TEXT_OPTIONS, *IMAGE_OPTIONS, *_FILM_OPTIONS, "images", "text_kwargs", "images_kwargs", "common_kwargs",
)  # fmt: skip
_CHAT_OPTIONS = (
    "chat_template", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "return_assistant_tokens_mask", "tokenize", "return_tensors", "return_dict", "processor_kwargs",
)  # fmt: skip


class RenderedChat(str):
    """A chat as text, with the pictures of its messages that have no path.

    Compares equal to the text with or without marks; slicing or joining gives an ordinary string that keeps its marks.
    """

    images: tuple[ImageSource | None, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and (str.__eq__(self, other) or unmarked(self) == str(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class QwenVLProcessor(ProcessorMixin):
    """Tokenizer and image processor in one.

    ``processor(text="Picture 1: <img>a.png</img>\\nWhat is this?")`` opens ``a.png``;
    ``processor(text="<img></img>What is this?", images=[picture])`` takes the pictures given, in order.
    The text is rendered text: ``<|im_start|>`` in it is a control token, as in every processor of transformers. User
    input belongs in the messages of :meth:`apply_chat_template`, where it stays plain text.
    """

    def __init__(
        self,
        image_processor: QwenVLImageProcessor,
        tokenizer: QwenVLTokenizer,
        chat_template: str | None = None,
        **unknown: Any,
    ) -> None:
        check_options("QwenVLProcessor", unknown, ("image_processor", "tokenizer", "chat_template"))
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template if chat_template is None else chat_template

    def __setattr__(self, name: str, value: Any) -> None:
        """Keeps the chat template in sync with the tokenizer's, whichever renders or is saved."""
        super().__setattr__(name, value)
        if name == "chat_template":
            self.tokenizer.chat_template = value

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    # --- load and save -----------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> QwenVLProcessor:
        """From a folder or hub name: a saved processor, or a published checkpoint, which has none.

        Settings that a published checkpoint lacks (image size, slots per image) come from its ``config.json``. Further
        options are settings of the tokenizer (``padding_side="left"``) or of the image processor.

        Raises TypeError for an option that is neither, ValueError if the folder holds no Qwen-VL.
        """
        parts = {key: kwargs.pop(key, None) for key in cls.get_attributes()}
        known = (*_HUB_OPTIONS, *_AUTO_OPTIONS, *_IMAGE_SETTINGS, *_TOKENIZER_SETTINGS)
        check_options(f"{cls.__name__}.from_pretrained", _without(kwargs, known), known)
        name = os.fspath(pretrained_model_name_or_path)
        hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
        saved = _read_json(name, "preprocessor_config.json", hub)
        old_template = _read_json(name, "chat_template.json", hub) or {}
        tokenizer_settings = {key: kwargs[key] for key in _TOKENIZER_SETTINGS if key in kwargs}
        tokenizer_settings = {**old_template, **tokenizer_settings}
        if saved is None:
            config = _read_json(name, "config.json", hub)
            if config is None:
                raise ValueError(
                    f"{name}: found neither preprocessor_config.json nor config.json of a Qwen-VL"
                )
            visual = QwenVLConfig.from_dict({**config, "_name_or_path": name}).visual
            saved = {"image_size": visual["image_size"], "patch_size": visual["patch_size"]}
            tokenizer_settings = {"image_tokens": visual["n_queries"], **tokenizer_settings}
        image_settings = {key: kwargs[key] for key in _IMAGE_SETTINGS if key in kwargs}
        image_processor = parts["image_processor"] or QwenVLImageProcessor.from_dict(
            {**saved, **image_settings}
        )
        tokenizer = parts["tokenizer"] or QwenVLTokenizer.from_pretrained(name, **hub, **tokenizer_settings)
        return cls(image_processor, tokenizer)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **_: Any
    ) -> list[str]:
        """Saves tokenizer, image processor and chat template to a folder, for the Auto classes."""
        refuse("save_pretrained", {"push_to_hub": push_to_hub}, "save first, then call processor.push_to_hub")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer._set_processor_class(type(self).__name__)
        self.tokenizer.chat_template = self.chat_template  # saved with the tokenizer
        self.tokenizer.save_pretrained(folder)
        settings = self.image_processor.to_dict() | {"processor_class": type(self).__name__}
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / "preprocessor_config.json", text.encode())
        return [str(path) for path in folder.iterdir()]

    # --- text and images ---------------------------------------------------------------------------------
    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **options: Any,
    ) -> BatchFeature:
        """``input_ids``, ``attention_mask`` [batch, tokens] and ``pixel_values`` [images, 3, size, size].

        images    one, a list in the order of the text's ``<img>…</img>``, or such a list for each text. Without it, the
                  paths between the tags are opened.
        options   text: padding (True), padding_side, pad_to_multiple_of, truncation, truncation_side, max_length,
                  return_attention_mask, return_tensors ("pt"), also in ``text_kwargs``; ``images_kwargs`` are options
                  of the image processor

        Raises ValueError if the numbers of ``<img>…</img>`` and of images differ, an image cannot be read, or
        truncation would cut one; TypeError for an unknown option.
        """
        refuse("QwenVLProcessor", {"videos": videos, "audio": audio}, "Qwen-VL reads text and images")
        text_options, image_options = _sorted_options(options)
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts and images is None:
            raise ValueError("expected text, images or both")
        if not texts:
            return self.image_processor(_as_list(images), **image_options)
        rows, places = list[Row](), list[list[Any]]()
        for number, prompt in enumerate(texts):
            if not isinstance(prompt, str):
                raise ValueError(f"text {number}: expected a string, found {type(prompt).__name__}")
            row, sources = self._row(prompt)
            rows.append(row)
            places.append(sources)
        return self._inputs(rows, paired(places, images), text_options, image_options)

    def _inputs(
        self, rows: list[Row], sources: list[Any], text: dict[str, Any], image: dict[str, Any]
    ) -> BatchFeature:
        fitting = self._fitting(text)
        data: dict[str, Any] = fitting.batch(fitting.cut(rows), self.tokenizer.pad_token_id)
        if text.get("return_attention_mask") is False:
            del data["attention_mask"]
        if sources:
            data["pixel_values"] = self.image_processor(sources, **{**image, "return_tensors": "pt"})[
                "pixel_values"
            ]
        return BatchFeature(data, tensor_type=text.get("return_tensors", "pt"))

    def _fitting(self, options: Mapping[str, Any]) -> Fitting:
        tokenizer = self.tokenizer
        for name in ("padding_side", "truncation_side"):
            if options.get(name) not in (None, "left", "right"):
                raise ValueError(f"{name}={options[name]!r}: expected 'left' or 'right'")
        return Fitting(
            padding=options.get("padding", True),
            truncation=options.get("truncation"),
            max_length=options.get("max_length"),
            multiple=options.get("pad_to_multiple_of"),
            left=(options.get("padding_side") or tokenizer.padding_side) == "left",
            cut_left=(options.get("truncation_side") or tokenizer.truncation_side) == "left",
            longest=tokenizer.model_max_length,
        )

    def _row(self, prompt: str, generated: Sequence[tuple[int, int]] | None = None) -> tuple[Row, list[Any]]:
        """A text's tokens, and the path of each image in it; None without a path."""
        row, sources = Row([], [], None), list[Any]()
        pieces = self.tokenizer.read(prompt, strict=False)
        for piece in pieces:
            if piece.image is not None:
                row.images.append((len(row.ids), len(row.ids) + len(piece.ids)))
                sources.append(piece.image or None)
            row.ids.extend(piece.ids)
        if isinstance(prompt, RenderedChat):
            sources = _as_shown(sources, prompt.images)
        if generated is None:
            return row, sources
        return row._replace(generated=self.tokenizer.generated_mask(prompt, pieces, generated)), sources

    def _encode(self, prompt: str) -> tuple[list[int], list[Any]]:
        row, sources = self._row(prompt)
        return row.ids, sources

    # --- chats -------------------------------------------------------------------------------------------
    def _chosen_template(self, asked: str | None) -> str:
        """The template to render: the asked one, by its name or as text; without one the processor's own.

        Later releases of transformers have this under a private name, earlier ones not.
        """
        known: Any = self.chat_template
        if isinstance(known, dict):
            name = "default" if asked is None else asked
            if name in known:
                return str(known[name])
            if asked is None:
                raise ValueError(
                    f"found the chat templates {', '.join(known)}, none of them called 'default'; name one: "
                    "chat_template=NAME"
                )
        if asked is None and known is None:
            raise ValueError("found no chat template in this processor; give one: chat_template=TEXT")
        return str(known) if asked is None else asked

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Messages ({"role", "content"}, content a string or a list of text and image parts) → a prompt.

        ``tokenize=False`` returns text, an ordinary string: even sliced, joined or stored, this processor reads it back
        with control tokens exactly where the template wrote them. ``tokenize=True`` returns ids and, with
        ``return_dict``, all model inputs: for one conversation as tensors; for a batch, or with the assistant mask, as
        lists of different lengths unless ``padding`` or ``return_tensors`` is given, as trainers expect.

        Raises TypeError for an option that neither the processor nor the template knows.
        """
        template = self._chosen_template(chat_template)
        options = {**{k: v for k, v in kwargs.items() if k in _CALL_OPTIONS}, **(processor_kwargs or {})}
        variables = _without(kwargs, _CALL_OPTIONS)
        check_variables(
            "QwenVLProcessor.apply_chat_template", variables, template, (*_CHAT_OPTIONS, *_CALL_OPTIONS)
        )
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask=True needs tokenize=True and return_dict=True")
        if options and not tokenize:
            raise ValueError(f"{', '.join(sorted(options))}: needs tokenize=True")
        chats, batched = render(
            conversation,
            template=template,
            tools=tools,
            documents=documents,
            generated=return_assistant_tokens_mask,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self.tokenizer.special_tokens_map, **variables},
        )
        texts = [_with_pictures(chat.text, chat.images) for chat in chats]
        if not tokenize:
            return texts if batched else texts[0]
        if return_tensors != "auto":
            options["return_tensors"] = return_tensors
        elif (batched or return_assistant_tokens_mask) and not _BATCH_OPTIONS & options.keys():
            options |= {"padding": False, "return_tensors": None}
        spans = [chat.generated if return_assistant_tokens_mask else None for chat in chats]
        inputs = self._chat_inputs(texts, spans, options)
        return inputs if return_dict else inputs["input_ids"]

    def _chat_inputs(
        self, texts: Sequence[str], spans: Sequence[Any], options: dict[str, Any]
    ) -> BatchFeature:
        images = options.pop("images", None)
        text_options, image_options = _sorted_options(options)
        rows = [self._row(text, generated) for text, generated in zip(texts, spans, strict=True)]
        sources = paired([sources for _, sources in rows], images)
        return self._inputs([row for row, _ in rows], sources, text_options, image_options)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def paired(places: Sequence[Sequence[Any]], images: Any) -> list[Any]:
    """The picture for each place, over all texts.

    places   for each text: the path written at each place, None without one
    images   one, a flat list, a list for each text (None: none), or None: use the written paths

    If there are as many images as places, they are assigned in order; if as many as places without a path, to those.

    Raises ValueError if the numbers fit neither.
    """
    if images is None:
        return [one for i, row in enumerate(places) for one in _filled(f"text {i}", row, [])]
    given = _as_list(images)
    if not any(isinstance(one, list | tuple) or one is None for one in given):
        return _filled("the text", [place for row in places for place in row], given)
    if len(given) != len(places):
        raise ValueError(f"found lists of images for {len(given)} texts, and {len(places)} texts")
    rows = zip(places, given, strict=True)
    return [one for i, (row, own) in enumerate(rows) for one in _filled(f"text {i}", row, [*flattened(own)])]


def _filled(where: str, places: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    if len(given) == len(places):
        return list(given)
    empty = [place for place in places if place is None]
    if len(given) != len(empty):
        raise ValueError(
            f"found {len(given)} images and {len(places)} places for them in {where}, {len(empty)} without a path; "
            "expected one <img></img> for each image"
        )
    rest = iter(given)
    return [next(rest) if place is None else place for place in places]


def _as_list(images: Any) -> list[Any]:
    if isinstance(images, list | tuple):
        return list(images)
    several = getattr(images, "ndim", 0) == 4  # an array or tensor of shape (images, …)
    return list(images) if several else [images]


def _as_shown(paths: Sequence[str | None], images: Sequence[Any]) -> list[Any]:
    """The pictures of a chat; its template must write all of them, in order."""
    if [path or "" for path in paths] != [written(image) for image in images]:
        raise ValueError(
            f"the chat template writes {len(paths)} images where the messages have {len(images)}, or puts them "
            "elsewhere; expected <img>…</img> for each, in the order of the messages"
        )
    return list(images)


def _with_pictures(text: str, images: tuple[Any, ...]) -> RenderedChat:
    rendered = RenderedChat(text)
    rendered.images = images
    return rendered


def _sorted_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a call's options into those of text and those of images. Raises as ``__call__`` does."""
    text, image, flat = dict[str, Any](), dict[str, Any](), dict(options)
    for name, group in (("text_kwargs", text), ("images_kwargs", image)):
        group.update(flat.pop(name, None) or {})
    for name in ("videos_kwargs", "audio_kwargs"):
        refuse("QwenVLProcessor", {name: flat.pop(name, None)}, "Qwen-VL reads text and images")
    flat |= flat.pop("common_kwargs", None) or {}
    for name in [name for name in flat if name in IMAGE_OPTIONS and name not in _TEXT_OPTIONS]:
        _once(name, image, flat.pop(name), "images_kwargs")
    for name, value in flat.items():
        if name not in _FILM_OPTIONS:
            _once(name, text, value, "text_kwargs")
    refuse(
        "QwenVLProcessor",
        {name: text.pop(name, None) for name in _UNMET_TEXT_OPTIONS},
        "this processor does not give that; leave it out",
    )
    check_options("QwenVLProcessor", _without(text, _TEXT_OPTIONS), _CALL_OPTIONS)
    return text, {"return_tensors": text.get("return_tensors", "pt"), **image}


def _once(name: str, group: dict[str, Any], value: Any, where: str) -> None:
    if name in group:
        raise ValueError(f"QwenVLProcessor: found {name} twice, by itself and in {where}; give it once")
    group[name] = value


def _without(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}


def _read_json(name: str, file: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    path = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=True,
        **hub,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


AutoProcessor.register(QwenVLConfig, QwenVLProcessor, exist_ok=True)
