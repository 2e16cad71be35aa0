"""Qt resource files, written here as Qt lays them out."""

import struct
import zlib

import pytest

from finetune.realcase.qt_resources import read_resources


def resources(entries, version=3):
    """``[(name, flags, content)]`` in one folder "pictures"."""
    names, data, tree = b"", b"", b""

    def name(text):
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    time = b"\0" * (8 if version >= 2 else 0)
    nodes = [
        struct.pack(">IHII", 0, 2, 1, 1) + time,
        struct.pack(">IHII", name("pictures"), 2, len(entries), 2) + time,
    ]
    for text, flags, content in entries:
        nodes.append(struct.pack(">IHHHI", name(text), flags, 0, 0, len(data)) + time)
        data += struct.pack(">I", len(content)) + content
    tree = b"".join(nodes)
    begin = 20
    return (
        struct.pack(">4s4i", b"qres", version, begin, begin + len(tree), begin + len(tree) + len(data))
        + tree
        + data
        + names
    )


@pytest.mark.parametrize("version", [1, 3])
def test_files_by_name(tmp_path, version):
    squeezed = struct.pack(">I", 9) + zlib.compress(b"something")
    path = tmp_path / "some.rcc"
    path.write_bytes(resources([("a.webp", 0, b"RIFF"), ("é.txt", 1, squeezed), ("z", 4, b"?")], version))
    assert read_resources(path) == {"pictures/a.webp": b"RIFF", "pictures/é.txt": b"something"}


@pytest.mark.parametrize("spoil", [lambda b: b[:-30], lambda b: b"PK" + b[2:], lambda b: b[:7]])
def test_a_damaged_file_is_refused(tmp_path, spoil):
    path = tmp_path / "some.rcc"
    path.write_bytes(spoil(resources([("a.webp", 0, b"RIFF" * 20)])))
    with pytest.raises(ValueError, match=r"some\.rcc: found no whole Qt resource file .*fetch it again"):
        read_resources(path)
