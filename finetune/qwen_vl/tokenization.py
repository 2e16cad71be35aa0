"""QwenVLTokenizer: Qwen's tiktoken vocabulary, with images as fixed runs of slots."""

import base64
import binascii
import os
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tiktoken
from transformers import PreTrainedTokenizer

VOCABULARY_NAME = "qwen.tiktoken"
# How text is cut before byte-pair merging; part of the vocabulary, published with it.
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

Specials = Literal["all"] | Collection[str]


def read_ranks(path: str | os.PathLike[str]) -> dict[bytes, int]:
    """A tiktoken file (one ``base64 rank`` a line) as bytes → rank.

    Raises ValueError naming file and line where a line is not of that form.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"{path}, line {number}: found {line[:60]!r}, expected a base64 token, a space and its rank "
                "(the file may be cut, or a Git LFS pointer instead of the vocabulary)"
            ) from error
    return ranks


class QwenVLTokenizer(PreTrainedTokenizer):
    """Text ↔ ids. An image is ``<img>`` + ``image_tokens`` slots + ``</img>``; the slots hold its path's bytes.

    ``tokenizer(text)`` parses special tokens, as Qwen's does. For words of a user, pass
    ``allowed_special=MARKUP`` (or go through the processor): there ``<|im_start|>`` is text.

    Worked example, with the published vocabulary: "你好" → [108386]; "<box>" → [151853].
    """

    vocab_files_names = {"vocab_file": VOCABULARY_NAME}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self, vocab_file: str, errors: str = "replace", image_tokens: int = 256, **kwargs: Any
    ) -> None:
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
        # Loading what an older save wrote: the specials are ours, not additions to the vocabulary.
        kwargs.pop("added_tokens_decoder", None)
        defaults = {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT, "padding_side": "right"}
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

    # --- text → ids --------------------------------------------------------------------------------------
    def encode_text(self, text: str, *, allowed_special: Specials = "all") -> list[int]:
        """Ids of ``text``. Special tokens outside ``allowed_special`` are spelled out as ordinary text.

        Where ``<img>`` is allowed, ``<img>path</img>`` becomes a run of image slots.

        Raises ValueError for an unclosed ``<img>``, a path longer than the slots, a special token in a path.
        """
        text = unicodedata.normalize("NFC", text)
        allowed = set(SPECIAL_TOKENS if allowed_special == "all" else allowed_special)
        if IMAGE[0] not in allowed:
            return self._merge(text, allowed)
        ids: list[int] = []
        for piece, is_path in self._split_images(text):
            ids += self.image_slots(piece) if is_path else self._merge(piece, allowed)
        return ids

    def _merge(self, text: str, allowed: set[str]) -> list[int]:
        return self._encoding.encode(text, allowed_special=allowed, disallowed_special=())

    def _split_images(self, text: str) -> Iterator[tuple[str, bool]]:
        start = 0
        while (opening := text.find(IMAGE[0], start)) >= 0:
            closing = text.find(IMAGE[1], opening)
            if closing < 0:
                raise ValueError(
                    f"Unclosed image token: <img> at character {opening} of {text[:80]!r} has no </img> after it"
                )
            yield text[start:opening], False
            yield text[opening + len(IMAGE[0]) : closing], True
            start = closing + len(IMAGE[1])
        yield text[start:], False

    def image_slots(self, path: str = "", *, strict: bool = True) -> list[int]:
        """``<img>``, ``image_tokens`` slots, ``</img>``. The path's bytes stand in the slots, padded.

        The model never reads what stands there. With ``strict=False`` a path that does not fit is left out.
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

    def tokenize(  # type: ignore[override]
        self, text: str, allowed_special: Specials = "all", disallowed_special: Any = (), **_: Any
    ) -> list[bytes | str]:
        """Pieces of ``text``: bytes, and specials as str."""
        return [self._pieces[i] for i in self.encode_text(text, allowed_special=allowed_special)]

    def _convert_token_to_id_with_added_voc(self, token: bytes | str) -> int:
        return self._convert_token_to_id(token)

    def _convert_token_to_id(self, token: bytes | str) -> int:
        ids = self.special_tokens if isinstance(token, str) else self.mergeable_ranks
        if token in ids:
            return ids[token]  # type: ignore[index]
        if isinstance(token, str) and token.encode() in self.mergeable_ranks:
            return self.mergeable_ranks[token.encode()]
        raise ValueError(f"found token {token!r}, which the vocabulary {self.vocab_file} does not hold")

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
        """Write the vocabulary as it was read, byte for byte."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{VOCABULARY_NAME}"
        if target.resolve() != Path(self.vocab_file).resolve():
            content = Path(self.vocab_file).read_bytes()
            temporary = target.with_suffix(".partial")
            temporary.write_bytes(content)
            os.replace(temporary, target)
        return (str(target),)

    # --- lists of {"text"|"image"|"ref"|"box"|"quad"} ----------------------------------------------------
    def from_list_format(self, items: Sequence[dict[str, Any]]) -> str:
        """Qwen-VL's list format as one text: [{"image": "a.jpg"}, {"text": "?"}] → "Picture 1: <img>…"."""
        from finetune.qwen_vl.markup import from_list_format

        return from_list_format(items)

    def to_list_format(self, text: str) -> list[dict[str, str]]:
        """The inverse: text with markup as a list of its parts."""
        from finetune.qwen_vl.markup import to_list_format

        return to_list_format(text)


class QWenTokenizer(QwenVLTokenizer):
    """The name under which published checkpoints ask for their tokenizer (``tokenizer_config.json``)."""
