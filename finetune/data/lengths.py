"""Counts the tokens of all samples before training: in parallel, without decoding a picture, and cached."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from finetune.data.mixture import Joined
from finetune.families.base import Family, encode_for_training, image_places
from finetune.samples.cache import cache_folder, keep
from finetune.samples.conversation import Conversation, ImageRef, Turn, VideoRef
from finetune.samples.images import size_of
from finetune.samples.listing import shown
from finetune.samples.source import Conversations, fingerprint
from finetune.samples.videos import frame_size
from finetune.samples.workers import in_chunks
from finetune.scratch import scratch_folder

COUNTING = 11
"""Version of the counting; raise it whenever counting changes, so that older cached counts are discarded."""
IGNORED = -100
NOTHING_TO_LEARN = "no token to learn"
UNREADABLE = -1  # tokens of a sample that the family refuses
MOST_NAMES_SHOWN = 20
Places = Callable[[np.ndarray], np.ndarray]


class Lengths(NamedTuple):
    """Token counts of each sample.

    tokens           all of them; ``UNREADABLE`` where the family refuses the sample
    trained_tokens   those that are learned; the first of a sample is never one, nothing predicts it
    image_tokens     places of pictures among them; those of videos are not counted
    images           pictures, not frames
    videos           videos
    """

    tokens: Int[np.ndarray, "samples"]
    trained_tokens: Int[np.ndarray, "samples"]
    image_tokens: Int[np.ndarray, "samples"]
    images: Int[np.ndarray, "samples"]
    videos: Int[np.ndarray, "samples"]


def measure(
    conversations: Sequence[Conversation],
    processor: Any,
    family: Family,
    *,
    workers: int | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Lengths:
    """``count``, where every sample must be good.

    Raises ValueError that names those that the family cannot read, and those without a single token to learn.
    """
    lengths = count(conversations, processor, family, workers=workers, cache_dir=cache_dir, say=say)
    faults = faults_of(conversations, lengths, processor, family)
    if faults:
        raise ValueError(faults_text(faults, len(conversations)))
    return lengths


def count(
    conversations: Sequence[Conversation],
    processor: Any,
    family: Family,
    *,
    workers: int | None = None,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Lengths:
    """Count every sample's tokens; no picture is opened, at most its header.

    A sample that the family cannot read has ``UNREADABLE`` tokens: a picture too elongated for its grid, a video that
    it does not read, a turn that its template refuses.

    Counts are kept under a key made of what decides them: the conversations, the family, every file of the
    processor, and the version of counting. A broken cache file is reported and counted again.

    workers     processes that count; None: as many as there are cores for
    cache_dir   where counts are kept; None: ``finetune.samples.cache.cache_folder()``
    """
    if isinstance(conversations, Joined):  # each source by itself: another one beside it changes no key
        apart = [
            count(one, processor, family, workers=workers, cache_dir=cache_dir, say=say)
            for one in conversations.sequences
        ]
        return Lengths(*(np.concatenate(columns) for columns in zip(*apart, strict=True)))
    digest = _digest(conversations, workers)
    key = _key(digest, len(conversations), processor, family)
    path = (cache_folder() if cache_dir is None else Path(cache_dir)) / "lengths" / f"{key}.counts"
    counts = _kept(path, len(conversations), say)
    if counts is None:
        counts = _counted(conversations, processor, family, workers)
        _keep(path, counts, say)
    return Lengths(*(counts[:, i].copy() for i in range(len(Lengths._fields))))


def faults_of(
    conversations: Sequence[Conversation], lengths: Lengths, processor: Any, family: Family
) -> dict[int, str]:
    """Place of each sample that cannot be trained on → what is wrong, with its name.

    Those that the family cannot read are read once more, for their counts alone are kept.
    """
    found = {}
    for i in np.flatnonzero(lengths.trained_tokens == 0).tolist():
        conversation = conversations[i]
        found[i] = f"{conversation.source}: {NOTHING_TO_LEARN}"
        if lengths.tokens[i] == UNREADABLE:
            try:
                _count(conversation, processor, family, image_places(family, processor))
            except ValueError as error:
                found[i] = str(error)
    return found


def faults_text(faults: Mapping[int, str], samples: int) -> str:
    """What ``faults_of`` found, as a message."""
    unlearned = all(one.endswith(NOTHING_TO_LEARN) for one in faults.values())
    how = "have no token to learn" if unlearned else "cannot be trained on with this model"
    title = f"{len(faults):,} of {samples:,} samples {how}:"
    return "\n".join([title, *shown([*faults.values()], MOST_NAMES_SHOWN)])


def shrink(
    conversation: Conversation, processor: Any, family: Family, max_length: int
) -> Conversation | None:
    """The conversation with its largest pictures bounded in pixels, as little as makes it fit ``max_length`` tokens.

    All pictures and frames get one bound (``ImageRef.max_pixels``), so small ones stay as they are. None if the text
    alone, with pictures as small as the family takes them, is too long.

    Raises ValueError if the family's pictures all have one size: they cannot be shrunk.
    """
    bounds = [_pixels(ref) for ref in conversation.media]
    if _tokens(conversation, processor, family) <= max_length:
        return conversation
    if not bounds:
        return None
    low, high = 1, max(bounds)
    if _tokens(_bounded(conversation, low), processor, family) > max_length:
        _check_shrinkable(conversation, processor, family)
        return None
    # low fits and high does not; sizes are rounded to patches, so the last percent changes nothing.
    while high > low + max(1, low // 100):
        middle = round((low * high) ** 0.5)
        fits = _tokens(_bounded(conversation, middle), processor, family) <= max_length
        low, high = (middle, high) if fits else (low, middle)
    return _bounded(conversation, low)


# ---------------------------------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------------------------------


def _counted(
    conversations: Sequence[Conversation], processor: Any, family: Family, workers: int | None
) -> Int[np.ndarray, "samples columns"]:
    places = image_places(family, processor)

    def work(chunk: range) -> Int[np.ndarray, "samples columns"]:
        rows = [_count_or_mark(conversations[i], processor, family, places) for i in chunk]
        return np.array(rows, np.int64).reshape(-1, len(Lengths._fields))

    parts = in_chunks(work, len(conversations), workers=workers, doing="counting tokens")
    return np.concatenate([np.empty((0, len(Lengths._fields)), np.int64), *(part for _, part in parts)])


def _count_or_mark(
    conversation: Conversation, processor: Any, family: Family, places: Places
) -> tuple[int, ...]:
    try:
        return _count(conversation, processor, family, places)
    except ValueError:
        return (UNREADABLE, *[0] * (len(Lengths._fields) - 1))


def _count(conversation: Conversation, processor: Any, family: Family, places: Places) -> tuple[int, ...]:
    """One row of ``Lengths``; ``places`` are those of pictures, as ``image_places`` tells them."""
    try:
        encoded = encode_for_training(family, processor, conversation, media=False)
    except ValueError as error:
        raise ValueError(f"{conversation.source}: {error}") from error
    images = sum(isinstance(ref, ImageRef) for ref in conversation.media)
    pictures = encoded
    if 0 < images < len(conversation.media):  # a frame's places may be a picture's
        pictures = family.encode(processor, _pictures_and_words(conversation), media=False)
    in_images = int(places(pictures.input_ids).sum()) if images else 0
    trained = int((encoded.labels[1:] != IGNORED).sum())
    return len(encoded.input_ids), trained, in_images, images, len(conversation.media) - images


def _pictures_and_words(conversation: Conversation) -> Conversation:
    """A part without videos and without boxes, which refer to their picture by index."""
    turns = [
        replace(turn, parts=tuple(part for part in turn.parts if isinstance(part, ImageRef | str)))
        for turn in conversation.turns
    ]
    return replace(conversation, turns=tuple(turns))


def _tokens(conversation: Conversation, processor: Any, family: Family) -> int:
    return len(family.encode(processor, conversation, media=False).input_ids)


# ---------------------------------------------------------------------------------------------------------------------
# Keeping
# ---------------------------------------------------------------------------------------------------------------------


def _digest(conversations: Sequence[Conversation], workers: int | None) -> str:
    """Of all that the conversations' tokens depend on."""
    if isinstance(conversations, Conversations) and conversations.digest is not None:
        return conversations.digest

    def work(chunk: range) -> bytes:
        hashed = hashlib.sha256()
        for i in chunk:
            hashed.update(fingerprint(conversations[i]))
        return hashed.digest()

    parts = in_chunks(work, len(conversations), workers=workers, doing="reading samples")
    return hashlib.sha256(b"".join(part for _, part in parts)).hexdigest()


def _key(digest: str, count: int, processor: Any, family: Family) -> str:
    """The processor counts by what it saves: vocabulary, chat template, pixel budget, slots of a picture."""
    hashed = hashlib.sha256(f"{COUNTING} {family.name} {count} {digest}".encode())
    with scratch_folder("processor") as folder:
        processor.save_pretrained(folder)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                hashed.update(f"\n{file.relative_to(folder)} {file.stat().st_size}\n".encode())
                hashed.update(file.read_bytes())
    return hashed.hexdigest()


def _kept(path: Path, count: int, say: Callable[[str], None]) -> Int[np.ndarray, "samples columns"] | None:
    """The counts of an earlier run, or None."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        say(f"{path}: cached token counts cannot be read ({error.strerror}); counting again")
        return None
    counts, checksum = content[:-32], content[-32:]
    columns = len(Lengths._fields)
    if hashlib.sha256(counts).digest() != checksum or len(counts) != count * columns * 8:
        say(f"{path}: the cached token counts are broken; counting again")
        return None
    return np.frombuffer(counts, "<i8").reshape(count, columns)


def _keep(path: Path, counts: Int[np.ndarray, "samples columns"], say: Callable[[str], None]) -> None:
    content = counts.astype("<i8").tobytes()
    try:
        keep(path, content + hashlib.sha256(content).digest())
    except OSError as error:
        say(f"{path}: token counts cannot be cached ({error.strerror}); the next run will count again")


# ---------------------------------------------------------------------------------------------------------------------
# Shrinking
# ---------------------------------------------------------------------------------------------------------------------


def _pixels(ref: ImageRef | VideoRef) -> int:
    """Pixels of a picture, or of a frame, as it is now given to the family."""
    width, height = frame_size(ref) if isinstance(ref, VideoRef) else ref.size_pixels or size_of(ref)
    return min(width * height, ref.max_pixels or width * height)


def _bounded(conversation: Conversation, most: int) -> Conversation:
    """The conversation with no picture or frame above ``most`` pixels."""
    turns = [
        replace(
            turn,
            parts=tuple(
                replace(part, max_pixels=most)
                if isinstance(part, ImageRef | VideoRef) and _pixels(part) > most
                else part
                for part in turn.parts
            ),
        )
        for turn in conversation.turns
    ]
    return replace(conversation, turns=tuple(turns))


def _check_shrinkable(conversation: Conversation, processor: Any, family: Family) -> None:
    large = ImageRef("large", Path("large"), size_pixels=(4096, 4000))
    one = Conversation((Turn("user", (large,)), Turn("assistant", ("a",), trained=False)))
    if _tokens(one, processor, family) == _tokens(_bounded(one, 1), processor, family):
        raise ValueError(
            f"{conversation.source}: too long, and every picture of {family.name} takes the same number of tokens, so "
            "shrinking cannot help; use --on_bad_sample drop, or raise --model_max_length"
        )
