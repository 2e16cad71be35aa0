"""What every family that reads videos has in common: counting, batches, rows of attention beside a picture."""

import numpy as np
import pytest
import torch

from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prompts import padded
from finetune.data.dataset import Collator, Sample, blank_video
from finetune.data.lengths import measure
from finetune.families.parts.modules import attending_layers
from finetune.samples.conversation import ImageRef
from finetune.samples.videos import video_of_frames
from tests.finetune.families.clips import CPU, about, grid_processor, picture, still, video
from tests.finetune.families.tiny_families import ALL, GRIDS, MERGE
from tests.finetune.families.tiny_llava import LLAVAS, ODD_ONEVISION
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

GRID = {**GRIDS, "qwen3.5": HYBRIDS["qwen3.5"]}
FRAMES = {
    "llava-onevision": LLAVAS["llava-onevision"], "odd llava-onevision": ODD_ONEVISION,
    "internvl": LLAVAS["internvl"], "smolvlm": SIGLIPS["smolvlm"],
}  # fmt: skip
EVERY = {**GRID, **FRAMES}
TOGETHER = ("internvl", "smolvlm")  # pictures and frames come to the tower in one call


@pytest.fixture(scope="module", params=[*EVERY])
def tiny(request):
    return EVERY[request.param]


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    return grid_processor(tiny, folder) if tiny in GRID.values() else tiny.processor(folder)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.model()


def watched(model, family, encoded, layers=(), **options):
    """An extractor that is told what the model is not."""
    return AttentionExtractor(
        model, layers, tiles=[one.tiles for one in encoded.images], family=family, **options
    )


def tower_of(model, tiny):
    return model.get_submodule(tiny.family.paths.vision[0])


# --- tokens ----------------------------------------------------------------------------------------------
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


def test_places_of_pictures_are_counted_without_those_of_videos(tiny, processor, tmp_path):
    clip, still = video(), picture()
    conversations = [about(clip, "and ", still), about(still), about(clip), about()]
    found = measure(conversations, processor, tiny.family, workers=1, cache_dir=tmp_path)
    encoded = tiny.family.encode(processor, about(still))
    slot = encoded.input_ids[encoded.images[0].positions[0]]
    count = int((encoded.input_ids == slot).sum())
    assert found.image_tokens.tolist() == [count, count, 0, 0]
    assert found.images.tolist() == [1, 1, 0, 0] and found.videos.tolist() == [1, 0, 1, 0]


def test_answers_alone_are_learned(tiny, processor):
    encoded = tiny.family.encode(processor, about("see ", video(), "and ", picture()))
    learned = np.flatnonzero(encoded.labels != -100)
    places = np.concatenate([one.all_positions for one in encoded.images])
    assert 0 < len(learned) < 8 and learned.min() > places.max()


@pytest.mark.parametrize("name", ["qwen-vl", "llava-1.5", "llava-next", "gemma3", "idefics3", "paligemma"])
def test_a_family_that_reads_no_video_says_so(name, tmp_path):
    other = {**ALL, **LLAVAS, **SIGLIPS}[name]
    for media in (True, False):
        with pytest.raises(ValueError, match=r"found the video 'clip', which this model does not read here"):
            other.family.encode(other.processor(tmp_path), about(video()), media=media)
    assert blank_video(other.family, other.processor(tmp_path)) is None


# --- batches ---------------------------------------------------------------------------------------------
def test_samples_with_videos_in_one_row_do_not_see_each_other(tiny, processor, model):
    if tiny.unpackable:
        return
    one = tiny.family.encode(processor, about(video(), "x "))
    other = tiny.family.encode(processor, about(picture(), "longer ", video((31, 50), 6, seed=40)))
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
    assert clip.images[0].frames == 1 and (clip.labels == -100).all()
    needed = {"pixel_values"} if tiny.family.name in TOGETHER else {"pixel_values", "pixel_values_videos"}
    samples = {
        "picture": tiny.family.encode(processor, about(picture())),
        "video": tiny.family.encode(processor, about(video())),
        "words": tiny.family.encode(processor, about()),
        "both": tiny.family.encode(processor, about(video(), picture())),
    }
    collate = Collator(0, blank, blank_pictures=True, blank_video=clip)
    calls = []
    hook = tower_of(model, tiny).register_forward_hook(lambda *_: calls.append(1))
    for rows in ([one] for one in samples.values()):
        batch = collate([[Sample(encoded=one, number=0)] for one in rows])
        assert needed <= batch.keys()
        labels, _ = batch.pop("labels"), batch.pop("about")
        length = len(rows[0].input_ids)
        assert (labels[0, length:] == -100).all()
        calls.clear()
        with torch.no_grad():
            found = model(**batch, use_cache=False).logits[0, :length]
            assert len(calls) == len(needed)
            alone = Collator(0, blank)([[Sample(encoded=rows[0], number=0)]])
            del alone["labels"], alone["about"]
            expected = model(**alone, use_cache=False).logits[0]
        assert (found - expected).abs().max() <= 3e-6 * expected.abs().max()
    hook.remove()
    assert needed <= collate([]).keys()  # a process without a sample


# --- looking ---------------------------------------------------------------------------------------------
def test_rows_are_those_of_eager_beside_a_picture(tiny, processor, model):
    encoded = tiny.family.encode(processor, about(picture(), video()))
    inputs = padded([encoded], CPU, left=False)
    layers = attending_layers(model, tiny.family)
    with torch.no_grad():
        plain = model(**inputs).logits
        with watched(model, tiny.family, encoded, layers, vision_layers=[0, 1], images=[0]) as seen:
            assert torch.equal(model(**inputs).logits, plain)
        model.set_attn_implementation("eager")
        expected = model(**inputs, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
    for layer, rows in zip(layers, expected, strict=True):
        assert np.abs(seen.attention_weights[f"layer_{layer}"] - rows.numpy()).max() < 1e-6


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("order", ["picture first", "video first"])
def test_rows_of_the_tower_are_those_of_each_alone(tiny, processor, model, layer, order):
    """Pictures are image 0 and videos follow where they have a call of their own, whatever their order in the words;
    elsewhere images are in order. Rows are those of a tower that sees one of them alone, patches row-major, frame by
    frame."""
    parts = [picture(), video(count=5)]
    ordered = parts if order == "picture first" else parts[::-1]
    encoded = tiny.family.encode(processor, about(*ordered))
    inputs = padded([encoded], CPU, left=False)
    name = f"vision_layer_{layer}"
    for image, part in enumerate(ordered if tiny.family.name in TOGETHER else parts):
        one = tiny.family.encode(processor, about(part))
        options = {"vision_layers": [layer]}
        with torch.no_grad(), watched(model, tiny.family, encoded, images=[image], **options) as seen:
            model(**inputs)
            model(**inputs)  # counts anew
        found = seen.attention_weights[name]
        with torch.no_grad(), watched(model, tiny.family, one, **options) as seen:
            model(**padded([one], CPU, left=False))
        assert found.shape == seen.attention_weights[name].shape
        assert np.abs(found - seen.attention_weights[name]).max() < 1e-6
        if part is parts[1]:
            of_video, strip = found[0], one.images[0]
    steps = strip.frames
    patches = len(of_video[0]) // steps
    cells = strip.grid[0] * strip.grid[1] // steps
    assert patches == (cells * MERGE**2 if tiny in GRID.values() else tiny.tower_patches)
    frames = of_video.reshape(-1, steps, patches, steps, patches)
    for one in range(steps):  # a frame sees itself alone
        assert np.abs(np.delete(frames[:, one], one, axis=2)).max() == 0
        kept = frames[:, one, :, one].sum(-1)
        if tiny.family.name == "internvl":  # a class token takes a share
            assert kept.min() > 0.5 and kept.max() < 1
        else:
            assert kept == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="found images of"), torch.no_grad():
        with watched(model, tiny.family, encoded, vision_layers=[layer]) as seen:
            model(**inputs)
        seen.attention_weights  # noqa: B018 (two sizes have no common array)


def test_rows_while_an_answer_is_written(tiny, processor, model):
    """``generate`` runs the towers ahead of the forward; the rows are those of the plain forward."""
    encoded = tiny.family.encode(processor, about(video(), picture()))
    end = encoded.turn_spans[-1][0]
    prompt = type(encoded)(
        encoded.input_ids[:end], encoded.labels[:end], (), encoded.images, encoded.media,
        {name: values[:end] for name, values in encoded.per_token.items()},
    )  # fmt: skip
    inputs = padded([prompt], CPU, left=False)
    layers = attending_layers(model, tiny.family)
    wanted = {"layers": layers, "vision_layers": [0], "images": [1]}
    with torch.no_grad(), watched(model, tiny.family, encoded, **wanted) as plain:
        model(**inputs)
    with torch.no_grad(), watched(model, tiny.family, encoded, **wanted) as seen:
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
    with torch.no_grad(), AttentionExtractor(model, family=tiny.family) as seen:
        plain = model(**inputs).logits
        with seen.knocked_out(dict.fromkeys(names, blocked)):
            changed = model(**inputs).logits
    first = int(clip.positions.max()) + 1
    assert torch.equal(plain[:, :first], changed[:, :first]) and not torch.equal(
        plain[:, first:], changed[:, first:]
    )
    assert seen.attention_weights[names[-1]][0, :, first:, clip.frame(1).positions].max() == 0
