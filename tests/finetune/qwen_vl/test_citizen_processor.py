"""Every option of the processor is obeyed, or refused by name; what is saved is what is loaded."""

import base64
import copy
import functools
import http.server
import io
import json
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

import finetune  # noqa: F401  (registers)
from finetune.qwen_vl import QwenVLImageProcessor, QwenVLModel, QwenVLProcessor, QwenVLTokenizer
from tests.finetune.qwen_vl.citizens import small_model, small_processor

TEXTS = ["abc", "abcdefg"]
PICTURE = Image.effect_noise((23, 11), 90).convert("RGB")


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return small_processor(tmp_path_factory.mktemp("processor"))


@pytest.fixture
def folder(tmp_path):
    small_processor(tmp_path / "vocabulary").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def masks(found):
    return found["attention_mask"].tolist()


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "text_kwargs"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"padding": "longest"}, [[1] * 3 + [0] * 4, [1] * 7]),
        ({"padding": "max_length", "max_length": 9}, [[1] * 3 + [0] * 6, [1] * 7 + [0] * 2]),
        ({"pad_to_multiple_of": 4}, [[1] * 3 + [0] * 5, [1] * 7 + [0]]),
        ({"padding_side": "left"}, [[0] * 4 + [1] * 3, [1] * 7]),
        ({"truncation": True, "max_length": 4}, [[1] * 3 + [0], [1] * 4]),
        ({"truncation": True, "max_length": 4, "padding": "max_length"}, [[1] * 3 + [0], [1] * 4]),
    ],
)
def test_padding_and_truncation_are_as_in_every_tokenizer(processor, options, expected, nested):
    found = processor(text=TEXTS, **({"text_kwargs": options} if nested else options))
    assert masks(found) == expected
    pad = processor.tokenizer.pad_token_id
    assert (found["input_ids"][found["attention_mask"] == 0] == pad).all()


def test_rows_may_be_left_as_they_are(processor):
    found = processor(text=TEXTS, padding=False, return_tensors=None)
    assert found["input_ids"] == [[*map(ord, text)] for text in TEXTS]
    assert "attention_mask" not in processor(text="a", return_attention_mask=False)
    assert isinstance(processor(text=TEXTS, return_tensors="np")["input_ids"], np.ndarray)


def test_truncation_from_the_left_keeps_the_end(processor):
    found = processor(text="abcdefg", truncation=True, max_length=3, truncation_side="left")
    assert processor.decode(found["input_ids"][0]) == "efg"


@pytest.mark.parametrize("length", [1, 4, 7, 9])
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_never_cuts_an_image(processor, length, side):
    """Eleven tokens, an image in the middle: what would cut it, or cut it off, says so."""
    options = {"truncation": True, "truncation_side": side, "max_length": length}
    text = "a<img></img>bcde" if side == "right" else "abcd<img></img>e"
    if length >= 7:
        found = processor(text=text, images=[PICTURE], **options)
        assert found["input_ids"].shape == (1, length) and len(found["pixel_values"]) == 1
        return
    with pytest.raises(
        ValueError, match=rf"text 0: 11 tokens, max_length={length}: truncation would cut the image"
    ):
        processor(text=text, images=[PICTURE], **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"paddding": True}, TypeError, "no option 'paddding'; did you mean padding"),
        ({"text_kwargs": {"max_len": 3}}, TypeError, "no option 'max_len'; did you mean max_length"),
        ({"images_kwargs": {"do_normalise": False}}, TypeError, "'do_normalise'; did you mean do_normalize"),
        ({"images_kwargs": {"do_resize": False}}, ValueError, "do_resize='False': Qwen-VL reads RGB pictures"),
        ({"do_rescale": True, "images_kwargs": {"do_rescale": True}}, ValueError, "found do_rescale twice"),
        ({"padding": True, "text_kwargs": {"padding": True}}, ValueError, "found padding twice"),
        ({"videos": np.arange(2187.0).reshape(1, 9, 9, 9, 3)}, ValueError, "Qwen-VL reads text and images"),
        ({"videos": ["a.mp4"]}, ValueError, "videos=.*: Qwen-VL reads text and images"),
        ({"return_offsets_mapping": True}, ValueError, "return_offsets_mapping=True"),
        ({"return_overflowing_tokens": True}, ValueError, "return_overflowing_tokens=True"),
        ({"max_length": 4}, ValueError, "max_length=4: has no effect without truncation=True"),
        ({"padding": "max_length"}, ValueError, "give max_length too"),
        ({"truncation": True}, ValueError, "give max_length too"),
        ({"padding": "longst"}, ValueError, "padding='longst': expected True, False"),
        ({"truncation": "only_second"}, ValueError, "truncation='only_second'"),
        ({"padding_side": "middle"}, ValueError, "padding_side='middle': expected 'left' or 'right'"),
        ({"max_length": 0, "truncation": True}, ValueError, "max_length=0: expected at least 1"),
        ({"text": [3]}, ValueError, "text 0: expected a string, found int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_can_not_be_obeyed_is_refused_by_name(processor, options, error, message):
    with pytest.raises(error, match=message) as caught:
        processor(**{"text": "<img></img>a", "images": [PICTURE], **options})
    assert len(str(caught.value)) < 1000


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("messages", "options", "error", "message"),
    [
        (CHAT, {"add_generation_promt": True}, TypeError, "did you mean add_generation_prompt"),
        (CHAT, {"tools": [{"name": "x"}]}, ValueError, "a chat template that does not read tools"),
        (CHAT, {"padding": True}, ValueError, "padding: needs tokenize=True"),
        (
            CHAT,
            {"return_assistant_tokens_mask": True},
            ValueError,
            "needs tokenize=True and return_dict=True",
        ),
        (
            CHAT,
            {"add_generation_prompt": True, "continue_final_message": True},
            ValueError,
            "exclude each other",
        ),
        ([{"role": "tool", "content": "a"}], {}, ValueError, "message 0: found role 'tool'"),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f"}]}],
            {},
            ValueError,
            "does not read 'tool_calls'",
        ),
        (
            [{"role": "user", "content": [{"type": "video", "video": "a"}]}],
            {},
            ValueError,
            "message 0: found a part",
        ),
        (
            [{"role": "user", "content": [{"type": "image", "file": "a"}]}],
            {},
            ValueError,
            "message 0: found a part",
        ),
        ([{"role": "user", "content": "<img>a"}], {}, ValueError, "message 0: Unclosed image token"),
        ([], {}, ValueError, "expected a list of messages"),
        ("hello", {}, ValueError, "expected a list of messages"),
    ],
)
def test_what_a_chat_can_not_have_is_refused_by_name(processor, messages, options, error, message):
    with pytest.raises(error, match=message):
        processor.apply_chat_template(messages, **options)


def test_a_final_message_is_continued(processor):
    whole = processor.apply_chat_template(CHAT)
    open_ended = processor.apply_chat_template(CHAT, continue_final_message=True)
    assert open_ended == str(whole)[: -len("<|im_end|>\n")]


def test_a_template_is_chosen_for_a_call(processor):
    template = "{{ messages[0].content }}{{ tools | length }}{{ mood }}"
    found = processor.apply_chat_template(CHAT, chat_template=template, tools=[{"name": "x"}], mood="!")
    assert found == "a1!"


def test_a_chat_is_padded_and_cut_as_asked(processor):
    options = {"padding": "max_length", "max_length": 99, "padding_side": "left"}
    for nested in (options, {"processor_kwargs": options}):
        found = processor.apply_chat_template([CHAT, CHAT[:1]], tokenize=True, return_dict=True, **nested)
        assert found["input_ids"].shape == (2, 99) and masks(found)[1][0] == 0 and masks(found)[1][-1] == 1


# --- what is given as a picture --------------------------------------------------------------------------------------
def png(picture=PICTURE):
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


ARRAY = np.asarray(PICTURE)
WAYS = {
    "array": ARRAY,
    "array, channels first": ARRAY.transpose(2, 0, 1),
    "array of floats": ARRAY / 255,
    "tensor": torch.from_numpy(ARRAY.copy()).permute(2, 0, 1),
    "tensor of doubles": (torch.from_numpy(ARRAY.copy()).permute(2, 0, 1) / 255).double(),
    "bytes": png(),
    "bytearray": bytearray(png()),
    "base64": base64.b64encode(png()).decode(),
    "data address": "data:image/png;base64," + base64.b64encode(png()).decode(),
}


def test_pixels_do_not_depend_on_the_default_precision(processor):
    """Another thread of a server may load a model: transformers changes it meanwhile."""
    expected = processor.image_processor.pixels(RED)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = processor.image_processor.pixels(RED)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_in_any_form_has_the_same_pixels(processor, way):
    expected = processor(text="<img></img>", images=[PICTURE])["pixel_values"]
    assert torch.equal(processor(text="<img></img>", images=WAYS[way])["pixel_values"], expected)
    assert torch.equal(processor.image_processor(WAYS[way])["pixel_values"], expected)
    message = {
        "role": "user",
        "content": [{"type": "image", "image": WAYS[way]}, {"type": "text", "text": "?"}],
    }
    found = processor.apply_chat_template([message], tokenize=True, return_dict=True)
    assert torch.equal(found["pixel_values"], expected)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "p.png").write_bytes(png())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/p.png"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "part",
    [
        lambda address: {"type": "image", "url": address},
        lambda address: {"type": "image", "image": address},
        lambda address: {"type": "image_url", "image_url": {"url": address}},
        lambda _: {"type": "image", "base64": base64.b64encode(png()).decode()},
        lambda _: {"type": "image_url", "image_url": {"url": WAYS["data address"]}},
    ],
    ids=["url", "image", "image_url", "base64", "data"],
)
def test_addresses_and_base64_in_messages(processor, address, part):
    message = {"role": "user", "content": [part(address), {"type": "text", "text": "?"}]}
    found = processor.apply_chat_template([message], tokenize=True, return_dict=True)
    assert torch.equal(found["pixel_values"], processor.image_processor(PICTURE)["pixel_values"])


def test_an_address_in_the_text_is_fetched(processor, address):
    found = processor(text=f"Picture 1: <img>{address}</img>\n?")
    assert torch.equal(found["pixel_values"], processor.image_processor(PICTURE)["pixel_values"])
    with pytest.raises(ValueError, match=r"nowhere.png'?: could not be fetched .*404.*; download it"):
        processor(text=f"<img>{address.replace('p.png', 'nowhere.png')}</img>")


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (ARRAY / 100 - 1, "found values from -1 to .*, expected 0 to 255"),
        (np.full((5, 7, 3), np.nan), "found values from nan"),
        (np.zeros((5, 7, 2), np.uint8), r"shape \(5, 7, 2\) as a picture"),
        (np.zeros((3, 7, 3), np.uint8), "say which by input_data_format"),
        ("x-" * 2500, "5,000 characters\\): neither a path nor a picture in base64"),
        (3.5, "expected a picture .* found float"),
        ({"bytes": b""}, "expected a picture .* found dict"),
        ("data:image/png;base64,%%%", "expected a picture in base64"),
        ([], "expected a picture, found none"),
    ],
)
def test_what_is_no_picture_is_named_in_one_line(processor, picture, message):
    with pytest.raises(ValueError, match=message) as caught:
        processor.image_processor(picture)
    assert len(str(caught.value)) < 500


def test_options_of_pictures(processor):
    plain = processor.image_processor(PICTURE, do_normalize=False)["pixel_values"]
    assert plain.min() >= 0 and plain.max() <= 1
    raw = processor.image_processor(PICTURE, do_normalize=False, do_rescale=False)["pixel_values"]
    assert torch.allclose(raw, plain * 255)
    own = processor.image_processor(PICTURE, image_mean=[0, 0, 0], image_std=[0.5] * 3)["pixel_values"]
    assert torch.allclose(own, plain * 2)
    for given in ({"do_rescale": False}, {"images_kwargs": {"do_rescale": False}}):
        found = processor(text="<img></img>", images=PICTURE, do_normalize=False, num_frames=2, **given)
        assert torch.equal(found["pixel_values"], raw)
    line = np.zeros((3, 7, 3), np.uint8)
    processor.image_processor(line, input_data_format="channels_first")


# --- which picture goes where ----------------------------------------------------------------------------------------
RED, GREEN, BLUE = (Image.new("RGB", (8, 9), colour) for colour in ("red", "green", "blue"))


def colours(processor, found):
    known = {
        name: processor.image_processor.pixels(one) for name, one in {"r": RED, "g": GREEN, "b": BLUE}.items()
    }
    return "".join(
        name for pixels in found["pixel_values"] for name, one in known.items() if torch.equal(one, pixels)
    )


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([RED, GREEN, BLUE], "rgb"),
        ([[RED], [GREEN, BLUE]], "rgb"),
        ([[RED], [BLUE]], "rbg"),  # the path stays where it is written
        ([None, [RED, BLUE]], None),
        ([[RED, GREEN], [BLUE]], None),  # as many as places, but not in these texts
        ([RED], None),
    ],
)
def test_pictures_go_to_their_places(processor, tmp_path, images, expected):
    GREEN.save(tmp_path / "g.png")
    texts = ["<img></img>?", f"<img></img> and <img>{tmp_path / 'g.png'}</img>"]
    if expected is None:
        with pytest.raises(ValueError, match=r"found \d images and \d places"):
            processor(text=texts, images=images)
    else:
        assert colours(processor, processor(text=texts, images=images)) == expected


def test_pictures_of_messages_and_of_strings_in_order(processor, tmp_path):
    GREEN.save(tmp_path / "g.png")
    messages = [
        {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "<img>?"}]},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": f"<img>{tmp_path / 'g.png'}</img>"},
        {"role": "user", "content": [{"type": "image"}]},
    ]
    found = processor.apply_chat_template(messages, tokenize=True, return_dict=True, images=[BLUE])
    assert colours(processor, found) == "rgb"
    with pytest.raises(ValueError, match="found 0 images and 3 places for them in text 0, 1 without a path"):
        processor.apply_chat_template(messages, tokenize=True)


# --- load and save ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("load", [QwenVLProcessor.from_pretrained, AutoProcessor.from_pretrained])
def test_settings_given_at_loading_hold_and_are_saved(folder, tmp_path, load):
    loaded = load(folder, padding_side="left", image_mean=[0.1, 0.2, 0.3], model_max_length=77)
    loaded.save_pretrained(tmp_path / "again")
    for one in (loaded, load(tmp_path / "again")):
        assert masks(one(text=TEXTS)) == [[0] * 4 + [1] * 3, [1] * 7]
        assert one.image_processor.image_mean == [0.1, 0.2, 0.3]
        assert one(text="a" * 99, truncation=True)["input_ids"].shape == (1, 77)
        assert one.tokenizer.image_tokens == 4
    with pytest.raises(TypeError, match="no option 'paddingside'; did you mean padding_side"):
        QwenVLProcessor.from_pretrained(folder, paddingside="left")


@pytest.mark.parametrize("set_on", ["processor", "loading"])
def test_a_template_of_ones_own_is_kept(folder, tmp_path, set_on):
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    loaded = AutoProcessor.from_pretrained(
        folder, **({"chat_template": template} if set_on == "loading" else {})
    )
    if set_on != "loading":
        loaded.chat_template = template
    loaded.save_pretrained(tmp_path / "own")
    for again in (AutoProcessor.from_pretrained(tmp_path / "own"), copy.deepcopy(loaded)):
        assert (
            again.apply_chat_template(CHAT)
            == again.tokenizer.apply_chat_template(CHAT, tokenize=False)
            == "[a][b]"
        )
    assert (tmp_path / "own" / "chat_template.jinja").read_text() == template


def test_a_template_in_the_file_of_older_versions_is_read(folder):
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    assert AutoProcessor.from_pretrained(folder).apply_chat_template(CHAT) == "old"


def test_a_part_that_is_given_is_taken(folder, processor):
    given = QwenVLProcessor.from_pretrained(folder, tokenizer=processor.tokenizer)
    assert given.tokenizer is processor.tokenizer


def test_several_templates_are_kept(folder, tmp_path):
    loaded = AutoProcessor.from_pretrained(folder)
    loaded.chat_template = {"default": "D", "short": "S"}
    loaded.save_pretrained(tmp_path / "two")
    again = AutoProcessor.from_pretrained(tmp_path / "two")
    assert (
        again.apply_chat_template(CHAT) == "D"
        and again.apply_chat_template(CHAT, chat_template="short") == "S"
        and again.apply_chat_template(CHAT, chat_template="a text of its own") == "a text of its own"
    )
    again.chat_template = {"long": "L", "short": "S"}
    with pytest.raises(
        ValueError, match="found the chat templates long, short, none of them called 'default'"
    ):
        again.apply_chat_template(CHAT)
    again.chat_template = None
    with pytest.raises(ValueError, match="found no chat template in this processor; give one"):
        again.apply_chat_template(CHAT)


def test_a_copy_and_a_pickle_read_as_the_processor(processor):
    text = str(processor.apply_chat_template(CHAT))
    for again in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert torch.equal(again(text=text)["input_ids"], processor(text=text)["input_ids"])


def test_every_auto_class_knows_qwen_vl(folder, tmp_path):
    model = small_model()
    model.save_pretrained(folder)
    assert isinstance(AutoTokenizer.from_pretrained(folder), QwenVLTokenizer)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), QwenVLImageProcessor)
    bare = AutoModel.from_pretrained(folder)
    assert type(bare) is QwenVLModel and torch.equal(bare.wte.weight, model.transformer.wte.weight)


def test_a_published_folder_has_its_pictures_settings_in_config_json(golden, tmp_path):
    (tmp_path / "config.json").write_text((golden / "published_config.json").read_text())
    found = QwenVLImageProcessor.from_pretrained(tmp_path)
    assert (found.image_size, found.patch_size) == (448, 14)


def test_a_folder_without_its_vocabulary_is_named(folder):
    (folder / "qwen.tiktoken").unlink()
    for load in (
        QwenVLProcessor.from_pretrained,
        AutoProcessor.from_pretrained,
        AutoTokenizer.from_pretrained,
    ):
        with pytest.raises((ValueError, OSError), match=r"qwen\.tiktoken"):
            load(folder)


def test_a_typing_error_in_the_tokenizers_options_is_named(processor):
    with pytest.raises(TypeError, match="no option 'paddding'; did you mean padding"):
        processor.tokenizer("a", paddding=True)
    with pytest.raises(NotImplementedError, match="return_offsets_mapping"):
        processor.tokenizer("a", return_offsets_mapping=True)


def test_settings_are_json(processor):
    assert json.loads(processor.image_processor.to_json_string())["image_size"] == 12
