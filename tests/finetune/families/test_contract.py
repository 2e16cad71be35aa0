"""The questions that every family answers, asked of each with a tiny model of its own; and of one that is invented."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import finetune.families
from diagnostics.capture.extractor import AttentionExtractor
from diagnostics.probing.prompts import padded
from finetune.data.dataset import Collator, Sample
from finetune.data.lengths import measure
from finetune.data.packing import needs_one_row
from finetune.families import family_of
from finetune.families.base import image_places, learned_elsewhere
from finetune.families.parts.box_scores import box_scores
from finetune.families.parts.modules import attending_layers, attention_modules, bare_model
from finetune.families.parts.processors import picture_settings
from finetune.model import checkpoint
from finetune.model.adaptation import COMPONENTS, TABLES, Plan, adapt, component_of
from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn
from finetune.training.box_questions import box_target
from finetune.training.evaluation import prompts
from finetune.training.loss import token_nats
from finetune.training.preview import Samples, picture_text
from tests.finetune.families import invented
from tests.finetune.families.tiny_families import ALL, Tiny
from tests.finetune.families.tiny_llava import LLAVAS
from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
from tests.finetune.families.tiny_siglip import SIGLIPS

IGNORED = -100
INVENTED = Tiny(invented.InventedFamily(), invented.model, invented.processor)
FAMILIES = {**ALL, **HYBRIDS, **LLAVAS, **SIGLIPS, "invented": INVENTED}


@pytest.fixture(scope="module", params=[*FAMILIES])
def tiny(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def family(tiny):
    return tiny.family


@pytest.fixture(scope="module")
def processor(tiny, tmp_path_factory):
    return tiny.processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module")
def model(tiny) -> nn.Module:
    return tiny.model()


@pytest.fixture
def known(family, monkeypatch):
    """One line in ``FAMILIES``, for the invented family."""
    names = {one.name for one in finetune.families.FAMILIES}
    if family.name not in names:
        monkeypatch.setattr(finetune.families, "FAMILIES", (*finetune.families.FAMILIES, family))


def picture(width, height, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


def conversations():
    """No picture, one, and two in two questions; wide and tall."""
    one, two, three = (
        ImageRef("a", picture(50, 31)),
        ImageRef("b", picture(31, 70, 1)),
        ImageRef("c", picture(90, 33, 2)),
    )
    return [
        Conversation((Turn("user", ("say it",)), Turn("assistant", ("right",)))),
        Conversation((Turn("user", (one, "what?")), Turn("assistant", ("a noise", " of colours")))),
        Conversation(
            (
                Turn("system", ("be brief",)),
                Turn("user", ("first ", two, "?")),
                Turn("assistant", ("1",)),
                Turn("user", (three, "and second?")),
                Turn("assistant", ("22",)),
            )
        ),
    ]


def boxed():
    ref = BoxRef("as written", ((0.25, 0.0, 0.5, 0.75),), "the dog", style="json")
    return Conversation((Turn("user", (ImageRef("a", picture(50, 31)), "where?")), Turn("assistant", (ref,))))


@pytest.fixture(scope="module")
def encoded(family, processor):
    return [family.encode(processor, one) for one in conversations()]


def collated(family, processor, model, rows, *, packing=False, blanks=False):
    """Through the collator, as in training: each row its encoded samples."""
    config = bare_model(model).config
    collator = Collator(
        processor.tokenizer.pad_token_id,
        family.blank(processor),
        blank_pictures=blanks,
        packed=(lambda row: family.packed(config, row)) if packing else None,
        one_row=packing and needs_one_row(config.get_text_config()._attn_implementation),
    )
    numbers = itertools.count()
    batch = collator([[Sample(next(numbers), one) for one in row] for row in rows])
    return {name: value for name, value in batch.items() if name != "about"}


def logits(model, inputs):
    with torch.no_grad():
        return model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits


def words(turn):
    return "".join(part for part in turn.parts if isinstance(part, str))


# --- what it is ------------------------------------------------------------------------------------------
def test_exactly_one_family_knows_a_configuration(known, family, model):
    assert [one.name for one in finetune.families.FAMILIES if one.matches(model.config)] == [family.name]
    assert family_of(model.config).name == family.name


def test_every_parameter_is_of_a_component(family, model):
    found = {component_of(name, family.paths) for name, _ in model.named_parameters()} - {TABLES}
    assert found == {*COMPONENTS}


def test_every_module_that_attends_is_found(family, model):
    modules = attention_modules(model, family)
    attending = attending_layers(model, family)
    assert len(attending) >= 2
    assert {*(f"layer_{layer}" for layer in attending), "vision_layer_0"} <= modules.keys()
    for name, module in modules.items():
        shape = family.attention_shape(model.config, name)
        assert shape is not None and shape.heads % shape.key_heads == 0
        inside = next(component for component in COMPONENTS if name.startswith(PREFIX[component]))
        path = next(path for path, one in model.named_modules() if one is module)
        assert component_of(path, family.paths) == inside


PREFIX = {"language": "layer_", "connector": "visual_attn", "vision": "vision_layer_"}


# --- conversations ---------------------------------------------------------------------------------------
def test_answers_and_their_ends_are_learned_and_no_other_words(tiny, family, processor, encoded):
    for conversation, found in zip(conversations(), encoded, strict=True):
        assert len(found.turn_spans) == len(conversation.turns)
        for turn, (start, end) in zip(conversation.turns, found.turn_spans, strict=True):
            if turn.role == "assistant":
                said = processor.tokenizer.decode(found.input_ids[start:end].tolist())
                assert said == tiny.lead + words(turn)
                assert found.labels[start : end + 1].tolist() == found.input_ids[start : end + 1].tolist()
                assert found.input_ids[end] in family.stop_token_ids(processor)
            else:
                assert set(found.labels[start:end].tolist()) == {IGNORED}
        for image in found.images:
            assert set(found.labels[image.positions].tolist()) == {IGNORED}
        assert all(len(values) == len(found.input_ids) for values in found.per_token.values())


def test_a_polygon_is_read_by_qwen_vl_alone(family, processor, tmp_path):
    """Its corners are thousandths, which other families would be taught as words."""
    Image.new("RGB", (50, 31), "teal").save(tmp_path / "a.png")
    asked = Turn("user", (ImageRef("a.png", tmp_path / "a.png"), "where?"))
    for written, is_read in (
        ("<quad>(1,2),(3,2),(3,4),(1,4)</quad>", family.name == "qwen-vl"),
        ("a <quad> bike", True),
    ):
        told = Conversation((asked, Turn("assistant", (written,))), "record 0")
        if is_read:
            family.encode(processor, told)
        else:
            with pytest.raises(ValueError, match="found a polygon"):
                family.encode(processor, told)


def test_tokens_are_counted_without_opening_a_picture(family, processor, tmp_path):
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    picture(50, 31).save(whole)
    cut.write_bytes(whole.read_bytes()[:60])
    full, counted = (
        family.encode(
            processor,
            Conversation((Turn("user", (ImageRef("x.png", path), "?")), Turn("assistant", ("a",)))),
            media=path is whole,
        )
        for path in (whole, cut)
    )
    assert counted.input_ids.tolist() == full.input_ids.tolist()
    assert counted.labels.tolist() == full.labels.tolist() and counted.turn_spans == full.turn_spans
    assert {name: values.tolist() for name, values in counted.per_token.items()} == {
        name: values.tolist() for name, values in full.per_token.items()
    }
    assert full.media and not counted.media


def test_a_trained_answer_follows_the_prompt_that_it_is_generated_from(family, processor):
    """In all but Qwen3.5 also where the conversation goes on: its template leaves out the empty thought there."""
    asked = (ImageRef("shared/a.png", picture(50, 31)), "what?")
    single = (Turn("user", asked), Turn("assistant", ("\nnoise",)))
    several = (*single, Turn("user", ("and now?",)), Turn("assistant", ("more",)))
    for turns, unlike in ((single, []), (several, [1] if "qwen3.5" in family.name else [])):
        try:
            found = [*learned_elsewhere(family, processor, Conversation(turns))]
        except ValueError as error:  # PaliGemma answers one question
            assert turns is several and "PaliGemma" in str(error)
            continue
        assert [one.turn for one in found] == unlike


@pytest.mark.parametrize("size", [(50, 31), (31, 70), (90, 33)])
def test_encoding_the_dry_run_and_inspect_agree_on_the_tokens_of_a_picture(
    family, processor, model, size, tmp_path
):
    """Without a processor, inspect takes the published settings."""
    settings = copy.deepcopy(processor)
    if hasattr(family, "published_pixels"):
        least, most = family.published_pixels
        family.set_pixel_budget(settings, min_pixels=least, max_pixels=most)
    elif family.name == "internvl":
        settings.image_processor.max_patches = 12
    elif hasattr(family, "published_longest"):
        tile = model.config.vision_config.image_size
        settings.image_processor.size = {"longest_edge": family.published_longest * tile}
    asked = (ImageRef("shared/pictures/a long enough name.png", picture(*size)), "what?")
    conversation = Conversation((Turn("user", asked), Turn("assistant", ("noise",))))
    encoded = family.encode(settings, conversation)
    places = image_places(family, settings)(encoded.input_ids)
    lengths = measure([conversation], settings, family, workers=1, cache_dir=tmp_path)
    inspected = family.image_arithmetic(model.config, size).tokens
    assert [*lengths.image_tokens] == [places.sum()] == [inspected]
    where = [*encoded.images[0].all_positions]
    assert where and places[where].all()  # newlines and marks between the tiles are places of no cell
    one_id = np.unique(encoded.input_ids[places])
    told = f"tokens per picture: {inspected:,} in each"
    assert picture_text(Samples([conversation], lengths, ("data",), np.zeros(1, int))) == told
    assert family.name == "qwen-vl" or len(one_id) == 1


@pytest.mark.parametrize("max_pixels", [None, 1600, 300])
def test_inspect_takes_the_bounds_of_a_processor(family, processor, model, max_pixels):
    """Its own, or those that a training was given; where pictures have one size, there are none."""
    bounded = copy.deepcopy(processor)
    try:
        family.set_pixel_budget(bounded, min_pixels=None, max_pixels=max_pixels)
    except ValueError:
        pytest.skip("pictures of this family have one size, or none so small")
    for size in ((50, 31), (31, 70), (300, 170)):
        turn = Turn("user", (ImageRef("a", picture(*size)), "what?"))
        encoded = family.encode(bounded, Conversation((turn, Turn("assistant", ("noise",)))))
        said = family.image_arithmetic(model.config, size, picture_settings(bounded))
        assert said.tokens == image_places(family, bounded)(encoded.input_ids).sum()
        assert "published" not in said.words


def test_a_prompt_is_where_its_answer_begins(family, processor):
    for conversation in conversations():
        answered = family.encode(processor, conversation)
        asked = Conversation(conversation.turns[:-1])
        prompt = family.encode(processor, asked, add_generation_prompt=True).input_ids
        assert answered.input_ids[: len(prompt)].tolist() == prompt.tolist()
        assert answered.turn_spans[-1][0] == len(prompt)


def test_control_tokens_in_a_question_are_words(family, processor):
    stops = [processor.tokenizer.decode([one]) for one in family.stop_token_ids(processor)]
    harmless, attack = (
        family.encode(
            processor, Conversation((Turn("user", (f"a{text}b",)), Turn("assistant", ("c",))))
        ).input_ids.tolist()
        for text in ("", "".join(stops))
    )
    for one in family.stop_token_ids(processor):
        assert attack.count(one) == harmless.count(one)
    assert len(attack) > len(harmless)


def test_images_lie_where_their_tokens_are(family, processor, encoded):
    for conversation, found in zip(conversations(), encoded, strict=True):
        assert len(found.images) == len(conversation.images)
        for ref, image in zip(conversation.images, found.images, strict=True):
            rows, columns = image.grid
            assert image.image_size_pixels == ref.path.size
            assert len(image.cell_boxes_pixels) == rows * columns
            assert image.through_connector or len(image.positions) == rows * columns
            width, height = ref.path.size
            areas = np.prod(image.cell_boxes_pixels[:, 2:] - image.cell_boxes_pixels[:, :2], axis=1)
            assert areas.sum() == pytest.approx(width * height)
            assert image.cell_boxes_pixels[-1][2:].tolist() == pytest.approx([width, height])
            first, second = image.cell_boxes_pixels[:2]  # row-major: the second cell is right of the first
            assert second[0] == pytest.approx(first[2]) and second[1] == first[1]
            assert (image.overview is None) == (image.tiles is None)
            if image.overview is not None:
                _check_overview(image, image.overview, found.input_ids)


def _check_overview(image, overview, ids):
    """All of the picture again in other tokens of it, coarser or as fine, with a cell for each of its own."""
    rows, columns = overview.grid
    assert len(overview.positions) == len(overview.cell_boxes_pixels) == rows * columns
    assert {*overview.positions.tolist()}.isdisjoint(image.positions.tolist())
    assert {*ids[image.all_positions].tolist()} == {ids[image.positions[0]]}
    assert overview.image_size_pixels == image.image_size_pixels
    assert not overview.through_connector and overview.overview is None
    areas = np.prod(overview.cell_boxes_pixels[:, 2:] - overview.cell_boxes_pixels[:, :2], axis=1)
    assert areas.sum() == pytest.approx(np.prod(image.image_size_pixels))
    assert overview.cell_boxes_pixels[-1][2:].tolist() == pytest.approx(list(image.image_size_pixels))
    assert overview.cell_boxes_pixels[1][0] == pytest.approx(overview.cell_boxes_pixels[0][2])


def test_boxes_are_learned_in_the_family_s_own_words(tiny, family, processor):
    found = family.encode(processor, boxed())
    start, end = found.turn_spans[-1]
    said = processor.tokenizer.decode(found.input_ids[start:end].tolist())
    assert "the dog" in said and "as written" not in said
    assert found.labels[start:end].tolist() == found.input_ids[start:end].tolist()
    first, second, third, fourth = (float(one) for one in re.findall(r"\d+(?:\.\d+)?", said)[-4:])
    x0, y0, x1, y1 = (second, first, fourth, third) if tiny.rows_first else (first, second, third, fourth)
    assert x0 / x1 == pytest.approx(0.5, abs=0.05) and 0 <= y0 < y1


def test_a_box_that_is_said_in_the_family_s_own_words_is_read_back(family, processor):
    """What its numbers mean is read off the family itself; tiny pictures are resized to a few pixels."""
    found = family.encode(processor, boxed())
    said = processor.tokenizer.decode(found.input_ids[slice(*found.turn_spans[-1])].tolist())
    target = box_target(boxed(), processor, family)
    assert target is not None and target.right == (0.25, 0.0, 0.5, 0.75)
    assert target.fractions_said(said) == pytest.approx(target.right, abs=0.016)
    scores = box_scores([target.said(said)])
    assert (scores.right, scores.pointing, scores.wrong_format) == (1, 1.0, {})


# --- rows ------------------------------------------------------------------------------------------------
def test_a_batch_gives_what_its_samples_give_alone(family, processor, model, encoded):
    together = logits(model, collated(family, processor, model, [[one] for one in encoded]))
    for row, one in zip(together, encoded, strict=True):
        alone = logits(model, collated(family, processor, model, [[one]]))[0]
        assert (row[: len(alone)] - alone).abs().max() <= 3e-6 * alone.abs().max()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_samples_in_one_row_do_not_see_each_other(tiny, family, processor, model, encoded, kernel):
    if tiny.unpackable:
        with pytest.raises(ValueError, match=tiny.unpackable):
            family.packed(model.config, encoded)
        return
    model.set_attn_implementation(kernel)
    rows = [[encoded[1], encoded[0], encoded[2]], [encoded[2], encoded[1]]]
    together = logits(model, collated(family, processor, model, rows, packing=True))
    alone = {id(one): logits(model, collated(family, processor, model, [[one]]))[0] for one in encoded}
    model.set_attn_implementation("sdpa")
    for line, row in zip(together, rows, strict=True):
        start = 0
        for one in row:
            expected = alone[id(one)]
            found = line[start : start + len(expected)]
            assert (found - expected).abs().max() <= 3e-6 * expected.abs().max()
            start += len(expected)


def test_a_blank_picture_changes_nothing_before_it(family, processor, model, encoded):
    plain = logits(model, collated(family, processor, model, [[encoded[0]]]))[0]
    inputs = collated(family, processor, model, [[encoded[0]]], blanks=True)
    assert set(inputs) >= family.blank(processor).media.keys()
    assert (
        inputs["labels"].ne(IGNORED).sum()
        == collated(family, processor, model, [[encoded[0]]])["labels"].ne(IGNORED).sum()
    )
    found = logits(model, inputs)[0]
    assert (found[: len(plain)] - plain).abs().max() <= 3e-6 * plain.abs().max()
    louder = {**inputs, "pixel_values": inputs["pixel_values"] + 3}
    assert torch.equal(logits(model, louder)[0][: len(plain)], found[: len(plain)])


def test_a_blank_picture_reaches_every_module_that_pictures_reach(family, processor, model, encoded):
    def reached(row, **options):
        model.zero_grad()
        inputs = collated(family, processor, model, [row], **options)
        (model(**inputs, use_cache=False).logits ** 2).sum().backward()
        return {name for name, p in model.named_parameters() if p.grad is not None}

    assert reached([encoded[0]], blanks=True) == reached([encoded[1]])


def test_blank_is_one_picture(family, processor):
    blank = family.blank(processor)
    assert len(blank.images) == 1 and (blank.labels == IGNORED).all()
    assert all(len(values) == len(blank.input_ids) for values in blank.per_token.values())


# --- learning --------------------------------------------------------------------------------------------
def test_adapters_touch_language_alone(family, tiny):
    model = adapt(tiny.model(), family, Plan(rank=2, dropout=0.0), master_weights=True)
    trained = [name for name, p in bare_model(model).named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert {component_of(name, family.paths) for name in trained} == {"language"}


def test_a_step_is_learned_saved_and_loaded(known, family, processor, tiny, encoded, tmp_path):
    base = tiny.write(tmp_path / "base")
    model, read = checkpoint.load(base)
    model = adapt(model, family, Plan(rank=2, dropout=0.0), master_weights=True).train()
    inputs = collated(family, read, model, [[one] for one in encoded])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(2):
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False)
        loss = token_nats(outputs.logits[:, :-1], inputs["labels"][:, 1:]).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]
    expected = logits(model.eval(), inputs)
    model.save_pretrained(tmp_path / "adapter")
    read.save_pretrained(tmp_path / "adapter")
    again, processor_again = checkpoint.load(tmp_path / "adapter")
    assert torch.equal(logits(again, inputs), expected)
    for conversation, one in zip(conversations(), encoded, strict=True):
        other = family.encode(processor_again, conversation)
        assert other.input_ids.tolist() == one.input_ids.tolist()
        assert all(torch.equal(other.media[name], one.media[name]) for name in one.media)


# --- asking ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [prompts, None], ids=["evaluation", "diagnostics"])
def test_answers_in_a_batch_are_those_read_without_a_cache(family, processor, model, encoded, make):
    """Greedy, two tokens, prompts of unequal length padded on the left, against the whole sequence read anew."""
    asked = encoded[1:]
    if make is None:
        cut = [_prompt_of(one) for one in asked]
        inputs = padded(cut, torch.device("cpu"), left=True)
    else:
        inputs = make(asked)
    stops = list(family.stop_token_ids(processor))
    with torch.no_grad():
        said = model.generate(
            **inputs,
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            pad_token_id=stops[0],
            eos_token_id=-1,
        )
    for one, reply in zip(asked, said[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        prompt = _prompt_of(one)
        for token in reply:
            read = collated(family, processor, model, [[prompt]])
            assert int(logits(model, read)[0, -1].argmax()) == token
            prompt = _longer(prompt, token)


def _prompt_of(encoded):
    end = encoded.turn_spans[-1][0]
    kinds = {name: values[:end] for name, values in encoded.per_token.items()}
    return type(encoded)(
        encoded.input_ids[:end], encoded.labels[:end], (), encoded.images, encoded.media, kinds
    )


def _longer(encoded, token):
    kinds = {name: np.append(values, 0) for name, values in encoded.per_token.items()}
    return type(encoded)(
        np.append(encoded.input_ids, token), np.append(encoded.labels, IGNORED), (), encoded.images,
        encoded.media, kinds,
    )  # fmt: skip


# --- looking ---------------------------------------------------------------------------------------------
def test_rows_of_attention_are_those_of_eager(family, processor, model, encoded):
    inputs = padded([encoded[1]], torch.device("cpu"), left=False)
    with torch.no_grad():
        plain = model(**inputs).logits
        with AttentionExtractor(model, attending_layers(model, family), family=family) as seen:
            assert torch.equal(model(**inputs).logits, plain)
        eager = copy.deepcopy(model)
        eager.set_attn_implementation("eager")
        expected = eager(**inputs, output_attentions=True).attentions
    for layer, rows in zip(attending_layers(model, family), expected, strict=True):
        assert np.abs(seen.attention_weights[f"layer_{layer}"] - rows.numpy()).max() < 1e-6


@pytest.mark.parametrize("kernel", ["its own", "eager"])
def test_its_own_patterns_put_back_change_no_bit(family, processor, model, encoded, kernel):
    """Two pictures and a question, then two tails over the cache, as margins are taken."""
    shown = _prompt_of(encoded[2])
    inputs = padded([shown, shown], torch.device("cpu"), left=False)
    model = copy.deepcopy(model)
    if kernel == "eager":
        model.set_attn_implementation(kernel)

    def read():
        first = model(**inputs, use_cache=True)
        cache = first.past_key_values
        cache.reorder_cache(torch.arange(2).repeat_interleave(2))
        tails = torch.arange(12, 24).view(4, 3)
        rest = model(input_ids=tails, past_key_values=cache, use_cache=True).logits
        return first.logits, rest

    with torch.no_grad(), AttentionExtractor(model, [], family=family) as extractor:
        plain = read()
        with extractor.keeping_patterns() as kept:
            assert all(map(torch.equal, read(), plain))
        names = {call.name for call in kept}
        with extractor.with_patterns(kept, dict.fromkeys(names, torch.tensor([True, True]))):
            assert all(map(torch.equal, read(), plain))
        _blur(kept)
        with extractor.with_patterns(kept, dict.fromkeys(names, torch.tensor([True, False]))):
            found = read()
    assert names == {name for name in extractor.names if not name.startswith("vision_layer_")}
    for one, own in zip(found, plain, strict=True):
        half = len(one) // 2
        # Experts multiply the tokens of a whole batch at once, and so round each by its company.
        assert (one[half:] - own[half:]).abs().max() < 1e-5
        assert (one[:half] - own[:half]).abs().max() > 1e-4


def _blur(kept):
    """Look at all alike."""
    kept[:] = [call._replace(query=torch.zeros_like(call.query)) for call in kept]


def test_rows_of_the_tower_are_over_the_patches_of_each_picture(tiny, family, processor, model, encoded):
    inputs = padded([encoded[2]], torch.device("cpu"), left=False)
    with (
        torch.no_grad(),
        AttentionExtractor(
            model,
            [],
            images=[0],
            vision_layers=[0],
            tiles=[one.tiles for one in encoded[2].images],
            family=family,
        ) as seen,
    ):
        model(**inputs)
    rows = seen.attention_weights["vision_layer_0"]
    grid = encoded[2].images[0].grid
    assert rows.shape[0] == 1 and rows.shape[-1] % (tiny.tower_patches or grid[0] * grid[1]) == 0
    assert rows.sum(-1).max() <= 1 + 1e-5 and rows.min() >= 0
