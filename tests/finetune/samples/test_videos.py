"""Videos in training data: which frames are taken, how records name them, and a run that learns from them."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from finetune.samples.conversation import ImageRef, VideoRef
from finetune.samples.source import read
from finetune.samples.videos import Sampling, frame_size, open_frames, video_of_file, video_of_frames
from finetune.training.preview import sample_text
from tests.finetune.families.tiny_families import GRIDS, LEAST_PIXELS, MOST_PIXELS
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_siglip import SIGLIPS
from tests.finetune.test_program import SMALL, program, scalars  # noqa: F401 (a fixture)

FPS = 10


def write_video(path: Path, count: int = 40, size: tuple[int, int] = (64, 48), codec: str = "mpeg4") -> Path:
    """Frame ``n`` is a grey of 6 n: 40 of them at 10 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(count):
            grey = np.full((size[1], size[0], 3), 6 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def folder(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATTENTION_FINETUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return tmp_path


# --- frames ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fps", "most", "expected"),
    [
        (2.0, 32, [0, 6, 11, 17, 22, 28, 33, 39]),  # 4 seconds: 8 frames, evenly from the first to the last
        (1.0, 32, [0, 13, 26, 39]),
        (2.0, 6, [0, 8, 16, 23, 31, 39]),
        (2.0, 5, [0, 13, 26, 39]),  # whole pairs
        (0.1, 32, [0, 13, 26, 39]),  # at least 4
        (100.0, 1000, [*range(40)]),  # no more than there are
    ],
)
def test_which_frames_of_a_file_are_taken(clip: Path, fps: float, most: int, expected: list[int]):
    found = video_of_file(clip, "clip.mp4", Sampling(fps, most))
    assert list(found.at) == expected
    assert found.seconds == pytest.approx([one / FPS for one in expected])
    assert found.size_pixels == frame_size(found) == (64, 48)


def test_the_frames_taken_are_those_shown_then(tmp_path: Path):
    """Without losses, in a container whose header does not say how many there are."""
    path = write_video(tmp_path / "clip.mkv", codec="ffv1")
    found = video_of_file(path, "clip.mkv", Sampling())
    assert len(found.at) == 8 and found.at[-1] == 39
    greys = [np.asarray(one).mean() for one in open_frames(found, lambda _: pytest.fail("no picture"))]
    assert greys == pytest.approx([6 * at for at in found.at], abs=2)


CORNERS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def write_lying(path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int] = (64, 32)) -> Path:
    """A video stored with red and green on top, blue and white below, whose track header has the matrix a b / c d."""
    quarters = np.array([[CORNERS["R"], CORNERS["G"]], [CORNERS["B"], CORNERS["W"]]], np.uint8)
    stored = quarters.repeat(size[1] // 2, axis=0).repeat(size[0] // 2, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44  # behind its name, version and flags, times, layer and volume
    a, b, c, d = (one << 16 for one in matrix)
    assert struct.unpack_from(">9i", content, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def corners(frame: Image.Image) -> str:
    """The nearest colour in each corner: ``RG BW`` as stored."""
    right, below = frame.size[0] - 3, frame.size[1] - 3
    seen = [np.array(frame.getpixel(at)) for at in ((2, 2), (right, 2), (2, below), (right, below))]
    named = [min(CORNERS, key=lambda name: abs(one - np.array(CORNERS[name])).sum()) for one in seen]
    return f"{''.join(named[:2])} {''.join(named[2:])}"


@pytest.mark.parametrize(
    ("matrix", "expected", "counter_clockwise"),
    [
        ((1, 0, 0, 1), "RG BW", 0),
        ((0, 1, -1, 0), "BR WG", -90),  # a quarter clockwise: what was on the left is on top
        ((-1, 0, 0, -1), "WB GR", 180),
        ((0, -1, 1, 0), "GW RB", 90),
        ((-1, 0, 0, 1), "GR WB", None),  # mirrored, as by a camera at the front
        ((1, 0, 0, -1), "BW RG", None),
        ((0, 1, 1, 0), "RB GW", None),
        ((0, -1, -1, 0), "WG BR", None),
    ],
)
def test_a_video_is_turned_as_players_show_it(
    tmp_path: Path, matrix: tuple[int, int, int, int], expected: str, counter_clockwise: int | None
):
    path = write_lying(tmp_path / "phone.mp4", matrix)
    found = video_of_file(path, "phone.mp4", Sampling())
    frames = open_frames(found, lambda _: pytest.fail("no picture"))
    size = (32, 64) if matrix[0] == 0 else (64, 32)
    assert found.size_pixels == frame_size(replace(found, size_pixels=None)) == size
    assert [corners(one) for one in frames] == [expected] * 4 and {one.size for one in frames} == {size}
    if counter_clockwise is not None:  # where nothing is mirrored, as the library says
        with av.open(str(path)) as container:
            assert (next(container.decode(video=0)).rotation - counter_clockwise) % 360 == 0


def test_a_file_of_one_frame(tmp_path: Path):
    found = video_of_file(write_video(tmp_path / "one.mp4", count=1), "one", Sampling())
    assert found.at == (0,) and len(open_frames(found, lambda _: None)) == 1


def test_broken_and_missing_files_are_named(tmp_path: Path, clip: Path):
    with pytest.raises(ValueError, match=r"no\.mp4'?: there is no such file"):
        video_of_file(tmp_path / "no.mp4", "no.mp4", Sampling())
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"video .*cut\.mp4'?: found a broken file"):
        video_of_file(tmp_path / "cut.mp4", "cut.mp4", Sampling())
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4"):
        video_of_file(tmp_path / "text.mp4", "text.mp4", Sampling())
    found = video_of_file(clip, "clip.mp4", Sampling())
    longer = VideoRef("clip.mp4", (0.0, 9.9), path=clip, at=(0, 99), size_pixels=(64, 48))
    with pytest.raises(ValueError, match="frame 99 is missing, although its header counts it"):
        open_frames(longer, lambda _: None)
    assert len(open_frames(found, lambda _: None)) == 8


def test_a_playlist_does_not_reach_the_network(tmp_path: Path):
    listed = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(listed)
    with pytest.raises(ValueError, match=r"list\.m3u8"):
        video_of_file(tmp_path / "list.m3u8", "list.m3u8", Sampling())


def test_frames_given_as_pictures():
    frames = [ImageRef(f"{at}.png", Path(), size_pixels=(9, 5)) for at in range(3)]
    assert video_of_frames(frames, "v", 4.0).seconds == (0.0, 0.25, 0.5)
    with pytest.raises(ValueError, match="found no frame"):
        video_of_frames([], "v", 2.0)
    with pytest.raises(ValueError, match="found 0 frames per second, expected more than 0"):
        video_of_frames(frames, "v", 0.0)
    other = ImageRef("3.png", Path(), size_pixels=(9, 6))
    with pytest.raises(ValueError, match="found frame 3 of 9 × 6 pixels, expected 9 × 5 as its first"):
        video_of_frames([*frames, other], "v", 2.0)


# --- records ---------------------------------------------------------------------------------------------
def chat(words: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": words}, {"from": "gpt", "value": "a dog"}], **more}


def messages(content: Any, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a dog"}]
    return {"messages": turns, **more}


def written(folder: Path, record: dict[str, Any]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    return path


def quietly(path: Path, **options: Any) -> Any:
    return read(path, **options, say=lambda _: None)


FRAMES = {"frames": ["0.png", "1.png", "2.png"], "fps": 4}
WRITTEN = [
    ("llava", chat("<video>\nwhat?", video="clip.mp4")),
    ("llava", chat("<video>\nwhat?", video=FRAMES)),
    ("sharegpt", chat("<video>\nwhat?", videos=["clip.mp4"])),
    ("sharegpt", chat("<video>\nwhat?", videos=[["0.png", "1.png", "2.png"]])),
    ("openai", messages([{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "\nwhat?"}])),
    (
        "openai",
        messages([{"type": "video_url", "video_url": {"url": "clip.mp4"}}, {"type": "text", "text": "\nwhat?"}]),
    ),
    (
        "openai",
        messages([
            {"type": "video", "video": FRAMES["frames"], "fps": 4}, {"type": "text", "text": "\nwhat?"}
        ]),
    ),
    ("openai", messages([{"type": "video"}, {"type": "text", "text": "\nwhat?"}], videos=["clip.mp4"])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "record"), WRITTEN)
def test_a_video_however_it_is_written(folder: Path, name: str, record: dict[str, Any]):
    found = quietly(written(folder, record))
    assert found.layout.format.name == name
    one = found[0]
    video, words = one.turns[0].parts
    assert isinstance(video, VideoRef) and words == "\nwhat?" and one.media == (video,)
    if video.frames:
        fps = 4 if "fps" in json.dumps(record) else 2
        assert [ref.path.name for ref in video.frames] == FRAMES["frames"]
        assert video.seconds == (0, 1 / fps, 2 / fps)
    else:
        assert video.path == folder / "clip.mp4" and len(video.at) == 8
    assert video.size_pixels == (64, 48)
    with pytest.raises(ValueError, match="found the video"):
        one.images  # noqa: B018 (who reads pictures alone is told)


def test_pictures_and_videos_each_in_their_place(folder: Path):
    record = chat("<video> then <image>", videos=[FRAMES], images=["2.png"])
    [one] = quietly(written(folder, record))
    video, words, picture = one.turns[0].parts
    assert isinstance(video, VideoRef) and isinstance(picture, ImageRef) and words == " then "
    # Read again from the sizes that checking noted: the list of pictures is looked at before the videos.
    assert picture.size_pixels == (64, 48) and video.frames[0].size_pixels == (64, 48)


def test_without_a_video_beside_it_the_mark_is_a_fault_unless_escaped(folder: Path):
    with pytest.raises(
        ValueError, match=r"videos: found 0 videos and 1 <video> in the text.*before it: .<video>"
    ):
        quietly(written(folder, chat("what does <video> mean in HTML?", videos=[])))
    [one] = quietly(written(folder, chat("what does \\<video> mean in HTML?", images=[])))
    assert one.turns[0].parts == ("what does <video> mean in HTML?",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (chat("<video> <video>", videos=["clip.mp4"]), "videos: found 1 video and 2 <video> in the text"),
        (chat("what?", video="clip.mp4"), "video: found 1 video and 0 <video> in the text"),
        (chat("<video>", videos=["no.mp4"]), r"videos\[0\]: video 'no.mp4': no such file"),
        (chat("<video>", videos=["http://a.b/c.mp4"]), r"video 'http://a.b/c.mp4': is a URL, expected a file"),
        (chat("<video>", videos=[{"frames": ["0.png"], "fps": "2"}]), r"videos\[0\]: fps: found '2'"),
        (chat("<video>", videos=[{"frames": []}]), r"videos\[0\]: found an empty list, expected at least one frame"),
        (chat("<audio> what?", audios=["x.wav"]), r"audios: found \['x.wav'\], but audio is not supported"),
        (chat("what?", audio="x.wav"), "audio: found 'x.wav', but audio is not supported"),
        (chat("<video>", videos=[7]), r"videos\[0\]: found 7, expected the path of a video"),
        (
            chat("<video> <ref>dog</ref><box>(1,2),(3,4)</box>", videos=["clip.mp4"]),
            "found a box in a video, but boxes are only supported in pictures",
        ),
    ],
)  # fmt: skip
def test_faults_name_record_and_field(folder: Path, record: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"record 0: .*{message}"):
        quietly(written(folder, record))


def test_how_many_frames_is_the_reader_s_to_say(folder: Path):
    [one] = quietly(written(folder, WRITTEN[0][1]), sampling=Sampling(1.0, 2))
    assert len(one.media[0].at) == 2


# --- training --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl", "llava-onevision", "internvl", "smolvlm"])
def test_a_run_learns_from_videos_beside_pictures(
    program: ModuleType,  # noqa: F811
    folder: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
):
    tiny = {**GRIDS, **LLAVAS, **SIGLIPS}[name]
    if name in GRIDS:  # the published bounds are a thousand tokens of its small cells
        monkeypatch.setattr(type(tiny.family), "video_pixels", (LEAST_PIXELS, MOST_PIXELS))
    model = tiny.write(folder / "model")
    four = {"frames": [*FRAMES["frames"], "1.png"], "fps": 4}  # as many as are taken of the file
    records = [
        chat("<video>\nwhat?", videos=["clip.mp4"], images=[]),
        chat("<image>\nwhat?", images=["1.png"], videos=[]),
        chat("<video> and <image>", videos=[four], images=["2.png"]),
        chat("no picture", images=[], videos=[]),
    ]
    data = folder / "data.json"
    data.write_text(json.dumps(records), encoding="utf-8")
    flags = [
        "--model_name_or_path", str(model), "--data_path", str(data), "--output_dir", str(folder / "out"),
        "--use_lora", "True", "--video_max_frames", "4", *SMALL,
    ]  # fmt: skip
    assert program.main([*flags, "--dry_run", "True"]) == 0
    assert f"{data.name}: record" in capsys.readouterr().out
    assert program.main(flags) == 0
    losses = scalars(folder / "out" / "runs")["train/loss"]
    assert losses[4] < losses[1]


def test_a_family_without_videos_refuses_before_training(
    program: ModuleType,  # noqa: F811
    folder: Path,
    checkpoint_folder: Path,
    capsys: pytest.CaptureFixture,
):
    data = written(folder, chat("<video>\nwhat?", videos=["clip.mp4"]))
    flags = ["--model_name_or_path", str(checkpoint_folder), "--data_path", str(data), "--use_lora", "True"]
    assert program.main([*flags, "--output_dir", str(folder / "out"), *SMALL]) == 1
    assert (
        "record 0: found the video 'clip.mp4', which this model does not read here" in capsys.readouterr().err
    )
    assert not (folder / "out").exists()


def test_a_sample_as_it_is_shown_names_its_videos(folder: Path):
    family = GRIDS["qwen3-vl"].family
    processor = GRIDS["qwen3-vl"].processor(folder / "processor")
    processor.videos = {"size": {"shortest_edge": 64, "longest_edge": 4 * 6 * 64}}
    record = chat("<video> and <image>", videos=[FRAMES], images=["2.png"])
    [one] = quietly(written(folder, record))
    shown = sample_text(family.encode(processor, one), processor, name="it", colour=False)
    assert "1 image, 1 video" in shown
    assert "<0.1 seconds><|vision_start|>(6 video tokens)<|vision_end|><0.5 seconds>" in shown
    assert "and <|vision_start|>(20 image tokens)<|vision_end|>" in shown
