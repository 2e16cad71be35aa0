"""What families read off a checkpoint's processor."""

import json
from types import SimpleNamespace

import pytest

from finetune.families.parts.processors import (
    KeepsVideoSettings,
    chat_template,
    differing_settings,
    without_videos,
)
from tests.finetune.families.tiny_families import ALL


@pytest.mark.parametrize(
    ("of_settings", "of_tokenizer", "expected"),
    [
        ("from the processor", "from the tokenizer", "from the processor"),
        (None, "from the tokenizer", "from the tokenizer"),
        (None, {"default": "the default", "tool_use": "another"}, "the default"),
    ],
)
def test_the_chat_template_is_taken_from_whichever_file_holds_it(of_settings, of_tokenizer, expected):
    tokenizer = SimpleNamespace(chat_template=of_tokenizer)
    assert chat_template("m", {"chat_template": of_settings}, tokenizer) == expected


@pytest.mark.parametrize("several", [None, {"tool_use": "no default among them"}])
def test_a_checkpoint_without_a_chat_template_is_refused_with_where_to_copy_one_from(several):
    with pytest.raises(
        ValueError, match=r"^m: found no chat template.*copy it from an instruction-tuned one$"
    ):
        chat_template("m", {}, SimpleNamespace(chat_template=several), copy_from="an instruction-tuned one")


def test_a_processor_without_videos_has_the_name_of_transformers_own_and_keeps_the_settings():
    class Own:
        def to_dict(self):
            return {"a": 1, "videos": {"fps": 2}}

    made = without_videos(Own)
    assert made.__name__ == "Own" and issubclass(made, KeepsVideoSettings)
    assert made.get_attributes() == ["image_processor", "tokenizer"]
    processor = made()
    assert processor.to_dict() == {"a": 1}
    processor.videos = {"fps": 2}
    assert processor.to_dict() == {"a": 1, "video_processor": {"fps": 2}}


def test_settings_by_which_two_processors_read_otherwise_are_named(tmp_path):
    tiny = ALL["qwen2.5-vl"]
    processor = tiny.processor(tmp_path)
    processor.save_pretrained(tmp_path / "saved")

    def saved():
        return tiny.family.load_processor(str(tmp_path / "saved"))

    assert differing_settings(processor, saved()) == {}  # a copy with other names of classes, tuples as lists
    other = saved()
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert differing_settings(processor, other) == {
        "image_mean": ([*processor.image_processor.image_mean], [0.1, 0.2, 0.3])
    }
    written = tmp_path / "saved" / "processor_config.json"
    settings = json.loads(written.read_text())
    more = {
        "data_format": "channels_first",
        "default_to_square": True,
        "device": None,
        "return_tensors": None,
    }
    others = settings | {
        "image_processor": settings["image_processor"] | more
    }  # as those by torchvision write it
    written.write_text(json.dumps(others))
    assert saved().image_processor.to_dict()["data_format"] == "channels_first"
    assert differing_settings(processor, saved()) == {}
    written.write_text(json.dumps(settings))
    other = saved()
    other.chat_template = f"{other.chat_template} "
    assert [*differing_settings(processor, other)] == ["chat_template"]
    other = saved()
    other.tokenizer.add_tokens(["左右"])
    tiny.family.set_pixel_budget(other, min_pixels=None, max_pixels=28 * 28 * 12)
    assert [*differing_settings(processor, other)][-1] == "vocabulary"
    assert {*differing_settings(processor, other)} & {"size", "max_pixels"}
