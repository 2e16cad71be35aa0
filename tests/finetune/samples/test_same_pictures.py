"""Which picture files are among those of conversations: by content, under whatever name, and cheaply."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.samples.conversation import Conversation, ImageRef, Turn, VideoRef
from finetune.samples.same_pictures import files_among

CONTENT = b"a picture of a tower"


def ref(path: Path, content: bytes | None = None) -> ImageRef:
    if content is not None:
        path.write_bytes(content)
    return ImageRef(path.name, path)


def shown(*media: ImageRef | VideoRef) -> Conversation:
    return Conversation((Turn("user", (*media, "What is this?")), Turn("assistant", ("A tower.",))))


def hard_link(folder: Path) -> ImageRef:
    os.link(folder / "probe.png", folder / "linked.png")
    return ref(folder / "linked.png")


def soft_link(folder: Path) -> ImageRef:
    (folder / "linked.png").symlink_to(folder / "probe.png")
    return ref(folder / "linked.png")


def frame(folder: Path) -> VideoRef:
    return VideoRef("film", (0.0, 0.5), (ref(folder / "0.png", b"first"), ref(folder / "1.png", CONTENT)))


TRAINED: dict[str, tuple[Callable[[Path], ImageRef | VideoRef], bool]] = {
    "the same path": (lambda folder: ref(folder / "probe.png"), True),
    "the same file, written otherwise": (lambda folder: ref(folder / "." / ".." / folder.name / "probe.png"), True),
    "a hard link": (hard_link, True),
    "a symbolic link": (soft_link, True),
    "a copy under another name": (lambda folder: ref(folder / "copy.jpg", CONTENT), True),
    "in memory": (lambda folder: ImageRef("image", Path(), data=CONTENT), True),
    "a frame of a video": (frame, True),
    "other bytes of the same size": (lambda folder: ref(folder / "other.png", CONTENT[::-1]), False),
    "other bytes of the same size in memory": (lambda folder: ImageRef("image", Path(), data=CONTENT[::-1]), False),
    "another size": (lambda folder: ref(folder / "longer.png", CONTENT + b"!"), False),
    "no file": (lambda folder: ref(folder / "none.png"), False),
    "a name that no file can have": (lambda folder: ref(folder / "a\0b.png"), False),
    "a folder": (lambda folder: ref(folder), False),
    "a film in a file of its own": (lambda folder: VideoRef("film", (0.0,), path=folder / "probe.png"), False),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_a_picture_is_found_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    probe = ref(tmp_path / "probe.png", CONTENT).path
    other = ref(tmp_path / "mine.png", b"of the probes alone").path
    make, is_found = TRAINED[name]
    found = files_among([other, probe, tmp_path / "gone.png"], [shown(), shown(make(tmp_path))])
    assert found == ({probe: hashlib.sha256(CONTENT).hexdigest()} if is_found else {})


def test_pictures_of_one_content_are_all_found(tmp_path: Path) -> None:
    probes = [ref(tmp_path / name, CONTENT).path for name in ("a.png", "b.png")]
    assert [*files_among(probes, [shown(ImageRef("image", Path(), data=CONTENT))])] == probes


def test_a_path_is_looked_at_once_and_read_only_where_its_size_fits(tmp_path: Path, monkeypatch) -> None:
    probe = ref(tmp_path / "probe.png", CONTENT).path
    trained = [ref(tmp_path / f"{at}.png", b"x" * at) for at in range(len(CONTENT) + 3)]
    asked, read, stat, read_bytes = Counter[str](), list[str](), os.stat, Path.read_bytes
    monkeypatch.setattr(os, "stat", lambda path, **more: (asked.update([str(path)]), stat(path, **more))[1])
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), read_bytes(path))[1])
    assert files_among([probe], [shown(*trained), *map(shown, trained)]) == {}
    assert all(asked[str(one.path)] == 1 for one in trained)
    assert read == ["probe.png", f"{len(CONTENT)}.png"]


def test_a_conversation_that_can_no_longer_be_read_is_left_to_training(tmp_path: Path) -> None:
    class Broken(list):
        def __getitem__(self, place):
            if place == 0:
                raise ValueError("image 'a.png': did not exist when the data was checked")
            return super().__getitem__(place)

    probe = ref(tmp_path / "probe.png", CONTENT)
    assert [*files_among([probe.path], Broken([shown(), shown(probe)]))] == [probe.path]
