"""Videos in Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: tokens, time stamps, pixels, cells, rotary positions. What they
have in common with other families' is in ``test_video_families``."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.measures.geometry import cells_from_row, pixel_map
from diagnostics.probing.prompts import padded
from finetune.data.lengths import shrink
from finetune.families.parts.coverage import region_coverage
from finetune.families.parts.qwen_video import rotary_positions
from finetune.samples.conversation import ImageRef
from finetune.samples.videos import video_of_frames
from tests.finetune.families.clips import CPU, about, grid_processor, picture, still, video
from tests.finetune.families.parts.test_qwen_grid import tower_rows_by_hand
from tests.finetune.families.tiny_families import GRIDS, IDS, MERGE, PATCH
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS


@pytest.fixture(scope="module", params=[*GRIDS, "qwen3.5"])
def tiny(request):
    return {**GRIDS, **HYBRIDS}[request.param]


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    return grid_processor(tiny, tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model()


# --- tokens ----------------------------------------------------------------------------------------------
def test_a_video_s_tokens_by_hand(tiny, processor):
    """6 frames of 50 × 31 pixels at 2 a second: 3 steps of 2 × 4 cells between words and picture."""
    encoded = tiny.family.encode(processor, about("see ", video(), "and ", picture()))
    clip, after = encoded.images
    rows, columns = clip.grid[0] // 3, clip.grid[1]
    assert (rows, columns) == (2, 4)
    start = encoded.turn_spans[0][0]
    cells = rows * columns
    pad, first, last = IDS["<|video_pad|>"], IDS["<|vision_start|>"], IDS["<|vision_end|>"]
    stamps = [
        "<0.2 seconds>",
        "<1.2 seconds>",
        "<2.2 seconds>",
    ]  # of frames at 0 and .5, 1 and 1.5, 2 and 2.5
    words = processor.tokenizer("see ")["input_ids"]
    if tiny.family.has_time_stamps:
        expected = words
        for stamp in stamps:
            expected = [*expected, *processor.tokenizer(stamp)["input_ids"], first, *[pad] * cells, last]
    else:
        expected = [*words, first, *[pad] * 3 * cells, last]
    assert encoded.input_ids[start : start + len(expected)].tolist() == expected
    assert (encoded.input_ids[clip.positions] == pad).all()
    assert (encoded.input_ids == pad).sum() == 3 * cells == len(clip.positions)
    kinds = encoded.per_token["mm_token_type_ids"]
    assert (kinds == 2).nonzero()[0].tolist() == clip.positions.tolist()
    assert (kinds == 1).nonzero()[0].tolist() == after.positions.tolist()
    assert clip.seconds == (0.25, 1.25, 2.25) and after.seconds == ()
    assert encoded.media["video_grid_thw"].tolist() == [[3, rows * MERGE, columns * MERGE]]


def test_an_odd_last_frame_is_shown_twice(tiny, processor):
    odd = tiny.family.encode(processor, about(video((40, 16), count=3)))
    frames = [ImageRef("", still((40, 16), at)) for at in (0, 1, 2, 2)]
    even = tiny.family.encode(processor, about(video_of_frames(frames, "clip", 2.0)))
    assert torch.equal(odd.media["pixel_values_videos"], even.media["pixel_values_videos"])
    assert odd.images[0].seconds == (0.25, 1.0)  # the last stands for itself


def test_too_long_a_video_gets_smaller_frames(tiny, processor):
    conversation = about(video())
    long = len(tiny.family.encode(processor, conversation, media=False).input_ids)
    smaller = shrink(conversation, processor, tiny.family, long - 5)
    assert len(tiny.family.encode(processor, smaller, media=False).input_ids) <= long - 5
    assert smaller.media[0].max_pixels < 50 * 31


# --- pixels ----------------------------------------------------------------------------------------------
def test_pixels_are_frames_two_by_two(tiny, processor, model):
    """What the tower's first convolution makes of them is what it makes of the video itself, resized by Pillow."""
    clip = video(count=4)
    encoded = tiny.family.encode(processor, about(clip))
    steps, rows, columns = encoded.media["video_grid_thw"][0].tolist()
    settings = processor.image_processor
    whole = np.stack([
        (np.asarray(ref.path.resize((columns * PATCH, rows * PATCH), Image.Resampling.BICUBIC), np.float32) / 255
         - settings.image_mean) / settings.image_std
        for ref in clip.frames
    ])  # fmt: skip
    embed = model.model.visual.patch_embed
    with torch.no_grad():
        found = embed(encoded.media["pixel_values_videos"])
        film = torch.from_numpy(whole).float().permute(3, 0, 1, 2)[None]
        expected = F.conv3d(film, embed.proj.weight, embed.proj.bias, stride=embed.proj.stride)[0]
    assert expected.shape[1:] == (steps, rows, columns) == (2, rows, columns) and rows != columns
    blocks = expected.reshape(-1, steps, rows // MERGE, MERGE, columns // MERGE, MERGE)
    ordered = blocks.permute(1, 2, 4, 3, 5, 0).reshape(len(found), -1)
    torch.testing.assert_close(found, ordered, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(90, 33), (57, 90), (131, 77)])
def test_a_cell_stands_for_the_pixels_and_the_time_that_change_its_token(tiny, processor, size):
    plain = [Image.new("RGB", size, (90, 120, 150)) for _ in range(6)]

    def encoded(frames):
        clip = video_of_frames([ImageRef("", frame) for frame in frames], "clip", 2.0)
        return tiny.family.encode(processor, about(clip))

    before = encoded(plain)
    strip = before.images[0]
    rows, columns = strip.grid[0] // 3, strip.grid[1]
    assert rows != columns and strip.frames == 3 and strip.image_size_pixels == (size[0], 3 * size[1])
    second = strip.frame(1)
    assert second.grid == (rows, columns) and second.image_size_pixels == size and second.seconds == ()
    here = columns + 1 if rows > 1 else 1  # second row, second column, of the second step of time
    x0, y0, x1, y1 = second.cell_boxes_pixels[here]
    assert (x0, x1) == pytest.approx((size[0] / columns, 2 * size[0] / columns))
    marked = [frame.copy() for frame in plain]
    middle, reach = ((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 6, (y1 - y0) / 6)
    spot = (middle[0] - reach[0], middle[1] - reach[1], middle[0] + reach[0], middle[1] + reach[1])
    ImageDraw.Draw(marked[3]).rectangle(spot, fill=(255, 0, 0))  # frames 2 and 3 are the second step
    pixels = [one.media["pixel_values_videos"] for one in (before, encoded(marked))]
    moved = (pixels[0] - pixels[1]).abs().sum(1).reshape(-1, MERGE**2).sum(1).numpy()
    cell = rows * columns + here
    assert np.argmax(moved) == cell and moved[cell] > 3 * np.delete(moved, cell).max()
    assert second.positions[here] == strip.positions[cell]


def test_a_map_of_a_video_is_its_frames_one_below_another(tiny, processor):
    encoded = tiny.family.encode(processor, about(video()))
    strip = encoded.images[0]
    row = np.zeros(len(encoded.input_ids))
    row[strip.frame(2).positions[1]] = 0.4
    cells = cells_from_row(row, strip)
    for smooth in (False, True):  # smoothed within a frame, not into the one before
        seen = pixel_map(cells, strip, smooth=smooth)
        assert seen.shape == (93, 50) and seen[:62].sum() == 0 and seen[62:].sum() == pytest.approx(1)
    box = strip.frame(1).cell_boxes_pixels[1]
    below = [(box + np.array([0, 31, 0, 31])).tolist()]
    covered = region_coverage(below, strip)
    assert covered.argmax() == strip.grid[1] * strip.grid[0] // 3 + 1 and covered.sum() == pytest.approx(1)
    with pytest.raises(IndexError, match="frame 3: found a video of 3 frames"):
        strip.frame(3)


# --- rotary positions ------------------------------------------------------------------------------------
@pytest.mark.parametrize("fps", [2.0, 0.7])
def test_rotary_positions_are_the_model_s_own(tiny, processor, model, fps):
    longer = video((31, 50), 15, fps=1.0)  # more steps of time than rows or columns
    parts = ("a ", picture((50, 31)), "b ", video(fps=fps), "c ", picture(), longer, "d ")
    encoded = tiny.family.encode(processor, about(*parts))
    assert encoded.images[3].frames == 8 > max(encoded.images[3].frame(0).grid)
    grids = {name: grid for name, grid in encoded.media.items() if not name.startswith("pixel")}
    expected, _ = model.model.get_rope_index(
        torch.from_numpy(encoded.input_ids)[None],
        mm_token_type_ids=torch.from_numpy(encoded.per_token["mm_token_type_ids"])[None],
        **grids,
    )
    found = rotary_positions(encoded, tiny.family.steps_of_time(model.config, encoded))
    assert torch.equal(found, expected[:, 0])
    if tiny.family.name == "qwen2.5-vl":  # in seconds: slower than the default of 1
        assert not torch.equal(rotary_positions(encoded), found)
        assert encoded.media["second_per_grid_ts"].tolist() == pytest.approx([2 / fps, 2.0])


# --- looking ---------------------------------------------------------------------------------------------
def test_a_frame_s_rows_of_the_tower_by_hand(tiny, processor, model):
    """A video of one step of time attends as a picture shown twice does: recomputed from queries and keys."""
    one = picture((90, 33))
    shown = ImageRef("a", one.path.resize((48, 16)))
    as_video = tiny.family.encode(processor, about(video_of_frames([shown, shown], "clip", 2.0)))
    as_picture = tiny.family.encode(processor, about(shown))
    if as_video.media["video_grid_thw"].tolist() != as_picture.media["image_grid_thw"].tolist():
        pytest.fail("the bounds of pictures and frames resize them differently; choose another size")
    with torch.no_grad():
        expected, places = tower_rows_by_hand(model, padded([as_picture], CPU, left=False), 0)
        with AttentionExtractor(model, [], vision_layers=[0]) as seen:
            model(**padded([as_video], CPU, left=False))
    columns = as_video.media["video_grid_thw"][0, 2].item()
    row_major = np.argsort(places[:, 0] * columns + places[:, 1])
    found = seen.attention_weights["vision_layer_0"][0]
    assert np.abs(found - expected[:, row_major][:, :, row_major]).max() < 1e-6


def test_settings_of_videos_come_from_the_checkpoint(tiny, processor, tmp_path):
    """As published folders have them, beside the processor's other files."""
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["video_processor"]["size"]["longest_edge"] == processor.videos["size"]["longest_edge"]
    again = tiny.family.load_processor(str(tmp_path))
    one, other = (tiny.family.encode(each, about(video())) for each in (processor, again))
    assert torch.equal(one.media["pixel_values_videos"], other.media["pixel_values_videos"])
