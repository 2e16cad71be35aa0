"""One model that many people ask: replies that stream, and what each of them looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import nn

from diagnostics.web.look import Look
from finetune.conversation import Turn

Mode: TypeAlias = Literal["text", "full", "low"]
CACHE_BYTES = 512 * 2**20
MAX_NEW_TOKENS = 256


class Partial(NamedTuple):
    """A reply so far.

    text      all of it so far
    done      nothing follows
    look      what it looked at, with the last partial; None in mode "text", and for a reply without tokens
    waiting   how many replies to others come first, while it waits for its turn (the text is "" then)
    """

    text: str
    done: bool
    look: Look | None
    waiting: int = 0


class Engine:
    """Answers with one model, one reply at a time, in the order of asking.

    mode          "text": replies alone; "full": with the attention of all language layers, connector and the
                  tower's last layer; "low": of the key layers and the connector, from pictures capped in size
    cache_bytes   memory of a session's looks: one look takes at most half of it (before and after fit together)

    Nothing of a conversation stays here: what was seen goes out with the reply's last ``Partial``.
    """

    def __init__(
        self, model: nn.Module, processor: Any, *, mode: Mode, cache_bytes: int = CACHE_BYTES
    ) -> None:
        raise NotImplementedError

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        *,
        mode: Mode,
        cpu_only: bool = False,
        cache_bytes: int = CACHE_BYTES,
    ) -> Engine:
        """Open a checkpoint (hub name, model folder or adapter folder; None: the embedded demo) on the GPU, if there
        is one and ``cpu_only`` does not forbid it. Mode "low" loads 4-bit language layers on a GPU.

        Logs the memory that it needs before it loads. Raises ValueError, with advice, where that is not there.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The checkpoint, as it was given."""
        raise NotImplementedError

    @property
    def layers(self) -> tuple[int, ...]:
        """Language layers whose rows its looks have; () in mode "text"."""
        raise NotImplementedError

    @property
    def has_adapter(self) -> bool:
        """Can its adapter be turned off (``adapter_off``)?"""
        raise NotImplementedError

    def adapter_off(self) -> Engine:
        """The same model without its adapter: same weights in memory, same queue. Raises ValueError without one."""
        raise NotImplementedError

    def with_checkpoint(self, checkpoint: str | Path) -> Engine:
        """Another checkpoint beside this one, in the same mode and queue. Raises ValueError where there is no memory
        for both; drop the engine to free it."""
        raise NotImplementedError

    def reply(
        self, turns: Sequence[Turn], *, stop: threading.Event, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> Iterator[Partial]:
        """The answer to the last turn, as it is written: greedy, each partial with all the text so far.

        Ends within one token of ``stop`` being set (the last partial has what was written until then, and its look)
        or of the iterator being closed. The last partial is ``done``.

        Raises ValueError, in words, for a conversation that cannot be answered.
        """
        raise NotImplementedError
