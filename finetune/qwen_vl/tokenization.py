"""QwenVLTokenizer: Qwen's tiktoken vocabulary; an image is a run of slots of fixed length."""

import base64
import binascii
import itertools
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tiktoken
from transformers import AutoTokenizer, PreTrainedTokenizer

from finetune.files import write_atomically
from finetune.qwen_vl.configuration import QwenVLConfig
from finetune.qwen_vl.options import check_options, check_variables
from finetune.qwen_vl.rendering import CHAT_TEMPLATE, MARK, render, unmarked

VOCABULARY_NAME = "qwen.tiktoken"
# Splits text before byte-pair merging; published as part of the vocabulary.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
REF, BOX, QUAD, IMAGE = (
    ("<ref>", "</ref>"),
    ("<box>", "</box>"),
    ("<quad>", "</quad>"),
    ("<img>", "</img>"),
)
IMAGE_PAD = "<imgpad>"
CONTROL = (END_OF_TEXT, IM_START, IM_END, *(f"<|extra_{i}|>" for i in range(205)))
MARKUP = (*REF, *BOX, *QUAD, *IMAGE, IMAGE_PAD)
SPECIAL_TOKENS = (*CONTROL, *MARKUP)  # ids follow the merge ranks, in this order

_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
# Qwen-VL's training tokenised role, line break and text separately.
_HEADER = re.compile(r"(?:system|user|assistant|tool)\n")

# Names of options, for errors about unknown ones.
_TOKENIZER_OPTIONS = (
    "allowed_special", "add_special_tokens", "padding", "truncation", "max_length", "stride", "pad_to_multiple_of",
    "padding_side", "return_tensors", "return_attention_mask", "return_token_type_ids", "return_special_tokens_mask",
    "return_overflowing_tokens", "return_length", "split_special_tokens", "is_split_into_words", "verbose",
)  # fmt: skip
_CHAT_OPTIONS = (
    "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip

Specials = Literal["all"] | Collection[str]


class Piece(NamedTuple):
    """A span of rendered text that is tokenised separately: plain text, one special token, or an image.

    ids          its tokens
    start, end   its characters in the text
    image        the path between ``<img>`` and ``</img>``; None unless it is an image"""

    ids: list[int]
    start: int
    end: int
    image: str | None = None


def read_ranks(path: str | os.PathLike[str]) -> dict[bytes, int]:
    """A tiktoken file (one ``base64 rank`` per line) → a mapping from bytes to rank.

    Raises ValueError naming file and line for an invalid line, and for missing or duplicate ranks or tokens: the ids of
    control tokens follow from the number of ranks, and tiktoken itself would panic.
    """
    ranks: dict[bytes, int] = {}
    lines = 0
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line:
            continue
        lines += 1
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"{path}, line {number}: found {line[:60]!r}, expected a base64 token, a space and its rank "
                "(the file may be cut, or a Git LFS pointer instead of the vocabulary)"
            ) from error
    if lines != len(ranks) or sorted(ranks.values()) != list(range(lines)):
        raise ValueError(
            f"{path}: found {lines:,} lines with {len(ranks):,} tokens and {len(set(ranks.values())):,} ranks up to "
            f"{max(ranks.values(), default=0):,}, expected each rank from 0 on exactly once, with its own token; take "
            "the file from its checkpoint"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"{path}: found no token for {len(missing)} single bytes (the first is {missing[0]}), expected all 256, so "
            "that every text can be encoded; take the file from its checkpoint"
        )
    return ranks


class QwenVLTokenizer(PreTrainedTokenizer):
    """Text ↔ ids. An image is ``<img>`` + ``image_tokens`` slots + ``</img>``; the slots hold the bytes of its path.

    ``tokenizer(text)`` parses special tokens, as Qwen's and every other tokenizer does: the text is a rendered chat.
    Text in the messages of :meth:`apply_chat_template` stays plain text, even ``<|im_start|>``, however the rendering
    reaches the tokenizer. For user text without a chat, pass ``allowed_special=MARKUP``.

    Worked example, with the published vocabulary: "你好" → [108386]; "<box>" → [151853].
    """

    vocab_files_names = {"vocab_file": VOCABULARY_NAME}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self, vocab_file: str | None = None, errors: str = "replace", image_tokens: int = 256, **kwargs: Any
    ) -> None:
        if vocab_file is None:
            raise ValueError(
                f"{kwargs.get('name_or_path') or 'QwenVLTokenizer'}: found no {VOCABULARY_NAME}, which belongs beside "
                "the weights of a Qwen-VL checkpoint; copy it there, or give its path as vocab_file"
            )
        self.vocab_file = vocab_file
        self.errors = errors
        self.image_tokens = image_tokens
        self.mergeable_ranks = read_ranks(vocab_file)
        n_ranks = len(self.mergeable_ranks)
        self.special_tokens = {token: n_ranks + i for i, token in enumerate(SPECIAL_TOKENS)}
        self._encoding = tiktoken.Encoding(
            "qwen-vl",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=self.mergeable_ranks,
            special_tokens=self.special_tokens,
        )
        self._pieces: dict[int, bytes | str] = {rank: piece for piece, rank in self.mergeable_ranks.items()}
        self._pieces |= {rank: token for token, rank in self.special_tokens.items()}
        # For older saves: the specials are ours, not additions to the vocabulary.
        kwargs.pop("added_tokens_decoder", None)
        defaults = {
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "padding_side": "right",
            "chat_template": CHAT_TEMPLATE,
        }
        super().__init__(errors=errors, image_tokens=image_tokens, **(defaults | kwargs))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_encoding"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoding = tiktoken.Encoding(
            "qwen-vl",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=self.mergeable_ranks,
            special_tokens=self.special_tokens,
        )

    # --- ids by name -------------------------------------------------------------------------------------
    @property
    def eod_id(self) -> int:
        return self.special_tokens[END_OF_TEXT]

    @property
    def im_start_id(self) -> int:
        return self.special_tokens[IM_START]

    @property
    def im_end_id(self) -> int:
        return self.special_tokens[IM_END]

    @property
    def img_start_id(self) -> int:
        return self.special_tokens[IMAGE[0]]

    @property
    def img_end_id(self) -> int:
        return self.special_tokens[IMAGE[1]]

    @property
    def img_pad_id(self) -> int:
        return self.special_tokens[IMAGE_PAD]

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    def __len__(self) -> int:
        return self._encoding.n_vocab

    def get_vocab(self) -> dict[Any, int]:
        """Pieces (bytes, and specials as str) → id."""
        return {**self.mergeable_ranks, **self.special_tokens}

    def get_added_vocab(self) -> dict[str, int]:
        """The special tokens, by which trainers recognise control tokens."""
        return dict(self.special_tokens)

    # --- text → ids --------------------------------------------------------------------------------------
    def encode_text(self, text: str, *, allowed_special: Specials = "all") -> list[int]:
        """Ids of ``text``. Special tokens outside ``allowed_special`` are encoded as ordinary text.

        If ``<img>`` is allowed, ``<img>path</img>`` becomes a run of image slots.

        Raises ValueError for an unclosed ``<img>``, a path longer than the slots, a special token in a path.
        """
        text = unicodedata.normalize("NFC", text)
        allowed = set(SPECIAL_TOKENS if allowed_special == "all" else allowed_special)
        if IMAGE[0] not in allowed:
            return self._merge(text, allowed)
        ids: list[int] = []
        for start, end, is_path in self._split_images(text):
            piece = text[start:end]
            ids += self.image_slots(piece) if is_path else self._merge(piece, allowed)
        return ids

    def _merge(self, text: str, allowed: set[str]) -> list[int]:
        return self._encoding.encode(text, allowed_special=allowed, disallowed_special=())

    def _split_images(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """(start, end) of each span of text, and of each path between ``<img>`` and ``</img>`` (True)."""
        start = 0
        while (opening := text.find(IMAGE[0], start)) >= 0:
            closing = text.find(IMAGE[1], opening)
            if closing < 0:
                raise ValueError(
                    f"Unclosed image token: <img> at character {opening} of {text[:80]!r} has no </img> after it"
                )
            yield start, opening, False
            yield opening + len(IMAGE[0]), closing, True
            start = closing + len(IMAGE[1])
        yield start, len(text), False

    def image_slots(self, path: str = "", *, strict: bool = True) -> list[int]:
        """``<img>``, ``image_tokens`` slots, ``</img>``. The slots hold the path's bytes, padded.

        The model never reads them. With ``strict=False`` a path that is too long is omitted.
        """
        content = path.encode()
        special = next((token for token in SPECIAL_TOKENS if token in path), None)
        if len(content) > self.image_tokens or special:
            if strict and special:
                raise ValueError(
                    f"image path {path[:80]!r}: found the special token {special!r} in it; rename the file"
                )
            if strict:
                raise ValueError(
                    f"The content in <img>..</img> is too long: found {len(content)} bytes, the run has "
                    f"{self.image_tokens} slots ({path[:60]!r}…); pass images through the processor instead"
                )
            content = b""
        padding = [self.img_pad_id] * (self.image_tokens - len(content))
        return [self.img_start_id, *content, *padding, self.img_end_id]

    def read(self, text: str, *, strict: bool = True) -> list[Piece]:
        """Rendered text → pieces: special tokens are control tokens unless marked as plain text.

        Raises ValueError as ``encode_text`` does; with ``strict=False`` a path may be of any length.
        """
        pieces = list[Piece]()
        for start, end, is_path in self._split_images(text):
            if is_path:
                path = unmarked(text[start:end])
                ids = self.image_slots(unicodedata.normalize("NFC", path), strict=strict)
                pieces.append(Piece(ids, start - len(IMAGE[0]), end + len(IMAGE[1]), path))
            else:
                pieces += self._read_text(text, start, end)
        return pieces

    def _read_text(self, text: str, start: int, end: int) -> Iterator[Piece]:
        control = ""
        for match in _SPECIAL.finditer(text, start, end):
            yield from self._words(text, start, match.start(), after=control)
            control, start = match[0], match.end()
            yield Piece([self.special_tokens[control]], match.start(), start)
        yield from self._words(text, start, end, after=control)

    def _words(self, text: str, start: int, end: int, *, after: str) -> Iterator[Piece]:
        header = _HEADER.match(text, start, end) if after == IM_START else None
        cuts = [start, *([header.end()] if header else []), end]
        for first, last in itertools.pairwise(cuts):
            if first < last:
                yield Piece(self._merge(_as_merged(text[first:last]), set()), first, last)

    def generated_mask(
        self, text: str, pieces: Sequence[Piece], spans: Sequence[tuple[int, int]]
    ) -> list[int]:
        """1 for each token of ``pieces`` that overlaps one of the spans (characters of ``text``), else 0."""
        mask = list[int]()
        for piece in pieces:
            inside = [(max(a, piece.start), min(b, piece.end)) for a, b in spans]
            inside = [(a, b) for a, b in inside if a < b]
            if not inside or (piece.start, piece.end) in inside:
                mask += [int(bool(inside))] * len(piece.ids)
                continue
            reached = [
                tuple(len(_as_merged(text[piece.start : place]).encode()) for place in span)
                for span in inside
            ]
            at = 0
            for token in piece.ids:
                width = len(self._pieces[token])  # plain text: pieces are bytes
                mask.append(int(any(at < b and at + width > a for a, b in reached)))
                at += width
        return mask

    def tokenize(  # type: ignore[override]
        self,
        text: str,
        allowed_special: Specials = "all",
        disallowed_special: Any = (),
        *,
        pair: str | None = None,
        add_special_tokens: bool = False,
        split_special_tokens: bool = False,
        is_split_into_words: bool = False,
        sanitize_control_tokens: bool = False,
        return_offsets_mapping: bool = False,
        **unknown: Any,
    ) -> list[bytes | str]:
        """Pieces of ``text``: bytes, and specials as str."""
        check_options("QwenVLTokenizer", unknown, _TOKENIZER_OPTIONS)
        if return_offsets_mapping:
            raise NotImplementedError("return_offsets_mapping: QwenVLTokenizer has no offsets; leave it out")
        if split_special_tokens:
            ids = self.encode_text(unmarked(text), allowed_special=())
        elif allowed_special == "all":
            ids = [i for piece in self.read(text) for i in piece.ids]
        else:
            ids = self.encode_text(text, allowed_special=allowed_special)
        return [self._pieces[i] for i in ids]

    # --- chats -------------------------------------------------------------------------------------------
    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """Messages → ids, or text with ``tokenize=False``; text that looks like control tokens stays plain text.

        Pictures appear as their paths. ``variables`` are the template's own.
        """
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask=True needs tokenize=True and return_dict=True")
        template = self.get_chat_template(chat_template, tools)
        check_variables("QwenVLTokenizer.apply_chat_template", variables, template, _CHAT_OPTIONS)
        chats, batched = render(
            conversation,
            template=template,
            tools=tools,
            documents=documents,
            generated=return_assistant_tokens_mask,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self.special_tokens_map, **variables},
        )
        texts = [chat.text for chat in chats]
        if not tokenize:
            return texts if batched else texts[0]
        options = {"padding": padding, "truncation": truncation, "max_length": max_length}
        options |= {"return_tensors": return_tensors, "add_special_tokens": False, **(tokenizer_kwargs or {})}
        found = self(texts if batched else texts[0], **options)
        if return_assistant_tokens_mask:
            masks = [self.generated_mask(c.text, self.read(c.text), c.generated) for c in chats]
            rows = found["input_ids"] if batched or options["return_tensors"] else [found["input_ids"]]
            masks = [self._fitted(mask, len(row), options) for mask, row in zip(masks, rows, strict=True)]
            found["assistant_masks"] = masks if batched or options["return_tensors"] else masks[0]
            found.convert_to_tensors(options["return_tensors"])
        return found if return_dict else found["input_ids"]

    def _fitted(self, mask: list[int], width: int, options: dict[str, Any]) -> list[int]:
        """A mask truncated and padded like its row."""
        if len(mask) > width:
            return mask[-width:] if self.truncation_side == "left" else mask[:width]
        pad = [0] * (width - len(mask))
        left = (options.get("padding_side") or self.padding_side) == "left"
        return pad + mask if left else mask + pad

    # --- tokens ↔ ids ------------------------------------------------------------------------------------
    def _convert_token_to_id_with_added_voc(self, token: bytes | str) -> int | None:
        return self._convert_token_to_id(token)

    def _convert_token_to_id(self, token: bytes | str) -> int | None:
        """None for a token outside the vocabulary, which has no unknown token."""
        ids = self.special_tokens if isinstance(token, str) else self.mergeable_ranks
        if token in ids:
            return ids[token]  # type: ignore[index]
        return self.mergeable_ranks.get(token.encode()) if isinstance(token, str) else None

    def _convert_id_to_token(self, index: int) -> bytes | str:  # type: ignore[override]
        if index not in self._pieces:
            raise ValueError(
                f"found id {index}, expected one of the {len(self._pieces)} of {self.vocab_file}"
            )
        return self._pieces[index]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        kept = (int(i) for i in ids if not (skip_special_tokens and int(i) >= self.eod_id))
        return [self._convert_id_to_token(i) for i in kept]

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        unknown = [str(token) for token in new_tokens if str(token) not in self.special_tokens]
        if unknown:
            raise ValueError(
                f"tokens {unknown} can't be added: Qwen's vocabulary is fixed; use one of <|extra_0|> … <|extra_204|>"
            )
        return 0

    # --- ids → text --------------------------------------------------------------------------------------
    def convert_tokens_to_string(self, tokens: Sequence[bytes | str]) -> str:
        pieces = (token.encode() if isinstance(token, str) else token for token in tokens)
        return b"".join(pieces).decode("utf-8", errors=self.errors)

    def _decode(
        self, token_ids: Any, skip_special_tokens: bool = False, errors: str | None = None, **_: Any
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        pieces: list[bytes] = []
        in_image = False
        for i in ids:
            if in_image and i < 256:
                pieces.append(bytes([i]))  # a slot: a byte of the path, not a merge rank
                continue
            if i in (self.img_start_id, self.img_end_id):
                in_image = i == self.img_start_id
            elif in_image and i == self.img_pad_id:
                continue
            piece = self._convert_id_to_token(i)
            if not (skip_special_tokens and i >= self.eod_id):
                pieces.append(piece.encode() if isinstance(piece, str) else piece)
        return b"".join(pieces).decode("utf-8", errors=errors or self.errors)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write the vocabulary byte for byte as it was read."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{VOCABULARY_NAME}"
        if target.resolve() != Path(self.vocab_file).resolve():
            write_atomically(target, Path(self.vocab_file).read_bytes())
        return (str(target),)

    # --- lists of {"text"|"image"|"ref"|"box"|"quad"} ----------------------------------------------------
    def from_list_format(self, items: Sequence[dict[str, Any]]) -> str:
        """Qwen-VL's list format as one text: [{"image": "a.jpg"}, {"text": "?"}] → "Picture 1: <img>…"."""
        from finetune.samples.markup import from_list_format

        return from_list_format(items)

    def to_list_format(self, text: str) -> list[dict[str, str]]:
        """The inverse: text with markup as a list of its parts."""
        from finetune.samples.markup import to_list_format

        return to_list_format(text)


def _as_merged(text: str) -> str:
    """Rendered text before merging: without marks, and in NFC as in the original."""
    return unicodedata.normalize("NFC", unmarked(text) if MARK in text else text)


class QWenTokenizer(QwenVLTokenizer):
    """The class name that published checkpoints request in ``tokenizer_config.json``."""


AutoTokenizer.register(
    QwenVLConfig, tokenizer_class=QwenVLTokenizer, slow_tokenizer_class=QWenTokenizer, exist_ok=True
)
