"""Videos in Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: tokens, time stamps, pixels, cells, rows, packing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F

from diagnostics.capture import AttentionExtractor
from diagnostics.geometry import cells_from_row, pixel_map, region_coverage
from diagnostics.reading import padded
from finetune.conversation import Conversation, ImageRef, Turn
from finetune.data import Collator, Sample, blank_video
from finetune.families.base import attending_layers
from finetune.families.qwen_video import rotary_positions
from finetune.lengths import shrink
from finetune.videos import video_of_frames
from tests.families.test_qwen_grid import tower_rows_by_hand
from tests.families.tiny_families import ALL, CELL, GRIDS, IDS, MERGE, PATCH
from tests.families.tiny_llava import LLAVAS
from tests.families.tiny_qwen3_5 import HYBRIDS

LEAST, MOST = 2 * CELL**2, 12 * CELL**2
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[*GRIDS, "qwen3.5"])
def tiny(request):
    return {**GRIDS, **HYBRIDS}[request.param]


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    made = tiny.processor(tmp_path_factory.mktemp("processor"))
    # Qwen3-VL's are bounds of all frames together.
    frames = 6 if tiny.family.has_time_stamps else 1
    made.videos = {"size": {"shortest_edge": LEAST * frames, "longest_edge": MOST * frames}}
    return made


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model()


def still(size, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def video(size=(50, 31), count=6, *, fps=2.0, seed=0):
    frames = [ImageRef(f"frame {at}.png", still(size, seed + at)) for at in range(count)]
    return video_of_frames(frames, "clip", fps)


def picture(size=(30, 60), seed=90):
    return ImageRef("a.png", still(size, seed))


def about(*parts, answer="yes"):
    return Conversation((Turn("user", (*parts, "what?")), Turn("assistant", (answer,))))


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


def test_tokens_are_counted_without_opening_a_frame(tiny, processor, tmp_path):
    """Files cut after their headers have a size and no pixels."""
    refs = []
    for at in range(3):
        path = tmp_path / f"{at}.png"
        still((50, 31), at).save(path)
        refs.append(ImageRef(path.name, path))
    full = tiny.family.encode(processor, about(video_of_frames(refs, "clip", 2.0)))
    for ref in refs:
        ref.path.write_bytes(ref.path.read_bytes()[:60])
    counted = tiny.family.encode(processor, about(video_of_frames(refs, "clip", 2.0)), media=False)
    assert counted.input_ids.tolist() == full.input_ids.tolist()
    assert counted.labels.tolist() == full.labels.tolist()
    with pytest.raises(ValueError, match=r"0\.png"):
        tiny.family.encode(processor, about(video_of_frames(refs, "clip", 2.0)))


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


@pytest.mark.parametrize("name", ["qwen-vl", "llava-1.5", "llava-onevision", "internvl"])
def test_a_family_that_reads_no_video_says_so(name, tmp_path):
    other = {**ALL, **LLAVAS}[name]
    with pytest.raises(ValueError, match=r"found the video 'clip', which this model does not read here"):
        other.family.encode(other.processor(tmp_path), about(video()))
    assert blank_video(other.family, other.processor(tmp_path)) is None


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


def test_samples_with_videos_in_one_row_do_not_see_each_other(tiny, processor, model):
    if tiny.unpackable:
        return
    one = tiny.family.encode(processor, about(video(), "x "))
    other = tiny.family.encode(processor, about(picture(), "longer ", video((31, 50), 4, seed=40)))
    blank = tiny.family.blank(processor)
    pack = Collator(0, blank, packed=lambda row: tiny.family.packed(model.config, row))
    alone = Collator(0, blank)

    def logits(collator, *samples):
        batch = collator(
            [[Sample(encoded=one, number=number, source=0) for number, one in enumerate(samples)]]
        )
        about = batch.pop("about")
        assert int(about["pictures"]) == sum(len(one.images) for one in samples)
        with torch.no_grad():
            return model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[0]

    together = logits(pack, other, one)
    start = 0
    for sample in (other, one):
        expected = logits(alone, sample)
        found = together[start : start + len(expected)]
        assert (found - expected).abs().max() <= 3e-6 * expected.abs().max()
        start += len(expected)


def test_every_batch_runs_the_tower_as_often_as_every_other(tiny, processor, model):
    """Where weights are sharded a process with a picture alone must not wait for one with a video too."""
    blank = tiny.family.blank(processor)
    clip = blank_video(tiny.family, processor)
    assert clip.images[0].grid == (1, 1) and (clip.labels == -100).all()
    samples = {
        "picture": tiny.family.encode(processor, about(picture())),
        "video": tiny.family.encode(processor, about(video())),
        "words": tiny.family.encode(processor, about()),
        "both": tiny.family.encode(processor, about(video(), picture())),
    }
    collate = Collator(0, blank, blank_pictures=True, blank_video=clip)
    calls = []
    hook = model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    for rows in ([one] for one in samples.values()):
        batch = collate([[Sample(encoded=one, number=0)] for one in rows])
        assert {"pixel_values", "pixel_values_videos"} <= batch.keys()
        labels, _ = batch.pop("labels"), batch.pop("about")
        length = len(rows[0].input_ids)
        assert (labels[0, length:] == -100).all()
        calls.clear()
        with torch.no_grad():
            found = model(**batch, use_cache=False).logits[0, :length]
            assert len(calls) == 2
            alone = Collator(0, blank)([[Sample(encoded=rows[0], number=0)]])
            del alone["labels"], alone["about"]
            expected = model(**alone, use_cache=False).logits[0]
        assert (found - expected).abs().max() <= 3e-6 * expected.abs().max()
    hook.remove()
    assert {"pixel_values", "pixel_values_videos"} <= collate([]).keys()  # a process without a sample


# --- looking ---------------------------------------------------------------------------------------------
def test_rows_are_those_of_eager_beside_a_picture(tiny, processor, model):
    encoded = tiny.family.encode(processor, about(picture(), video()))
    inputs = padded([encoded], CPU, left=False)
    layers = attending_layers(model, tiny.family)
    with torch.no_grad():
        plain = model(**inputs).logits
        with AttentionExtractor(model, layers, vision_layers=[0, 1], images=[0]) as seen:
            assert torch.equal(model(**inputs).logits, plain)
        model.set_attn_implementation("eager")
        expected = model(**inputs, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    for layer, rows in zip(layers, expected, strict=True):
        assert np.abs(seen.attention_weights[f"layer_{layer}"] - rows.numpy()).max() < 1e-6


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("order", ["picture first", "video first"])
def test_rows_of_the_tower_are_those_of_each_alone(tiny, processor, model, layer, order):
    """Pictures are image 0, videos follow, whatever their order in the words; rows are those of a tower that sees one
    of them alone, patches row-major, frame by frame."""
    parts = [picture(), video()]
    encoded = tiny.family.encode(processor, about(*(parts if order == "picture first" else reversed(parts))))
    inputs = padded([encoded], CPU, left=False)
    name = f"vision_layer_{layer}"
    for image, part in enumerate(parts):
        alone = padded([tiny.family.encode(processor, about(part))], CPU, left=False)
        with torch.no_grad(), AttentionExtractor(model, [], vision_layers=[layer], images=[image]) as seen:
            model(**inputs)
            model(**inputs)  # counts anew
        found = seen.attention_weights[name]
        with torch.no_grad(), AttentionExtractor(model, [], vision_layers=[layer]) as seen:
            model(**alone)
        assert np.array_equal(found, seen.attention_weights[name])
    steps, rows, columns = inputs["video_grid_thw"][0].tolist()
    frames = found[0].reshape(-1, steps, rows * columns, steps, rows * columns)
    for one in range(steps):  # a frame sees itself alone
        assert np.abs(np.delete(frames[:, one], one, axis=2)).max() == 0
        assert frames[:, one, :, one].sum(-1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="found images of"), torch.no_grad():
        with AttentionExtractor(model, [], vision_layers=[layer]) as seen:
            model(**inputs)
        seen.attention_weights  # noqa: B018 (two sizes have no common array)


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


def test_rows_while_an_answer_is_written(tiny, processor, model):
    """``generate`` runs the towers ahead of the forward; the rows are those of the plain forward."""
    encoded = tiny.family.encode(processor, about(picture(), video()))
    end = encoded.turn_spans[-1][0]
    prompt = type(encoded)(
        encoded.input_ids[:end], encoded.labels[:end], (), encoded.images, encoded.media,
        {name: values[:end] for name, values in encoded.per_token.items()},
    )  # fmt: skip
    inputs = padded([prompt], CPU, left=False)
    layers = attending_layers(model, tiny.family)
    wanted = {"key_layers": layers, "vision_layers": [0], "images": [1]}
    with torch.no_grad(), AttentionExtractor(model, **wanted) as plain:
        model(**inputs)
    with torch.no_grad(), AttentionExtractor(model, **wanted) as seen:
        said = model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=-1)
    assert said.shape[1] == end + 3
    for name, rows in plain.attention_weights.items():
        np.testing.assert_allclose(seen.attention_weights[name], rows, atol=1e-6)


def test_taking_a_video_s_cells_away_changes_the_answer(tiny, processor, model):
    encoded = tiny.family.encode(processor, about(picture(), video()))
    clip = encoded.images[1]
    inputs = padded([encoded], CPU, left=False)
    length = len(encoded.input_ids)
    blocked = torch.zeros(1, length, length, dtype=torch.bool)
    blocked[:, int(clip.positions.max()) + 1 :, torch.from_numpy(clip.frame(1).positions)] = True
    names = [f"layer_{layer}" for layer in attending_layers(model, tiny.family)]
    with torch.no_grad(), AttentionExtractor(model) as seen:
        plain = model(**inputs).logits
        with seen.knocked_out(dict.fromkeys(names, blocked)):
            changed = model(**inputs).logits
    first = int(clip.positions.max()) + 1
    assert torch.equal(plain[:, :first], changed[:, :first]) and not torch.equal(
        plain[:, first:], changed[:, first:]
    )
    assert seen.attention_weights[names[-1]][0, :, first:, clip.frame(1).positions].max() == 0


def test_settings_of_videos_come_from_the_checkpoint(tiny, processor, tmp_path):
    """As published folders have them, beside the processor's other files."""
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["video_processor"]["size"]["longest_edge"] == processor.videos["size"]["longest_edge"]
    again = tiny.family.load_processor(str(tmp_path))
    one, other = (tiny.family.encode(each, about(video())) for each in (processor, again))
    assert torch.equal(one.media["pixel_values_videos"], other.media["pixel_values_videos"])
