"""Videos whose frames are read as pictures (InternVL, LLaVA-OneVision, SmolVLM): words, pixels, cells, settings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_utils import VideoMetadata

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prompts import padded
from finetune.data.dataset import Collator, Sample
from finetune.data.lengths import shrink
from finetune.families.parts import film_strips
from finetune.families.parts.idefics3_chat import in_words
from finetune.training.evaluation import prompts
from tests.finetune.families.clips import CPU, about, clip_of, picture, video
from tests.finetune.families.pictures import local_model
from tests.finetune.families.test_video_families import FRAMES

BICUBIC, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
SIDES = {"llava-onevision": 2, "odd llava-onevision": 3, "internvl": 2, "smolvlm": 2}  # tokens of a frame
TILES = {"llava-onevision": 18, "odd llava-onevision": 22, "internvl": 16, "smolvlm": 16}  # pixels


@pytest.fixture(scope="module", params=[*FRAMES])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def tiny(name):
    return FRAMES[name]


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    return tiny.processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def local(tiny):
    return local_model(tiny)


@torch.no_grad()
def read_by_language(model, family, encoded):
    """What enters the first layer of the language model: Float[tokens, width]."""
    taken = []
    first = model.get_submodule(family.paths.language_layers)[0]
    hook = first.register_forward_pre_hook(
        lambda _, arguments, options: taken.append(arguments[0] if arguments else options["hidden_states"]),
        with_kwargs=True,
    )
    model(**padded([encoded], CPU, left=False))
    hook.remove()
    return taken[0][0].numpy()


# --- tokens ----------------------------------------------------------------------------------------------
def words_by_hand(name):
    """A user's turn: three frames at 2 a second between words, by hand, then a picture of one tile."""
    frame = 4 * "<IMG_CONTEXT>"
    smol = f"<fake_token_around_image><global-img>{4 * '<image>'}<fake_token_around_image>"
    return {
        "internvl": f"user\nsee Frame1: <img>{frame}</img>\nFrame2: <img>{frame}</img>\nFrame3: <img>{frame}</img>\n"
        f"and <img>{frame}</img>\nwhat?<|im_end|>",
        # Pictures, then videos, then words: 16 + 4 newlines + 16 of the overview; 3 times 4 and a newline.
        "llava-onevision": f"user {36 * '<image>'}{13 * '<video>'}\nsee and what?<|im_end|>",
        "odd llava-onevision": f"user {55 * '<image>'}{28 * '<video>'}\nsee and what?<|im_end|>",
        "smolvlm": "User: see You are provided the following series of three frames from a 0:00:01 [H:MM:SS] video.\n\n"
        f"Frame from 00:00:{smol}\nFrame from 00:00:{smol}\nFrame from 00:01:{smol}\n\nand {smol}what?"
        "<end_of_utterance>",
    }[name]  # fmt: skip


def test_a_video_s_words_by_hand(name, tiny, processor):
    processor.image_processor.do_image_splitting = False  # SmolVLM's: one tile of a picture
    square = picture((TILES[name], TILES[name]))
    encoded = tiny.family.encode(processor, about("see ", video(count=3), "and ", square))
    processor.image_processor.do_image_splitting = True
    text = processor.tokenizer.decode(encoded.input_ids.tolist())
    assert words_by_hand(name) in text
    clip, still = encoded.images
    assert clip.seconds == (0.0, 0.5, 1.0) and clip.frames == 3 and clip.tiles == (3,) and still.seconds == ()
    side = SIDES[name]
    assert clip.grid == (3 * side, side) and clip.image_size_pixels == (50, 93)
    frames = [clip.frame(at).positions for at in range(3)]
    named = encoded.input_ids[clip.positions]
    assert len({*named.tolist()}) == 1 and all((np.diff(one) == 1).all() for one in frames)
    # Everything that is a place of a picture or a video is a cell of one, but for newlines.
    slots = np.flatnonzero(np.isin(encoded.input_ids, [named[0], encoded.input_ids[still.positions[0]]]))
    places = np.concatenate([clip.positions, still.all_positions])
    newlines = {"llava-onevision": 4 + 1, "odd llava-onevision": 5 + 1}.get(name, 0)
    assert len({*places.tolist()}) == len(places) and {*places.tolist()} <= {*slots.tolist()}
    assert len(slots) == len(places) + newlines


def test_words_are_those_of_transformers_own_processor(name, tiny, processor, monkeypatch):
    """Which is asked for a video's words alone: its pixels need torchvision."""
    clip = video(count=5, fps=0.03)
    text = processor.tokenizer.decode(tiny.family.encode(processor, about(clip)).input_ids.tolist())
    frames = {"pixel_values_videos": np.zeros((1, 5, 3, 8, 8))}
    if name == "internvl":
        expected = InternVLProcessor.replace_video_token(processor, frames, 0) + "\n"
    elif name == "smolvlm":
        monkeypatch.setattr(processing_smolvlm, "num2words", in_words)
        ours = SimpleNamespace(
            image_seq_len=4, image_token="<image>", fake_image_token="<fake_token_around_image>",
            global_image_token="<global-img>",
        )  # fmt: skip
        told = VideoMetadata(total_num_frames=5, fps=0.03, duration=5 / 0.03, frames_indices=[*range(5)])
        given = {"pixel_values": frames["pixel_values_videos"], "video_metadata": [told]}
        expected = processing_smolvlm.SmolVLMProcessor.replace_video_token(ours, given, 0)
        assert "five frames from a 0:02:46 " in expected and "Frame from 01:06:" in expected
    else:
        expected = LlavaOnevisionProcessor.replace_video_token(processor, frames, 0)
    assert expected in text
    assert text.count(expected[-20:]) == text.count(expected) * expected.count(expected[-20:])


def test_numbers_in_words():
    said = {1: "one", 12: "twelve", 19: "nineteen", 20: "twenty", 32: "thirty-two", 64: "sixty-four", 90: "ninety",
            100: "one hundred", 105: "one hundred and five", 999: "nine hundred and ninety-nine"}  # fmt: skip
    assert {number: in_words(number) for number in said} == said
    with pytest.raises(ValueError, match=r"found a video of 1,000 frames, expected at most 999"):
        in_words(1000)


def test_a_video_cannot_be_made_smaller(tiny, processor):
    """It is left out, and told, as what stays too long is."""
    conversation = about(video())
    long = len(tiny.family.encode(processor, conversation, media=False).input_ids)
    assert shrink(conversation, processor, tiny.family, long) is conversation
    assert shrink(conversation, processor, tiny.family, long - 5) is None


# --- pixels ----------------------------------------------------------------------------------------------
def by_hand(name, frame, mean, std):
    """A frame of 50 × 31 as the tower gets it."""
    side = (TILES[name], TILES[name])
    if name == "smolvlm":
        frame = frame.resize((48, 30), LANCZOS).resize(side, LANCZOS)  # 29.76 cut off to 29, made even
    else:
        frame = frame.resize(side, BICUBIC)
    return (
        np.asarray(frame, np.float64).transpose(2, 0, 1) / 255 - np.reshape(mean, (3, 1, 1))
    ) / np.reshape(std, (3, 1, 1))


def frames_of(encoded, image, count):
    """The pixels of a video's frames, which lie among pictures' or apart."""
    if "pixel_values_videos" in encoded.media:
        return encoded.media["pixel_values_videos"][image][:count]
    return encoded.media["pixel_values"].flatten(0, -4)[image : image + count]


@pytest.mark.parametrize("said", [None, {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.2]}])
def test_pixels_are_each_frame_s_by_hand(name, tiny, processor, said):
    clip = video(count=3)
    processor.videos = said
    encoded = tiny.family.encode(processor, about(clip))
    processor.videos = None
    pictures = processor.image_processor
    mean, std = (said["image_mean"], said["image_std"]) if said else (pictures.image_mean, pictures.image_std)
    found = frames_of(encoded, 0, 3).numpy()
    expected = np.stack([by_hand(name, ref.path, mean, std) for ref in clip.frames])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pixels_follow_the_order_of_the_words(name, tiny, processor):
    """Which is the order in which the model puts features into places. A picture in two tiles and an overview, a video
    of two frames, another picture."""
    tile = TILES[name]
    parts = [picture((2 * tile, tile)), video(count=2), picture((tile, tile), 7)]
    together = tiny.family.encode(processor, about(*parts)).media
    alone = [tiny.family.encode(processor, about(part)).media for part in parts]
    if "pixel_values_videos" in together:
        assert torch.equal(together["pixel_values_videos"], alone[1]["pixel_values_videos"])
        assert len(together["pixel_values"]) == 2
    else:
        assert torch.equal(together["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))


# --- cells -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ["alone", "behind a picture", "before a picture"])
@pytest.mark.parametrize("size", [(90, 33), (31, 70)])
def test_a_cell_stands_for_the_pixels_and_the_frame_that_change_its_token(
    name, tiny, processor, local, size, order
):
    """A spot in one cell of one frame moves the token that geometry names, and none of another frame or picture."""
    plain = [Image.new("RGB", size, (90, 120, 150)) for _ in range(3)]

    def encoded(frames):
        other = [picture()] * (order != "alone")
        parts = [clip_of(frames), *other] if order == "before a picture" else [*other, clip_of(frames)]
        return tiny.family.encode(processor, about(*parts))

    one = encoded(plain)
    (strip,) = (image for image in one.images if image.seconds)
    before = read_by_language(local, tiny.family, one)
    side = SIDES[name]
    assert strip.frame(1).grid == (side, side) and strip.frame(1).image_size_pixels == size
    for frame in range(3):
        for cell in {0, 1, side, side**2 - 1}:
            alone = strip.frame(frame)
            x0, y0, x1, y1 = alone.cell_boxes_pixels[cell]
            marked = [still.copy() for still in plain]
            inset = ((x1 - x0) / 3, (y1 - y0) / 3)
            spot = (x0 + inset[0], y0 + inset[1], x1 - inset[0], y1 - inset[1])
            ImageDraw.Draw(marked[frame]).rectangle(spot, fill=(255, 0, 0))
            moved = np.abs(read_by_language(local, tiny.family, encoded(marked)) - before).sum(1)
            place = alone.positions[cell]
            assert np.argmax(moved) == place == strip.positions[frame * side**2 + cell]
            assert moved[place] > 2 * np.delete(moved, place).max()
            assert np.delete(moved, alone.positions).max() == 0


def test_one_changed_patch_moves_the_cell_over_it(tiny, processor, local, name):
    """Of the pixels that the tower gets, one patch's in one frame are changed: with layers that add nothing it alone
    has other features."""
    encoded = tiny.family.encode(processor, about(picture(), video(count=3)))
    strip = encoded.images[1]
    pixels = "pixel_values_videos" if "pixel_values_videos" in encoded.media else "pixel_values"
    patch, side = 4, SIDES[name]
    patches = TILES[name] // patch
    before = read_by_language(local, tiny.family, encoded)
    for frame, row, column in [
        (0, 0, 0),
        (1, patches - 1, 1),
        (2, 1, patches - 1),
        (2, patches - 1, patches - 1),
    ]:
        changed = encoded.media[pixels].clone()
        view = changed.flatten(0, -4)[-3:][frame]
        view[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 1.0
        other = type(encoded)(
            encoded.input_ids, encoded.labels, (), encoded.images, encoded.media | {pixels: changed}
        )
        moved = np.abs(read_by_language(local, tiny.family, other) - before).sum(1)
        # The middle of the patch, as a fraction of the frame.
        middle = [(at + 0.5) * patch / TILES[name] for at in (column, row)]
        boxes = strip.frame(frame).cell_boxes_pixels / np.tile(strip.frame(frame).image_size_pixels, 2)
        inside = (boxes[:, :2] <= middle).all(1) & (middle < boxes[:, 2:]).all(1)
        (cell,) = np.flatnonzero(inside)
        assert np.argmax(moved) == strip.frame(frame).positions[cell]
        assert np.delete(moved, strip.frame(frame).positions).max() == 0 and side**2 == len(boxes)


def test_a_film_strip_is_what_its_frames_are_taken_from(name, tiny, processor):
    strip = tiny.family.encode(processor, about(video())).images[0]
    again = film_strips.strip([strip.frame(at) for at in range(6)], strip.seconds)
    for attribute in ("positions", "cell_boxes_pixels"):
        np.testing.assert_allclose(getattr(again, attribute), getattr(strip, attribute))
    assert (again.grid, again.image_size_pixels) == (strip.grid, strip.image_size_pixels)


def test_pooled_cells_by_hand():
    """5 × 5 patches of 4 in 22 pixels, pooled to 3 × 3: 5/3 of a patch each, the last with the 2 that none sees."""
    tiny = FRAMES["odd llava-onevision"]
    strip = tiny.family.encode(tiny.processor(None), about(video((44, 22), 2))).images[0]
    assert strip.grid == (6, 3) and len(strip.positions) == 18
    x = [0, 5 / 3 * 8, 10 / 3 * 8, 44]
    assert strip.cell_boxes_pixels[:3, 0] == pytest.approx(x[:3])
    assert strip.cell_boxes_pixels[2].tolist() == pytest.approx([x[2], 0, 44, 5 / 3 * 4])
    assert strip.cell_boxes_pixels[-1].tolist() == pytest.approx([x[2], 22 + 10 / 3 * 4, 44, 44])


# --- looking ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", ["picture first", "video first"])
def test_llava_onevision_s_inputs_tell_its_videos_and_overviews_are_numbered_behind_them(order):
    tiny = FRAMES["odd llava-onevision"]
    processor, model = tiny.processor(None), tiny.model()
    parts = [picture((40, 22)), video(count=2)]
    both = tiny.family.encode(processor, about(*(parts if order == "picture first" else parts[::-1])))
    alone = tiny.family.encode(processor, about(parts[0]))
    assert alone.images[0].tiles == (1, 2)

    def rows(encoded, image, **told):
        wanted = {"vision_layers": [1], "images": [image], "family": tiny.family}
        with torch.no_grad(), AttentionExtractor(model, [], **wanted, **told) as seen:
            model(**padded([encoded], CPU, left=False))
        return seen.attention_weights["vision_layer_1"][0]

    told = {"tiles": [one.tiles for one in both.images]}
    patches = {0: 2 * 25, 1: 2 * 25, 2: 25}  # the picture's tiles, the video's frames, the picture's overview
    for image, count in patches.items():
        found = rows(both, image)
        assert np.array_equal(found, rows(both, image, **told)) and found.shape[1:] == (count, count)
    assert np.abs(rows(both, 0) - rows(alone, 0)).max() < 1e-6
    assert np.abs(rows(both, 2) - rows(alone, 1)).max() < 1e-6
    assert np.abs(rows(both, 1) - rows(tiny.family.encode(processor, about(parts[1])), 0)).max() < 1e-6
    with pytest.raises(ValueError, match=r"image 3 does not exist; expected one of \[0, 1, 2\]"):
        rows(both, 3)


# --- settings --------------------------------------------------------------------------------------------
def test_what_a_checkpoint_says_of_videos_is_kept(name, tiny, tmp_path):
    processor = tiny.processor(tmp_path)
    processor.videos = {"image_mean": [0.3, 0.2, 0.1], "size": {"longest_edge": 40}, "num_frames": 7}
    processor.save_pretrained(tmp_path)
    again = tiny.family.load_processor(str(tmp_path))
    assert again.videos == processor.videos
    one, other = (tiny.family.encode(each, about(video())) for each in (processor, again))
    assert torch.equal(frames_of(one, 0, 6), frames_of(other, 0, 6))
    processor.videos = None
    plain = tiny.family.encode(processor, about(video()))
    assert not torch.equal(frames_of(one, 0, 6), frames_of(plain, 0, 6))


def test_smolvlm_s_frames_are_first_as_long_as_its_files_say(tmp_path):
    tiny = FRAMES["smolvlm"]
    processor = tiny.processor(tmp_path)
    frame = video(count=1)
    for said in ({"size": {"longest_edge": 24}}, {"video_sampling": {"video_size": {"longest_edge": 24}}}):
        processor.videos = said
        found = tiny.family.encode(processor, about(frame)).media["pixel_values"][0, 0].numpy()
        squared = frame.frames[0].path.resize((24, 14), LANCZOS).resize((16, 16), LANCZOS)
        np.testing.assert_allclose(found, np.asarray(squared).transpose(2, 0, 1) / 127.5 - 1, atol=1e-5)


# --- batches ---------------------------------------------------------------------------------------------
def test_videos_of_other_lengths_in_one_batch(name, tiny, processor):
    """LLaVA-OneVision's model takes them as one array, so they must be alike; others have frames one by one."""
    samples = [tiny.family.encode(processor, about(video(count=count))) for count in (2, 5)]
    collate = Collator(0, tiny.family.blank(processor))
    rows = [[Sample(encoded=one, number=at)] for at, one in enumerate(samples)]
    if tiny.family.name != "llava-onevision":
        assert len(collate(rows)["pixel_values"]) == len(prompts(samples)["pixel_values"]) == 7
        return
    words = r"found videos of 2 and of 5 frames in one batch, expected as many of each: .*_train_batch_size 1"
    for join in (lambda: collate(rows), lambda: prompts(samples), lambda: padded(samples, CPU, left=True)):
        with pytest.raises(ValueError, match=words):
            join()
    for media in (True, False):
        with pytest.raises(ValueError, match=r"found videos of 2 and of 5 frames, expected as many of each"):
            tiny.family.encode(processor, about(video(count=2), video(count=5)), media=media)


def test_two_videos_and_two_pictures_are_told_apart(name, tiny, processor):
    """Each has the pixels of the frames that it was given, though a template may put videos behind pictures."""
    first, second = video(count=2, seed=3), video((31, 50), count=2, seed=60)
    encoded = tiny.family.encode(processor, about(first, picture(), "and ", second, picture((64, 20), 4)))
    sizes = [one.image_size_pixels for one in encoded.images]
    assert sizes == [(50, 62), (30, 60), (31, 100), (64, 20)]
    starts = [one.all_positions.min() for one in encoded.images]
    assert [*np.argsort(starts)] == ([1, 3, 0, 2] if "onevision" in name else [0, 1, 2, 3])
    alone = [tiny.family.encode(processor, about(one)) for one in (first, second)]
    if "onevision" in name:
        expected = torch.cat([one.media["pixel_values_videos"] for one in alone])
        assert torch.equal(encoded.media["pixel_values_videos"], expected)
