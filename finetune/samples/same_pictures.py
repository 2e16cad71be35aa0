"""Which of some picture files conversations show, under their own names or as copies."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from finetune.samples.conversation import Conversation, ImageRef
from finetune.samples.workers import in_chunks


def files_among(files: Collection[Path], conversations: Sequence[Conversation]) -> dict[Path, str]:
    """Those of the files that conversations show, as the same file or a byte-equal copy, each with its SHA-256.

    Pictures inside the data and frames of videos that are files count; a picture saved again in another format is
    another file. What cannot be read is passed over. A training picture is read only if a file has its size, so that
    600,000 of them take little more than finding them.
    """
    sought = _Sought(files)

    def work(chunk: range) -> set[str]:
        return {
            digest for i in chunk for ref in _pictures(conversations, i) if (digest := sought.digest(ref))
        }

    doing = "looking for the probes' pictures in the training data"
    parts = in_chunks(work, len(conversations) if sought.digests else 0, workers=None, doing=doing)
    found = set[str]().union(*(part for _, part in parts))
    return {path: digest for path, digest in sought.digests.items() if digest in found}


class _File(NamedTuple):
    """A file that is sought. ``place``: device and inode, the same under each of its names."""

    place: tuple[int, int]
    digest: str


class _Sought:
    """The files that are sought, and the paths that were looked at already, by this process.

    digests   file → SHA-256
    by_size   bytes → the files of this size
    """

    def __init__(self, files: Collection[Path]) -> None:
        self.digests: dict[Path, str] = {}
        self.by_size: dict[int, list[_File]] = {}
        self._known: set[str] = set()
        for path in dict.fromkeys(files):
            try:
                stat, content = os.stat(path), path.read_bytes()
            except OSError:
                continue
            self.digests[path] = hashlib.sha256(content).hexdigest()
            alike = self.by_size.setdefault(len(content), [])
            alike.append(_File((stat.st_dev, stat.st_ino), self.digests[path]))

    def digest(self, ref: ImageRef) -> str | None:
        """SHA-256 of a picture that is one of them and was not asked for before; else None."""
        try:
            if ref.data is not None:
                return self._of_content(ref.data, self.by_size.get(len(ref.data), ()))
            path = os.fspath(ref.path)
            if path in self._known:
                return None
            self._known.add(path)
            stat = os.stat(path)
            alike = self.by_size.get(stat.st_size, ())
            place = (stat.st_dev, stat.st_ino)
            same = next((one.digest for one in alike if one.place == place and stat.st_ino), None)
            return same or (self._of_content(Path(path).read_bytes(), alike) if alike else None)
        except (OSError, ValueError):  # a path that no file can have
            return None

    @staticmethod
    def _of_content(content: bytes, alike: Sequence[_File]) -> str | None:
        digest = hashlib.sha256(content).hexdigest() if alike else ""
        return digest if any(one.digest == digest for one in alike) else None


def _pictures(conversations: Sequence[Conversation], place: int) -> Iterator[ImageRef]:
    """Pictures and frames of a conversation; none of one that can no longer be read, which training reports."""
    try:
        media = conversations[place].media
    except ValueError:
        return
    for one in media:
        yield from (one,) if isinstance(one, ImageRef) else one.frames
