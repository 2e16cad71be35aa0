"""QwenVLProcessor: words and pictures of a user → what the model reads."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import cached_file

from finetune.conversation import BoxRef, ImageRef, Turn
from finetune.qwen_vl.chatml import encode_chat, encode_parts
from finetune.qwen_vl.configuration import QwenVLConfig
from finetune.qwen_vl.images import ImageSource, QwenVLImageProcessor
from finetune.qwen_vl.tokenization import IM_END, IM_START, QwenVLTokenizer

_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
# For programs that only read the template; apply_chat_template below encodes turn by turn instead, so that
# control tokens in a user's words stay words.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- set pictures = namespace(count=0) -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{{ part['text'] }}
{%- else -%}
{%- set pictures.count = pictures.count + 1 -%}
{{ 'Picture ' ~ pictures.count ~ ': <img>' ~ (part['path'] or part['image'] or '') ~ '</img>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


class RenderedChat(str):
    """A chat as text that remembers its turns, so that the processor knows control tokens from words."""

    turns: tuple[Turn, ...]
    images: tuple[ImageSource, ...]
    add_generation_prompt: bool


class QwenVLProcessor(ProcessorMixin):
    """Tokenizer and image processor in one.

    ``processor(text="Picture 1: <img>a.png</img>\\nWhat is this?")`` opens ``a.png``;
    ``processor(text="<img></img>What is this?", images=[picture])`` takes the pictures given, in order.
    Text is a user's: ``<ref>``, ``<box>`` and ``<quad>`` are markup, ``<|im_start|>`` is text. Chats go through
    :meth:`apply_chat_template`.
    """

    def __init__(
        self,
        image_processor: QwenVLImageProcessor,
        tokenizer: QwenVLTokenizer,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = chat_template or CHAT_TEMPLATE

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    # --- load and save -----------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> QwenVLProcessor:
        """From a folder or hub name: a saved processor, or a published checkpoint, which has none.

        What a published checkpoint leaves out (picture size, slots an image) is read from its ``config.json``.
        """
        name = os.fspath(pretrained_model_name_or_path)
        hub: dict[str, Any] = {
            key: kwargs[key]
            for key in ("cache_dir", "revision", "token", "local_files_only")
            if key in kwargs
        }
        saved = _read_json(name, "preprocessor_config.json", hub)
        config = _read_json(name, "config.json", hub)
        tokenizer_settings = {}
        if saved is None:
            if config is None:
                raise ValueError(
                    f"{name}: found neither preprocessor_config.json nor config.json of a Qwen-VL"
                )
            visual = QwenVLConfig.from_dict({**config, "_name_or_path": name}).visual
            saved = {"image_size": visual["image_size"], "patch_size": visual["patch_size"]}
            tokenizer_settings = {"image_tokens": visual["n_queries"]}
        image_processor = QwenVLImageProcessor.from_dict(saved)
        tokenizer = QwenVLTokenizer.from_pretrained(name, **hub, **tokenizer_settings)
        return cls(image_processor, tokenizer)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> list[str]:  # type: ignore[override]
        """Tokenizer, picture settings and chat template into a folder, from which Auto classes load them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer._set_processor_class(type(self).__name__)
        self.tokenizer.save_pretrained(folder)
        settings = self.image_processor.to_dict() | {"processor_class": type(self).__name__}
        for name, content in (
            ("preprocessor_config.json", json.dumps(settings, indent=2, sort_keys=True) + "\n"),
            ("chat_template.jinja", str(self.chat_template)),
        ):
            temporary = folder / f"{name}.partial"
            temporary.write_text(content, encoding="utf-8")
            os.replace(temporary, folder / name)
        return [str(path) for path in folder.iterdir()]

    # --- text and images ---------------------------------------------------------------------------------
    def __call__(  # type: ignore[override]
        self,
        images: ImageSource | Sequence[ImageSource] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = True,
        padding_side: str | None = None,
        return_tensors: str | None = "pt",
        **_: Any,
    ) -> BatchFeature:
        """``input_ids``, ``attention_mask`` [batch, tokens] and ``pixel_values`` [images, 3, size, size].

        Raises ValueError where the number of ``<img>…</img>`` and of images differ, or an image can't be read.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        given = None if images is None else list(_flatten(images))
        if not texts and given is not None:
            return self.image_processor(given, return_tensors=return_tensors)
        if not texts:
            raise ValueError("expected text, images or both")
        rows, opened = [], []
        for prompt in texts:
            ids, sources = self._encode(prompt)
            rows.append(ids)
            opened += sources
        if given is not None and len(given) != len(opened):
            raise ValueError(
                f"found {len(given)} images and {len(opened)} places for them in the text; "
                "expected one <img></img> for each image"
            )
        sources = opened if given is None else given
        data: dict[str, Any] = self._pad(rows, padding=padding, padding_side=padding_side)
        if sources:
            data["pixel_values"] = self.image_processor(sources, return_tensors="pt")["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def _encode(self, prompt: str) -> tuple[list[int], list[ImageSource]]:
        if isinstance(prompt, RenderedChat):
            chat = encode_chat(
                self.tokenizer, prompt.turns, add_generation_prompt=prompt.add_generation_prompt
            )
            return chat.input_ids, list(prompt.images)
        parts = split_images(prompt)
        ids, _ = encode_parts(self.tokenizer, parts)
        return ids, [part.path for part in parts if isinstance(part, ImageRef)]

    def _pad(self, rows: list[list[int]], *, padding: bool | str, padding_side: str | None) -> dict[str, Any]:
        if padding is False:
            return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
        width = max(map(len, rows))
        left = (padding_side or self.tokenizer.padding_side) == "left"
        data: dict[str, Any] = {"input_ids": [], "attention_mask": []}
        for row in rows:
            pad = width - len(row)
            filler, seen = [self.tokenizer.pad_token_id] * pad, [1] * len(row)
            data["input_ids"].append(filler + row if left else row + filler)
            data["attention_mask"].append([0] * pad + seen if left else seen + [0] * pad)
        return data

    # --- chats -------------------------------------------------------------------------------------------
    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> Any:
        """Messages ({"role", "content"}, content a string or a list of text and image parts) as a prompt.

        ``tokenize=False`` gives text which this processor reads back with control tokens where the template
        put them and nowhere else; ``tokenize=True`` gives ids, and with ``return_dict`` all model inputs.
        """
        batched = bool(conversation) and not isinstance(conversation[0], Mapping)
        chats = [
            self._render(chat, add_generation_prompt)
            for chat in (conversation if batched else [conversation])
        ]
        if not tokenize:
            return chats if batched else chats[0]
        inputs = self(text=chats, return_tensors=return_tensors, **kwargs)
        return inputs if return_dict else inputs["input_ids"]

    def _render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool) -> RenderedChat:
        turns, images = messages_to_turns(messages)
        text = (
            ""
            if turns and turns[0].role == "system"
            else f"{IM_START}system\nYou are a helpful assistant.{IM_END}\n"
        )
        for turn in turns:
            words = (
                part if isinstance(part, str) else f"<img>{part.written}</img>"
                for part in turn.parts
                if not isinstance(part, BoxRef)  # messages hold none
            )
            text += f"{IM_START}{turn.role}\n{''.join(words)}{IM_END}\n"
        rendered = RenderedChat(text + (f"{IM_START}assistant\n" if add_generation_prompt else ""))
        rendered.turns, rendered.images = turns, images
        rendered.add_generation_prompt = add_generation_prompt
        return rendered

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]


def split_images(text: str) -> tuple[str | ImageRef, ...]:
    """Text with ``<img>path</img>`` as text and images in reading order.

    Raises ValueError for an ``<img>`` that is not closed.
    """
    parts: list[str | ImageRef] = []
    start = 0
    for match in _IMAGE.finditer(text):
        parts += [text[start : match.start()], ImageRef(match[1], Path(match[1]))]
        start = match.end()
    rest = text[start:]
    if "<img>" in rest or "</img>" in rest:
        raise ValueError(f"Unclosed image token: expected <img>path</img>, found {rest[:80]!r}")
    return tuple(part for part in (*parts, rest) if part != "")


def messages_to_turns(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[tuple[Turn, ...], tuple[ImageSource, ...]]:
    """Chat messages as turns and their pictures; each image part is written ``Picture n: <img>…</img>\\n``.

    Raises ValueError naming the message whose role or part is unknown.
    """
    turns: list[Turn] = []
    images: list[ImageSource] = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"message {number}: found role {role!r}, expected system, user or assistant")
        parts: list[str | ImageRef] = []
        if isinstance(content, str):
            parts += split_images(content)
            images += [part.path for part in parts if isinstance(part, ImageRef)]
        else:
            for part in content or ():
                if part.get("type") == "text":
                    parts.append(part["text"])
                    continue
                source = next(
                    (part[key] for key in ("image", "path", "url") if part.get(key) is not None), None
                )
                if source is None:
                    raise ValueError(
                        f"message {number}: found a part with keys {sorted(part)}, expected "
                        '{"type": "text", "text": …} or {"type": "image", "image": path or picture}'
                    )
                images.append(source)
                written = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
                parts += [f"Picture {len(images)}: ", ImageRef(written, Path(written)), "\n"]
        turns.append(Turn(role, tuple(parts)))
    return tuple(turns), tuple(images)


def _flatten(images: Any) -> Iterator[ImageSource]:
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flatten(image)
    else:
        yield images


def _read_json(name: str, file: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    path = cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=True,
        **hub,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
