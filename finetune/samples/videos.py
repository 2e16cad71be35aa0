"""Opens videos: samples frames, reads their size, and decodes them.

Frames of files are turned as players show them, so that a telephone's video is not trained lying on its side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Transpose

from finetune.samples.conversation import ImageRef, VideoRef
from finetune.samples.images import size_of

MERGED = 2  # frames per time step in Qwen's families; other families do not merge frames
LEAST_FRAMES = 4  # per file, as in Qwen's processors
_TURNS = {
    # axes exchanged, x reversed, y reversed; Pillow turns counter-clockwise
    (False, True, False): Transpose.FLIP_LEFT_RIGHT,
    (False, False, True): Transpose.FLIP_TOP_BOTTOM,
    (False, True, True): Transpose.ROTATE_180,
    (True, False, False): Transpose.TRANSPOSE,
    (True, True, False): Transpose.ROTATE_270,
    (True, False, True): Transpose.ROTATE_90,
    (True, True, True): Transpose.TRANSVERSE,
}
_EXCHANGED = (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.ROTATE_90, Transpose.TRANSVERSE)


class Sampling(NamedTuple):
    """How frames of a video file are sampled.

    fps      frames per second
    most     maximum per video; a longer video is sampled more sparsely
    """

    fps: float = 2.0
    most: int = 32


SAMPLING = Sampling()


def video_of_file(path: Path, written: str, sampling: Sampling) -> VideoRef:
    """A video file's frames, evenly spaced from first to last; decodes one frame if the header is complete.

    2 seconds at 30 frames per second, sampled at 2: 4 frames, at 0, 20, 39 and 59.

    Raises ValueError naming the file if it is missing, broken or has no frames.
    """
    with _opened(path) as stream:
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        frames = stream.container.decode(stream)
        first = next(frames, None)
        size = (0, 0) if first is None else _shown_size(first)
        count = 0 if first is None else stream.frames or 1 + sum(1 for _ in frames)
    if not count or not rate or not all(size):
        raise ValueError(
            f"video {str(path)!r}: found {count} frames at {rate:g} per second, expected at least one frame"
        )
    wanted = min(max(count / rate * sampling.fps, LEAST_FRAMES), sampling.most, count)
    taken = max(int(wanted) // MERGED * MERGED, min(MERGED, count))
    at = np.linspace(0, count - 1, taken).round().astype(int).tolist()
    seconds = tuple(one / rate for one in at)
    return VideoRef(written, seconds, path=path, at=tuple(at), duration=count / rate, size_pixels=size)


def video_of_frames(frames: Sequence[ImageRef], written: str, fps: float) -> VideoRef:
    """A video given as pictures, ``fps`` per second; every one becomes a frame.

    Raises ValueError if there are none, or if their sizes differ.
    """
    if not frames:
        raise ValueError(f"video {written!r}: found no frame, expected at least one")
    if not fps > 0:
        raise ValueError(f"video {written!r}: found {fps:g} frames per second, expected more than 0")
    sizes = [_size(ref) for ref in frames]
    _check_alike(sizes, written)
    seconds = tuple(at / fps for at in range(len(frames)))
    duration = len(frames) / fps
    return VideoRef(written, seconds, frames=tuple(frames), duration=duration, size_pixels=sizes[0])


def frame_size(ref: VideoRef) -> tuple[int, int]:
    """(width, height) of a frame as it is shown: from the record or a header, else of a file's first frame."""
    if ref.size_pixels is not None:
        return ref.size_pixels
    if ref.frames:
        return _size(ref.frames[0])
    with _opened(ref.path) as stream:
        for frame in stream.container.decode(stream):
            return _shown_size(frame)
    raise ValueError(f"video {str(ref.path)!r}: found no frame, expected at least one")


def open_frames(ref: VideoRef, open_still: Callable[[ImageRef], Any]) -> tuple[Any, ...]:
    """The frames, RGB pictures of one size. ``open_still`` opens frames that are files of their own.

    Raises ValueError naming the video if it is broken or its frames differ in size.
    """
    if ref.frames:
        stills = [open_still(one) for one in ref.frames]
    else:
        stills = list(_decoded(ref))
    _check_alike([one.size for one in stills], ref.written)
    return tuple(stills)


def _size(ref: ImageRef) -> tuple[int, int]:
    return ref.size_pixels or size_of(ref.path if ref.data is None else ref)


def _decoded(ref: VideoRef) -> Iterator[Any]:
    wanted = dict.fromkeys(ref.at)
    with _opened(ref.path) as stream:
        for number, frame in enumerate(stream.container.decode(stream)):
            if number in wanted:
                wanted[number] = _upright(frame)
            if number >= ref.at[-1]:
                break
    missing = [at for at, still in wanted.items() if still is None]
    if missing:
        raise ValueError(
            f"video {str(ref.path)!r}: frame {missing[0]} is missing, although its header counts it; save it again"
        )
    for at in ref.at:
        yield wanted[at]


def _turn(frame: Any) -> Transpose | None:
    """How players turn a frame, by the display matrix of its file; None: not at all.

    Telephones store videos as the sensor lies, and a matrix a b · / c d · that moves what is at (x, y) to
    (a x + c y, b x + d y), y downwards: 0 1 / -1 0 turns clockwise by 90°. ``frame.rotation`` leaves out mirroring.
    An angle between is taken for the nearest right one.

    Source: QuickTime File Format, "Matrices"; av.VideoStream.set_display_matrix.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    exchanged = abs(b) > abs(a)
    return _TURNS.get((exchanged, (c if exchanged else a) < 0, (b if exchanged else d) < 0))


def _shown_size(frame: Any) -> tuple[int, int]:
    width, height = frame.width, frame.height
    return (height, width) if _turn(frame) in _EXCHANGED else (width, height)


def _upright(frame: Any) -> Any:
    turn = _turn(frame)
    return frame.to_image() if turn is None else frame.to_image().transpose(turn)


def _check_alike(sizes: Sequence[tuple[int, int]], written: str) -> None:
    for number, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(
                f"video {written!r}: found frame {number} of {size[0]} × {size[1]} pixels, expected "
                f"{sizes[0][0]} × {sizes[0][1]} as its first; scale all frames to one size"
            )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The first video stream of a file."""
    try:
        import av
    except ImportError as error:
        raise ValueError(
            f"video {str(path)!r}: reading video files needs the package av; pip install av, or give the frames as "
            "pictures"
        ) from error
    if not path.is_file():
        raise ValueError(f"video {str(path)!r}: there is no such file")
    try:
        # Files only: a playlist may name URLs.
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise ValueError(f"video {str(path)!r}: found no video stream in it")
            yield container.streams.video[0]
    except av.FFmpegError as error:
        raise ValueError(f"video {str(path)!r}: found a broken file ({error}); save it again") from error
