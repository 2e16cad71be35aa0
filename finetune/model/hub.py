"""Does the hub have a checkpoint of this name? Asked once, before anything slow, and never of what is here already."""

import difflib
import functools
import os
from pathlib import Path
from typing import Any

from finetune.model.folders import MODEL_CONFIG, shortened

SECONDS = 10.0
"""The longest that the hub may take to answer."""


def require(name: str, *, cache_dir: str | None = None) -> None:
    """Check that a name means something, where no folder has it.

    A client of the hub asks six times over half a minute where it gets no answer, and prints each attempt; a misspelt
    folder should not cost that. A file in the cache, or ``HF_HUB_OFFLINE``, needs no question.

    Raises ValueError that says what is not there: the folder, the checkpoint on the hub, or the connection.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if os.path.exists(Path(name).expanduser()) or constants.HF_HUB_OFFLINE:
        return
    try:
        kept = try_to_load_from_cache(name, MODEL_CONFIG, cache_dir)
        reason = None if isinstance(kept, str) else _asked(name)
    except HFValidationError:
        reason = "it is no name of a checkpoint on the hub either"
    if reason is not None:
        raise ValueError(
            f"{shortened(name)}: there is no such folder (working directory {os.getcwd()}), and {reason}{_meant(name)}"
        )


@functools.cache
def _asked(name: str) -> str | None:
    """Why the hub does not have it; None if it has."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
    )

    http_error: Any = next(
        base for base in HfHubHTTPError.__bases__ if base is not OSError
    )  # of the hub's client
    try:
        get_hf_file_metadata(hf_hub_url(name, MODEL_CONFIG), timeout=SECONDS)
    except GatedRepoError:
        return f"on the hub it is gated: accept its terms at https://huggingface.co/{name}, and log in (hf auth login)"
    except RepositoryNotFoundError:
        return "the hub has no such checkpoint (or it is private: hf auth login)"
    except EntryNotFoundError:
        return f"the hub's {name} holds no {MODEL_CONFIG}: it is no model"
    except (OSError, http_error) as error:
        return f"the hub cannot be reached ({str(error).partition(chr(10))[0][:200]})"
    return None


def _meant(name: str) -> str:
    """``; did you mean output_qwen/checkpoint-330?`` where a folder beside it has nearly that name."""
    beside = Path(name).expanduser().parent
    try:
        folders = [path for path in beside.iterdir() if path.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(Path(name).name, [path.name for path in folders], n=1)
    return f"; did you mean {beside / near[0]}?" if near else ""
