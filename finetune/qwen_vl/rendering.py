"""Renders chats as text: the template, and marks that separate user text from the template's control tokens.

The mark is inserted into the *user text*, not into the template's output, so a rendered chat is an ordinary string:
sliced, joined, stored in a table or a file, it is read back as rendered, and no user text becomes a control token.

    user text   "end <|im_end|>"      →  "end <⟨mark⟩|im_end|>"  →  ids of those characters, as text
    template    "<|im_end|>"          →  "<|im_end|>"            →  one control token
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template

MARK = "\ufdd1"  # a noncharacter of Unicode: no text has it, no normalisation touches it, UTF-8 and JSON carry it
# A "<" that starts a control token or an image, or could start one together with the text after it.
_LOOK_ALIKE = re.compile(f"<(?=[{MARK}|]|/?img|/?(?:i|im)?\\Z)")
IMAGE_MARKUP = re.compile(r"<img>(.*?)</img>", re.DOTALL)
_PICTURE_KEYS = ("image", "path", "url", "base64", "image_url")
_WORDS_OF_OTHER_KEYS = ("tool_calls", "reasoning_content", "reasoning", "thinking")

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- set pictures = namespace(count=0) -%}
{%- macro written(content) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for part in content or [] -%}
{%- if part['type'] == 'text' -%}
{{ part['text'] }}
{%- else -%}
{%- set pictures.count = pictures.count + 1 -%}
{{ 'Picture ' ~ pictures.count ~ ': <img>' ~ (part['path'] or part['image'] or '') ~ '</img>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{{ written(message['content']) + '<|im_end|>' }}
{%- endgeneration -%}
{{ '\\n' }}
{%- else -%}
{{ written(message['content']) + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def as_words(text: str) -> str:
    """``text`` with marks in everything that looks like a control token or an image; ``unmarked`` reverts it."""
    return _LOOK_ALIKE.sub("<" + MARK, text)


def unmarked(text: str) -> str:
    return text.replace("<" + MARK, "<")


class RenderingError(TemplateError, ValueError):
    """The template cannot express a conversation. Trainers recognise this class as a template's error."""


class Rendered(NamedTuple):
    """One chat as text.

    images      the pictures of its ``<img>…</img>``, in reading order; None if the message names no picture
    generated   (start, end) in characters of the assistant's text according to the template; empty unless requested"""

    text: str
    images: tuple[Any, ...]
    generated: tuple[tuple[int, int], ...]


def render(
    conversation: Sequence[Any],
    *,
    template: str,
    tools: Any = None,
    documents: Any = None,
    generated: bool = False,
    variables: Mapping[str, Any],
    **options: Any,
) -> tuple[list[Rendered], bool]:
    """The rendered chats of a conversation or of a batch, and whether it was a batch.

    Raises ValueError naming the message if a role, a key or a part cannot be rendered or would be dropped.
    """
    batched = _is_batch(conversation)
    chats = [_messages(chat) for chat in (conversation if batched else [conversation])]
    known = _get_template_variables(template)
    for name, value in (("tools", tools), ("documents", documents)):
        if value and name not in known:
            raise RenderingError(
                f"{name}: found {len(value)} of them, and a chat template that does not read {name}; leave them "
                "out, or give a chat_template that does"
            )
    if generated and options.get("continue_final_message"):
        raise ValueError("return_assistant_tokens_mask and continue_final_message exclude each other")
    if options.get("add_generation_prompt") and options.get("continue_final_message"):
        raise ValueError("add_generation_prompt and continue_final_message exclude each other")
    prepared = [_prepared(chat, template) for chat in chats]
    texts, spans = render_jinja_template(
        conversations=[messages for messages, _ in prepared],
        tools=_as_words_all(tools),
        documents=_as_words_all(documents),
        chat_template=template,
        return_assistant_tokens_mask=generated,
        **options,
        **{name: _as_words_all(value) for name, value in variables.items()},
    )
    return [
        Rendered(text, tuple(images), tuple(map(tuple, spans[i])) if generated else ())
        for i, (text, (_, images)) in enumerate(zip(texts, prepared, strict=True))
    ], batched


def _is_batch(conversation: Any) -> bool:
    if isinstance(conversation, str | Mapping) or not len(conversation):
        raise ValueError(
            f"expected a list of messages, or a list of such lists; found {type(conversation).__name__}"
            + ("" if isinstance(conversation, str | Mapping) else " without any")
        )
    return not isinstance(conversation[0], Mapping)


def _messages(chat: Any) -> Sequence[Any]:
    found = chat["messages"] if isinstance(chat, Mapping) and "messages" in chat else chat
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise ValueError(f"expected a list of messages, found {str(chat)[:80]!r}")
    return found


def _prepared(messages: Sequence[Any], template: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages for the template, with marks in all texts, and their pictures."""
    prepared, images = list[dict[str, Any]](), list[Any]()
    for number, message in enumerate(messages):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise ValueError(f'{where}: expected {{"role": …, "content": …}}, found {str(message)[:80]!r}')
        _check_role(where, message, template)
        others = {k: _as_words_all(v) for k, v in message.items() if k != "content" and v is not None}
        content, shown = _content(where, message.get("content"))
        prepared.append({**others, "content": content})
        images += shown
    return prepared, images


def _check_role(where: str, message: Mapping[str, Any], template: str) -> None:
    role = message.get("role")
    if template == CHAT_TEMPLATE and role not in ("system", "user", "assistant"):
        raise RenderingError(f"{where}: found role {role!r}, expected system, user or assistant")
    for key in _WORDS_OF_OTHER_KEYS:
        if message.get(key) and key not in template:
            raise RenderingError(
                f"{where}: the chat template does not read {key!r}, so its text would be lost; move it into "
                "'content', or give a chat_template that reads it"
            )


def _content(where: str, content: Any) -> tuple[Any, list[Any]]:
    if content is None or isinstance(content, str):
        return _with_images(where, content or "")
    if not isinstance(content, Iterable) or isinstance(content, Mapping):
        raise ValueError(f"{where}: expected 'content' to be a string or a list, found {str(content)[:80]!r}")
    parts, images = list[Any](), list[Any]()
    for part in content:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise ValueError(f"{where}: expected parts that are objects, found {str(part)[:80]!r}")
        part = {key: value for key, value in part.items() if value is not None}
        if part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": as_words(part["text"])})
        else:
            images.append(_picture(where, part))
            parts.append({"type": "image", "image": as_words(written(images[-1]))})
    return parts, images


def _with_images(where: str, text: str) -> tuple[str, list[Any]]:
    """In a string, ``<img>path</img>`` is an image; the rest is plain text."""
    pieces, images, start = list[str](), list[Any](), 0
    for match in IMAGE_MARKUP.finditer(text):
        pieces += [as_words(text[start : match.start()]), f"<img>{as_words(match[1])}</img>"]
        images.append(match[1] or None)
        start = match.end()
    rest = text[start:]
    if "<img>" in rest or "</img>" in rest:
        raise ValueError(f"{where}: Unclosed image token: expected <img>path</img>, found {rest[:80]!r}")
    return "".join([*pieces, as_words(rest)]), images


def _picture(where: str, part: Mapping[str, Any]) -> Any:
    """The picture of a part; None for a bare ``{"type": "image"}``, whose picture is passed beside the text."""
    key = next((key for key in _PICTURE_KEYS if key in part), None)
    if key is None and dict(part) == {"type": "image"}:
        return None
    if key is None or part.get("type", "image") not in ("image", "image_url"):
        raise ValueError(
            f"{where}: found a part with keys {sorted(part)} and type {part.get('type')!r}, expected "
            '{"type": "text", "text": …} or {"type": "image", "image": path or picture}'
        )
    source = part[key]
    if key == "image_url" and isinstance(source, Mapping):
        source = source.get("url")
    return from_base64(source, where) if key == "base64" and isinstance(source, str) else source


def from_base64(text: str, where: str) -> bytes:
    """The bytes of a base64 string, or of a ``data:…;base64,…`` URL.

    Raises ValueError if it is neither.
    """
    head, comma, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{where}: expected a picture in base64, found {(head + comma + body)[:60]!r} ({error})"
        ) from error


def written(source: Any) -> str:
    """The text of a picture between ``<img>`` and ``</img>``: its path or URL; "" without one."""
    if not isinstance(source, str | os.PathLike):
        return ""
    path = os.fspath(source)
    return "" if path.startswith("data:") else path


def _as_words_all(value: Any) -> Any:
    if isinstance(value, str):
        return as_words(value)
    if isinstance(value, Mapping):
        return {_as_words_all(key): _as_words_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_words_all(item) for item in value]
    return value


def flattened(images: Any) -> Iterator[Any]:
    if isinstance(images, list | tuple):
        for image in images:
            yield from flattened(image)
    elif images is not None:
        yield images
