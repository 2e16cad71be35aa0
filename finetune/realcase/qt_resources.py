"""Files out of a Qt resource file (.rcc): a tree of names, and the content of each, as Qt lays them out.

"qres", version, offsets of the tree, the data and the names; then the three, all numbers big-endian
a folder     name, flags 2, how many children, the first child
a file       name, flags, locale, where its data is                    (version 2 and later: 8 bytes of time more)
a name       how many characters, a hash, UTF-16                       data: how many bytes, then these
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

COMPRESSED, FOLDER, ZSTD = 1, 2, 4
MOST_DEPTH = 32


def read_resources(path: Path) -> dict[str, bytes]:
    """Path within the file → content. Contents compressed by Zstandard are left out.

    Raises:
        ValueError: it is no resource file, or it is cut short.
    """
    content = path.read_bytes()
    try:
        magic, version, tree, data, names = struct.unpack_from(">4s4i", content)
        if magic != b"qres":
            raise ValueError(f"it begins with {magic!r}")
        return dict(_walk(content, (tree, data, names), 22 if version >= 2 else 14, 0, "", 0))
    except (struct.error, ValueError, zlib.error) as fault:
        raise ValueError(f"{path}: found no whole Qt resource file ({fault}); fetch it again") from fault


def _walk(
    content: bytes, offsets: tuple[int, int, int], size: int, node: int, prefix: str, depth: int
) -> Iterator[tuple[str, bytes]]:
    tree, data, names = offsets
    if depth > MOST_DEPTH:
        raise ValueError(f"folders nested more than {MOST_DEPTH} deep")
    at = tree + node * size
    name_at, flags = struct.unpack_from(">IH", content, at)
    path = prefix
    if node:
        (length,) = struct.unpack_from(">H", content, names + name_at)
        begin = names + name_at + 6
        path += _part(content, begin, 2 * length).decode("utf-16-be")
    if flags & FOLDER:
        count, first = struct.unpack_from(">II", content, at + 6)
        for child in range(first, first + count):
            yield from _walk(content, offsets, size, child, f"{path}/" if node else "", depth + 1)
        return
    (data_at,) = struct.unpack_from(">I", content, at + 10)
    (length,) = struct.unpack_from(">I", content, data + data_at)
    found = _part(content, data + data_at + 4, length)
    if flags & COMPRESSED:
        found = zlib.decompress(found[4:])  # before it, four bytes of the length that comes out
    if not flags & ZSTD:
        yield path, found


def _part(content: bytes, begin: int, length: int) -> bytes:
    if begin + length > len(content):
        raise ValueError(f"{length} bytes from byte {begin} of {len(content)}")
    return content[begin : begin + length]
