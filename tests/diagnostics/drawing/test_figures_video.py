"""The figure of a video's frames, by its artists; and the code of docs/capture.md that makes one."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diagnostics.drawing.figures import AttentionVisualizer
from finetune.families.parts.qwen_grid import image_tokens
from finetune.families.parts.qwen_video import Film, video_tokens
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.samples.test_videos import write_video

ROOT = Path(__file__).parents[3]
SIZE = (48, 32)


def strip(steps: int = 3):
    film = Film(SIZE, SIZE, (steps, 2, 3), tuple(0.25 + step for step in range(steps)), 1.0)
    return video_tokens([0], film, image_tokens)


def frames(count: int = 3):
    return [Image.new("RGB", SIZE, (60 * at % 256, 90, 120)) for at in range(count)]


def test_each_frame_has_its_map_its_time_and_its_share():
    weights = np.full(18, 0.02)
    weights[6 + 4] = 0.66  # the second frame's second row, second column
    figure = AttentionVisualizer().visualize_video_attention(frames(), weights, strip(), title="东方明珠")
    panels = [axes for axes in figure.axes if len(axes.images) == 2]
    assert [axes.get_title() for axes in panels] == ["0.2 s · 12 %", "1.2 s · 76 %", "2.2 s · 12 %"]
    shown = [axes.images[1].get_array() for axes in panels]
    assert [one.shape for one in shown] == [(2, 3)] * 3
    assert np.unravel_index(np.argmax(shown[1]), (2, 3)) == (1, 1)
    assert np.concatenate(shown).mean() == pytest.approx(1)
    assert {axes.images[1].get_clim() for axes in panels} == {(0.0, np.concatenate(shown).max())}
    assert figure._suptitle.get_text() == "东方明珠"


@pytest.mark.parametrize(
    ("pictures", "weights", "video", "message"),
    [
        (frames(2), np.ones(18), strip(), "frames has 2 pictures for a video of 3 frames"),
        (frames(1), np.ones(6), image_tokens(0, (2, 3), SIZE), "1 pictures for a video of 0 frames"),
        (frames(25), np.ones(150), strip(25), "at most 24"),
        (frames(), np.ones(17), strip(), "attn_weights has 17 cells; grid 6 x 3 has 18"),
        (frames(), np.zeros(18), strip(), "not all zero"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(pictures, weights, video, message):
    with pytest.raises(ValueError, match=message):
        AttentionVisualizer().visualize_video_attention(pictures, weights, video)


def test_the_page_that_shows_how(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "capture.md").read_text(encoding="utf-8")
    [code] = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "video_of_file" in block
    ]
    model = GRIDS["qwen2.5-vl"].write(tmp_path / "model")
    write_video(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("Qwen/Qwen2.5-VL-7B-Instruct", str(model)), {})  # our own page
    with Image.open(tmp_path / "clip.png") as drawn:
        assert drawn.size == (1200, 800)
