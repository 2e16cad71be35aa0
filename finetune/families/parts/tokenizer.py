"""A checkpoint's tokenizer, without any code of its own."""

from __future__ import annotations

from typing import Any


def load_tokenizer(name_or_path: str, **hub: Any) -> Any:
    """The tokenizer of a folder or a hub name; ``hub``: ``cache_dir``, ``revision`` and the like.

    Raises ValueError if it is code that comes with the checkpoint: that is never run.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name_or_path}: its tokenizer is code that comes with the checkpoint, which is never run; expected "
            "one of transformers' own (tokenizer.json): give the checkpoint's conversion to transformers"
        ) from error


def is_panic(error: BaseException) -> bool:
    """Did the tokenizers' library, which is in Rust, give up, as where a pattern of tokenizer.json takes too long?

    Its exception derives from BaseException alone, and has no module to import it from.
    """
    return type(error).__name__ == "PanicException"
