"""Replies and what they looked at: against plain forwards, with many at once, and with those who leave."""

import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image

from diagnostics import AttentionExtractor
from diagnostics.probing.prompts import padded
from diagnostics.pruning import keep_image_tokens
from diagnostics.web import engine as engine_module
from diagnostics.web import maps, reply_capture
from diagnostics.web.engine import CONTROL, Engine, Keep, reply_text
from diagnostics.web.reply_capture import has_square_cells
from diagnostics.web.reply_queue import Partial
from finetune.families import ImageTokens
from finetune.model.checkpoint import load
from finetune.samples.conversation import ImageRef, Turn
from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_processor, write_picture
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.families.tiny_llava import LLAVAS

EMBEDDED = "这座塔是什么?"
TOWER = Path(__file__).parents[3] / "docs" / "images" / "tower.png"


def question(*pictures: Path, text: str = "wo?") -> tuple[Turn, ...]:
    parts = [part for path in pictures for part in ("Picture: ", ImageRef(path.name, path), "\n")]
    return (Turn("user", (*parts, text)),)


def ask(engine: Engine, turns, *, tokens: int = 6, stop: threading.Event | None = None) -> list[Partial]:
    return list(engine.reply(turns, stop=stop or threading.Event(), max_new_tokens=tokens))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def pictures(folder):
    write_picture(folder / "disc.png")
    Image.linear_gradient("L").resize((33, 47)).convert("RGB").save(folder / "other.png")
    return folder / "disc.png", folder / "other.png"


@pytest.fixture(scope="module")
def processor(folder):
    return tiny_processor(folder)


@pytest.fixture(scope="module")
def embedded():
    return Engine.load(None, mode="full", cpu_only=True)


def tower_question() -> tuple[Turn, ...]:
    return (Turn("user", ("Picture 1: ", ImageRef("tower", TOWER), f"\n{EMBEDDED}")),)


def whole_forward(engine: Engine, turns, trace, **wanted) -> dict[str, np.ndarray]:
    """Rows of one plain forward over prompt and reply, by the extractor."""
    encoded = engine._read(turns).encoded
    inputs = padded([encoded], torch.device("cpu"), left=True)
    said = torch.tensor(wanted.pop("said"))[None]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], said], dim=1)
    for name, values in inputs.items():
        if name != "input_ids" and values.shape[:2] == encoded.input_ids[None].shape:
            more = values[:, -1:].expand(-1, said.shape[1])
            inputs[name] = torch.cat([values, more], dim=1)
    assert inputs["input_ids"].shape[1] == len(trace.tokens)
    with AttentionExtractor(engine.model, **wanted) as extractor, torch.no_grad():
        engine.model(**inputs)
        return extractor.attention_weights


def told_ids(engine: Engine, monkeypatch) -> list[list[int]]:
    """The tokens of each reply from here on, as they are said."""
    said: list[list[int]] = []
    trace = Engine._trace

    def keeping(self, prompt, ids, watch):
        said.append(list(ids))
        return trace(self, prompt, ids, watch)

    monkeypatch.setattr(Engine, "_trace", keeping)
    return said


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_are_those_of_a_plain_forward(kernel, processor, pictures, monkeypatch):
    engine = Engine(tiny_model(kernel), processor, mode="full")
    said = told_ids(engine, monkeypatch)
    turns = question(*pictures)
    trace = ask(engine, turns)[-1].trace
    expected = whole_forward(engine, turns, trace, said=said[0], vision_layers=[0])
    assert len(trace.answer) == 6 and trace.layers == (0, 1, 2)
    text = [at for at, kind in enumerate(trace.kinds) if not kind.startswith("image")][:-1]
    assert trace.positions.tolist() == text
    for layer in trace.layers:
        rows = trace.rows[layer]
        assert rows.dtype == np.float16 and rows.shape == (2, len(text), len(trace.tokens))
        np.testing.assert_allclose(rows, expected[f"layer_{layer}"][0][:, text], atol=1e-3)
    for image in range(2):
        np.testing.assert_allclose(trace.connector[image], expected["visual_attn"][image], atol=1e-3)
        np.testing.assert_allclose(trace.vision[0][image], expected["vision_layer_0"][image], atol=1e-3)


@pytest.mark.parametrize("name", ["internvl", "llava-onevision"])
def test_rows_of_a_tower_that_reads_tiles_are_over_the_whole_picture(name, folder, monkeypatch):
    """60 × 20 pixels are 3 × 1 tiles of either; and where they have margins, their patches are no parts of cells."""
    Image.linear_gradient("L").resize((54, 18)).convert("RGB").save(folder / "wide.png")
    Image.linear_gradient("L").resize((54, 11)).convert("RGB").save(folder / "flat.png")
    (folder / name).mkdir(exist_ok=True)
    engine = Engine(LLAVAS[name].model(), LLAVAS[name].processor(folder / name), mode="full")
    said = told_ids(engine, monkeypatch)
    turns = question(folder / "wide.png")
    trace = ask(engine, turns)[-1].trace
    image, vision = trace.images[0].tokens, engine.vision_layers[0]
    assert image.tiles == (1, 3) and image.overview is not None
    expected = whole_forward(
        engine, turns, trace, said=said[0], key_layers=[0], vision_layers=[vision], images=[0], tiles=[(1, 3)]
    )
    [kept] = trace.vision[vision]
    np.testing.assert_allclose(kept, expected[f"vision_layer_{vision}"][0], atol=2e-3)
    assert maps.image_map(trace, vision, -1, [], part="vision").cells.shape == (4, 12)
    kinds = np.array(trace.kinds)
    assert (kinds[image.all_positions] == "image 0").all() and (kinds == "image 0").sum() == len(
        image.all_positions
    )
    flat = ask(engine, question(folder / "flat.png"))[-1].trace
    assert (flat.vision == {}) == (name == "llava-onevision")
    small = Engine(engine.model, engine.processor, mode="full", cache_bytes=2 * kept.nbytes - 2)
    assert ask(small, turns)[-1].trace.vision == {}


def test_margins_are_not_taken_for_finer_patches():
    """24 × 72 patches of 1 × 3 tiles: 6 × 72 cells between margins are a quarter, but each is one patch."""
    for grid, whole in (
        ((24, 72), True),
        ((12, 36), True),
        ((6, 72), False),
        ((24, 18), False),
        ((20, 72), False),
    ):
        boxes = np.zeros((grid[0] * grid[1], 4))
        image = ImageTokens(np.arange(len(boxes)), grid, boxes, (90, 30), False, tiles=(1, 3))
        assert has_square_cells(image, 24 * 72, (24, 24)) == whole


def test_a_picture_padded_to_a_square_is_not_taken_for_a_finer_one():
    """24 × 24 patches over 6 × 24 cells are four for each, but not 2 × 2; of a picture resized otherwise than the
    configuration says only the numbers tell."""
    boxes = np.zeros((6 * 24, 4))
    image = ImageTokens(np.arange(144), (6, 24), boxes, (96, 24), False)
    assert not has_square_cells(image, 24 * 24, (24, 24))
    assert has_square_cells(image, 12 * 48, (12, 48)) and has_square_cells(image, 6 * 24, (6, 24))
    assert has_square_cells(image, 12 * 48, (20, 80))


@pytest.mark.parametrize("name", GRIDS)
def test_rows_of_families_whose_towers_reorder_patches(name, folder, pictures, monkeypatch):
    tiny = GRIDS[name]
    (folder / name).mkdir(exist_ok=True)
    engine = Engine(tiny.model(), tiny.processor(folder / name), mode="full")
    assert len(engine.vision_layers) == 1
    said = told_ids(engine, monkeypatch)
    turns = question(*pictures)
    trace = ask(engine, turns, tokens=4)[-1].trace
    assert trace.connector == () and len({one.tokens.grid for one in trace.images}) == 2
    vision = engine.vision_layers[0]
    for image, kept in enumerate(trace.vision[vision]):
        expected = whole_forward(
            engine, turns, trace, said=said[0], key_layers=[0], vision_layers=[vision], images=[image]
        )
        np.testing.assert_allclose(kept, expected[f"vision_layer_{vision}"][0], atol=2e-3)
        np.testing.assert_allclose(trace.rows[0], expected["layer_0"][0][:, trace.positions], atol=2e-3)


def test_kinds_and_pictures(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    before = (*question(pictures[0]), Turn("assistant", ("da",)))
    trace = ask(engine, (*before, *question(pictures[1], text="nun?")))[-1].trace
    assert [trace.kinds.count(f"image {image}") for image in (0, 1)] == [9, 9]
    asked = "".join(text for text, kind in zip(trace.tokens, trace.kinds, strict=True) if kind == "question")
    assert asked.endswith("nun?") and "Picture" not in asked and "da" not in asked
    assert trace.kinds[-6:] == ("answer",) * 6 and [one.picture.size for one in trace.images] == [
        (60, 40),
        (33, 47),
    ]
    assert trace.images[1].tokens.image_size_pixels == (33, 47)


def test_watching_changes_no_answer_and_text_alone_has_no_look(embedded):
    plain = Engine(embedded.model, embedded.processor, mode="text")
    watched, alone = ask(embedded, tower_question()), ask(plain, tower_question())
    assert [one.text for one in watched] == [one.text for one in alone] and watched[-1].text == "广州塔"
    assert watched[-1].done and watched[-1].trace is not None and alone[-1].trace is None
    assert not any(one.done for one in watched[:-1]) and len(watched) >= 2


def test_low_memory_keeps_key_layers_and_caps_pictures(folder, monkeypatch):
    tiny = GRIDS["qwen2-vl"]
    processor = tiny.processor(folder)
    write = folder / "large.png"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(write)
    monkeypatch.setattr(engine_module, "LOW_PIXELS", 6 * 8 * 8)
    full, low = (Engine(tiny.model(), processor, mode=mode) for mode in ("full", "low"))
    many, few = (ask(one, question(write))[-1].trace for one in (full, low))
    assert few.kinds.count("image 0") <= 6 < many.kinds.count("image 0")
    assert low.vision_layers == () and few.vision == {} and set(few.rows) == set(low.layers)
    assert {rows.dtype for rows in few.rows.values()} == {np.dtype(np.float16)}
    deep = Engine(tiny_model(num_hidden_layers=8), processor, mode="low")
    assert deep.layers == (2, 4, 6, 7)


def test_a_stop_ends_the_reply_within_one_token_and_its_look_is_there(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    stop, seen = threading.Event(), []
    slow(engine)
    for partial in engine.reply(question(pictures[0]), stop=stop, max_new_tokens=200):
        seen.append(partial)
        stop.set()
    assert seen[-1].done and seen[-1].cut and len(seen[-1].trace.answer) <= 2
    assert len(ask(engine, question(pictures[0]))[-1].trace.answer) == 6


def slow(engine: Engine, seconds: float = 0.05) -> None:
    """Every forward takes so long, so that a test can act in between."""
    engine.model.register_forward_hook(lambda *_: time.sleep(seconds))


def test_a_reply_says_whether_its_end_token_ended_it(embedded):
    turns = tower_question()
    whole = ask(embedded, turns, tokens=64)
    assert not whole[-1].cut and not any(one.cut for one in whole)
    length = len(whole[-1].trace.answer)
    assert ask(embedded, turns, tokens=length)[-1].cut  # the end token is one more
    assert not ask(embedded, turns, tokens=length + 1)[-1].cut


def test_who_leaves_ends_the_reply_within_one_token(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    forwards = []
    engine.model.register_forward_hook(lambda *_: forwards.append(time.sleep(0.02)))
    replies = engine.reply(question(pictures[0]), stop=threading.Event(), max_new_tokens=200)
    next(replies)
    replies.close()
    said = len(forwards)
    assert ask(engine, question(pictures[0]), tokens=3)[-1].done
    assert len(forwards) <= said + 1 + 3


def test_a_stop_before_the_reply_s_turn_says_nothing(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    stop = threading.Event()
    stop.set()
    assert ask(engine, question(pictures[0]), stop=stop) == [Partial("", True, None)]


def test_replies_come_in_the_order_of_asking_and_say_how_many_are_before(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="text")
    slow(engine)
    first = engine.reply(question(pictures[0]), stop=threading.Event(), max_new_tokens=12)
    next(first)
    second = engine.reply(question(pictures[1]), stop=threading.Event(), max_new_tokens=1)
    assert next(second) == Partial("", False, None, waiting=1)
    stop = threading.Event()
    third = engine.reply(question(pictures[1]), stop=stop)
    assert next(third).waiting == 2
    stop.set()
    assert list(third) == [Partial("", True, None)]
    first.close()
    assert list(second)[-1].done


def test_a_listener_who_stays_away_holds_nobody_up(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    away = engine.reply(question(pictures[0]), stop=threading.Event(), max_new_tokens=4)
    next(away)  # and never again
    assert ask(engine, question(pictures[1]))[-1].done


def test_ten_users_at_once_get_what_each_would_get_alone(embedded):
    """One of them leaves in the middle, one sends a picture that is broken: nobody else notices."""
    turns = {
        user: (Turn("user", ("Picture 1: ", ImageRef("tower", TOWER), f"\n{EMBEDDED}" + "?" * user)),)
        for user in range(10)
    }
    alone = {user: ask(embedded, turns[user])[-1] for user in range(10)}
    turns[3] = question(Path("nowhere.png"))
    found: dict[int, Partial | Exception] = {}

    def use(user: int) -> None:
        replies = embedded.reply(turns[user], stop=threading.Event(), max_new_tokens=6)
        try:
            if user == 5:
                next(replies)
                replies.close()
                return
            for partial in replies:
                found[user] = partial
        except ValueError as error:
            found[user] = error

    users = [threading.Thread(target=use, args=(user,)) for user in range(10)]
    for user in users:
        user.start()
    for user in users:
        user.join(timeout=60)
    assert sorted(found) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert "there is no such file" in str(found.pop(3))
    for user, partial in found.items():
        assert partial.done and partial.text == alone[user].text
        assert partial.trace.tokens == alone[user].trace.tokens
        for layer, rows in alone[user].trace.rows.items():
            assert np.array_equal(partial.trace.rows[layer], rows)


def test_nothing_of_a_conversation_stays_in_the_engine(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    picture = Image.open(pictures[0])
    picture.load()
    trace = ask(engine, (Turn("user", (ImageRef("mine", picture), "wo?")),))[-1].trace
    left = [weakref.ref(trace), weakref.ref(trace.images[0].picture), weakref.ref(picture)]
    ask(engine, question(text="next"))  # the thread has gone on
    del trace, picture
    gc.collect()
    assert [one() for one in left] == [None, None, None]


def test_the_model_is_given_back_as_it_was(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    ask(engine, question(pictures[0]))
    assert engine.model.config._attn_implementation == "sdpa"
    assert not any(module._forward_pre_hooks for module in engine.model.modules())


def test_the_oldest_rows_go_where_not_all_fit(processor, pictures):
    engine = Engine(tiny_model(), processor, mode="full")
    whole = ask(engine, question(pictures[0]))[-1].trace
    row = 3 * 2 * len(whole.tokens) * 2
    engine.cache_bytes = 2 * 8 * row
    trace = ask(engine, question(pictures[0]))[-1].trace
    assert trace.positions.tolist() == whole.positions.tolist()[-8:]
    np.testing.assert_allclose(trace.rows[1], whole.rows[1][:, -8:], atol=1e-3)
    engine.cache_bytes = 2 * 3 * row
    trace = ask(engine, question(pictures[0]))[-1].trace
    assert trace.positions.tolist() == whole.positions.tolist()[-3:]
    np.testing.assert_allclose(trace.rows[2], whole.rows[2][:, -3:], atol=1e-3)


def test_an_adapter_off_answers_as_the_base_does_and_on_again_as_before(processor, pictures):
    lora = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False)
    base = Engine(tiny_model(), processor, mode="full")
    torch.manual_seed(1)
    adapted = Engine(get_peft_model(tiny_model(), lora), processor, mode="full", name="towers")
    off = adapted.adapter_off()
    plain, on, without, again = (ask(one, question(pictures[0]))[-1] for one in (base, adapted, off, adapted))
    assert without.text == plain.text != on.text == again.text
    np.testing.assert_array_equal(without.trace.rows[1], plain.trace.rows[1])
    assert adapted.has_adapter and not off.has_adapter and off.name == "towers (adapter off)"
    assert off.model is adapted.model and off._queue is adapted._queue
    with pytest.raises(ValueError, match="no adapter to turn off; use an adapter folder"):
        base.adapter_off()


def test_with_the_adapter_off_pictures_are_read_as_the_base_reads_them(tmp_path, pictures, capsys):
    """An adapter's folder has the processor that it was trained with."""
    engine = Engine.load(saved_adapter(tmp_path), mode="full", cpu_only=True)
    assert "other settings than its base's (image_mean); with the adapter off" in capsys.readouterr().out
    base = Engine.load(tmp_path / "base", mode="full", cpu_only=True)
    off, plain, on = (ask(one, question(pictures[0]))[-1] for one in (engine.adapter_off(), base, engine))
    np.testing.assert_array_equal(off.trace.rows[1], plain.trace.rows[1])
    assert engine.processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert not np.array_equal(on.trace.rows[1], plain.trace.rows[1])
    assert "settings" not in capsys.readouterr().out


def saved_adapter(folder, *, bias="none"):
    """An adapter whose processor has another mean than that of its base."""
    for name in ("base", "adapter"):
        (folder / name).mkdir()
        processor = tiny_processor(folder / name)
        if name == "adapter":
            processor.image_processor.image_mean = [0.1, 0.2, 0.3]
        processor.save_pretrained(folder / name)
    tiny_model().save_pretrained(folder / "base")
    lora = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, bias=bias)
    get_peft_model(load(folder / "base")[0], lora).save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_a_base_without_a_processor_is_read_through_the_adapter_s(tmp_path, capsys):
    adapter = saved_adapter(tmp_path)
    for file in (tmp_path / "base").iterdir():
        if file.name not in ("config.json", "generation_config.json", "model.safetensors"):
            file.unlink()
    engine = Engine.load(adapter, mode="text", cpu_only=True)
    assert engine.adapter_off().processor is engine.processor
    lines = [line for line in capsys.readouterr().out.splitlines() if "with the adapter off" in line]
    assert len(lines) == 1 and "the base has no processor of its own: " in lines[0]


def test_a_checkpoint_beside_another_reads_with_its_own_base_s_processor(tmp_path, capsys):
    adapter = saved_adapter(tmp_path)
    other = Engine.load(tmp_path / "base", mode="text", cpu_only=True).with_checkpoint(adapter)
    assert other.processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert other.adapter_off().processor.image_processor.image_mean != [0.1, 0.2, 0.3]
    assert capsys.readouterr().out.count("with the adapter off") == 1


def test_nothing_is_said_of_an_adapter_off_that_cannot_be(tmp_path, capsys):
    engine = Engine.load(saved_adapter(tmp_path, bias="lora_only"), mode="text", cpu_only=True)
    assert not engine.has_adapter and "with the adapter off" not in capsys.readouterr().out


def test_an_adapter_that_trains_biases_is_not_offered_switched_off(processor):
    """PEFT leaves them on: what is left is not the base."""
    lora = LoraConfig(r=2, target_modules=["c_attn"], bias="lora_only")
    adapted = Engine(get_peft_model(tiny_model(), lora), processor, mode="full")
    assert not adapted.has_adapter
    with pytest.raises(ValueError, match="or the base beside one that trains biases"):
        adapted.adapter_off()


def test_an_adapter_with_a_connector_of_its_own_is_watched_on_and_off(processor, pictures):
    """PEFT keeps such a connector twice, and calls one of the two."""
    lora = LoraConfig(
        r=2, target_modules=["c_attn"], init_lora_weights=False,
        modules_to_save=["transformer.visual.attn_pool", "transformer.visual.transformer"],
    )  # fmt: skip
    base = Engine(tiny_model(), processor, mode="full")
    torch.manual_seed(1)
    adapted = Engine(get_peft_model(tiny_model(), lora), processor, mode="full")
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if ".modules_to_save." in name:
                parameter.add_(torch.randn_like(parameter))
    plain, on, off = (
        ask(one, question(pictures[0]))[-1].trace for one in (base, adapted, adapted.adapter_off())
    )
    np.testing.assert_array_equal(off.connector[0], plain.connector[0])
    last = max(plain.vision)
    np.testing.assert_array_equal(off.vision[last][0], plain.vision[last][0])
    assert on.connector[0].shape == off.connector[0].shape and not np.array_equal(
        on.connector[0], off.connector[0]
    )
    assert not np.array_equal(on.vision[last][0], off.vision[last][0])


def test_another_checkpoint_stands_in_the_same_line(embedded):
    other = embedded.with_checkpoint(engine_module.EMBEDDED)
    assert other._queue is embedded._queue and other.model is not embedded.model
    assert ask(other, tower_question())[-1].text == "广州塔"


def test_a_checkpoint_is_loaded_between_replies(embedded, monkeypatch):
    """While it is loaded, transformers changes the precision of the process: no answer may be made meanwhile."""
    where, load = [], Engine.load
    monkeypatch.setattr(
        Engine,
        "load",
        lambda *given, **how: where.append(threading.current_thread().name) or load(*given, **how),
    )
    embedded.with_checkpoint(engine_module.EMBEDDED)
    assert where == ["reply"]
    end = time.monotonic() + 5
    # its thread tells the result before it removes the job
    while embedded._queue._jobs and time.monotonic() < end:
        time.sleep(0.01)
    assert not embedded._queue._jobs
    with pytest.raises(ValueError, match="nowhere"):
        embedded.with_checkpoint("/nowhere")
    assert ask(embedded, tower_question())[-1].text == "广州塔"


@pytest.mark.parametrize(
    ("mode", "on_gpu", "weights", "attention", "helps"),
    [
        ("text", False, "3.8 MiB", False, "a smaller checkpoint"),
        ("full", False, "3.8 MiB", True, "--low-memory (keeps less attention); a smaller checkpoint"),
        ("low", False, "3.8 MiB", True, "a smaller checkpoint"),
        (
            "text",
            True,
            "3.8 MiB",
            False,
            "--cpu-only, if the machine has more memory than its GPU (slow); a ",
        ),
        ("full", True, "3.8 MiB", True, "--low-memory (4-bit language layers); --cpu-only, "),
        ("low", True, "2.3 MiB", True, "--cpu-only, "),
    ],
)
def test_memory_is_estimated_before_loading_and_too_large_a_model_refused(
    mode, on_gpu, weights, attention, helps, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(engine_module, "available_bytes", lambda device: 2**20)
    monkeypatch.setattr(engine_module, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=r"needs .* found 1.0 MiB free. Try: ") as told:
        Engine.load(None, mode=mode)
    assert str(told.value).partition("Try: ")[2].startswith(helps)
    said = capsys.readouterr().out
    assert f"weights {weights}" in said and ("attention 0.2 GiB" in said) == attention


def test_low_memory_loads_four_bits_on_a_gpu_and_nothing_else_does(monkeypatch):
    asked = []

    def load(path, *, device, quantize, dtype):
        asked.append((device.type, quantize, dtype))
        raise ValueError("far enough")

    monkeypatch.setattr(engine_module, "load", load)
    monkeypatch.setattr(engine_module, "available_bytes", lambda device: 2**40)
    for on_gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=on_gpu: here)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
        for mode in ("text", "full", "low"):
            with pytest.raises(ValueError, match="far enough"):
                Engine.load(None, mode=mode)
    gpu, cpu = ("cuda", False, None), ("cpu", False, None)
    assert asked == [gpu, gpu, ("cuda", True, torch.float16), cpu, cpu, cpu]


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ((), "found no turn at its end, expected the user's question"),
        ((Turn("user", ("a",)), Turn("assistant", ("b",))), "found a turn of the assistant"),
        ((Turn("user", (ImageRef("gone", Path("gone.png")), "a")),), "'gone.png': there is no such file"),
        ((Turn("user", ("a" * 9000,)),), "reads at most 8,192; shorten the question or send fewer"),
        (
            (Turn("user", ("a",)), Turn("assistant", ("b",)), Turn("user", ("a" * 9000,))),
            "reads at most 8,192; shorten the question, send fewer pictures, or clear it and start again",
        ),
    ],
)
def test_a_failed_reply_has_a_message_and_the_next_one_runs(processor, turns, words):
    engine = Engine(tiny_model(), processor, mode="full")
    with pytest.raises(ValueError, match=words):
        ask(engine, turns)
    assert ask(engine, question())[-1].done


def test_out_of_memory_has_a_message(processor, pictures, monkeypatch):
    engine = Engine(tiny_model(), processor, mode="full")

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_generate", fail)
        with pytest.raises(ValueError, match="ran out of memory on this conversation; send fewer"):
            ask(engine, question(pictures[0]))
    assert ask(engine, question(pictures[0]))[-1].done


def test_a_reply_ends_where_the_model_can_read_no_further(processor):
    engine = Engine(tiny_model(max_position_embeddings=64), processor, mode="full")
    trace = ask(engine, question(), tokens=99)[-1].trace
    assert 60 < len(trace.tokens) <= 64


def test_tokens_that_nothing_spells_and_characters_that_are_cut(processor):
    tokenizer = processor.tokenizer
    assert reply_text(tokenizer, [97, 475, 98]) == "a\N{REPLACEMENT CHARACTER}b"
    assert reply_text(tokenizer, list("东".encode())[:2]).endswith("\N{REPLACEMENT CHARACTER}")


def test_control_tokens_reach_no_reader(processor, pictures):
    tokenizer = processor.tokenizer
    control = tokenizer.special_tokens
    said = [control["<|im_start|>"], *tokenizer.encode_text("cat"), control["<ref>"], control["</img>"]]
    assert reply_text(tokenizer, said) == "cat<ref>"  # markup of boxes is read by the chat
    engine = Engine(tiny_model(), processor, mode="full")
    last = ask(engine, question(pictures[0]))[-1]
    shown = [text for text, kind in zip(last.trace.tokens, last.trace.kinds, strict=True) if kind == "other"]
    assert CONTROL in shown and not [text for text in last.trace.tokens if text.startswith("<|")]


def test_sinks_are_those_of_the_nearest_key_layer_below(processor, pictures, monkeypatch):
    engine = Engine(tiny_model(), processor, mode="full")
    assert engine.sink_layers == ()  # 32 numbers wide: none can reach 20
    assert not ask(engine, question(pictures[0]))[-1].trace.sinks.any()
    engine.sink_layers = (0, 2)
    marks = iter([[0, 3], [5]])
    monkeypatch.setattr(reply_capture, "sink_dimensions", lambda states: np.array(next(marks)))
    monkeypatch.setattr(
        reply_capture, "sink_tokens", lambda states, marked: np.isin(np.arange(len(states)), marked)
    )
    sinks = ask(engine, question(pictures[0]))[-1].trace.sinks
    assert [np.flatnonzero(row).tolist() for row in sinks] == [[0, 3], [0, 3], [5]]


def test_a_line_that_is_closed_ends_its_job_and_its_thread(processor, pictures):
    """At the end of the process: a thread that is cut off inside torch aborts it."""
    engine = Engine(tiny_model(), processor, mode="full")
    replies = engine.reply(question(pictures[0]), stop=threading.Event())
    next(replies)
    thread = engine._queue._thread
    engine._queue.close()
    assert not thread.is_alive()
    *_, last = replies
    assert last.done and last.trace is None


def test_replies_from_a_share_of_the_image_tokens(pictures, processor):
    model = tiny_model()
    turns = question(*pictures)
    whole = ask(Engine(model, processor, mode="text"), turns)[-1].text
    assert ask(Engine(model, processor, mode="text", keep=Keep(1.0, "divprune")), turns)[-1].text == whole
    engine = Engine(model, processor, mode="text", keep=Keep(0.3, "fastv"))
    encoded = engine._read(turns).encoded
    with keep_image_tokens(model, encoded, share=0.3, by="fastv") as removal:
        inputs = padded([encoded], torch.device("cpu"), left=True)
        stops = list(engine.family.stop_token_ids(processor))
        said = model.generate(
            **inputs, do_sample=False, max_new_tokens=6, eos_token_id=stops, pad_token_id=stops[0]
        )
    assert len(removal.kept) < len(encoded.input_ids)
    reply = [token for token in said[0, len(encoded.input_ids) :].tolist() if token not in stops]
    assert ask(engine, turns)[-1].text == reply_text(processor.tokenizer, reply).strip()
    alone = ask(engine, question(text="no picture"))[-1].text
    assert alone == ask(Engine(model, processor, mode="text"), question(text="no picture"))[-1].text
    assert engine.with_checkpoint(engine_module.EMBEDDED).keep == engine.keep
