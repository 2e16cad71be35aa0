"""In which precision a model is probed: the one that its own forward runs in, whoever says so, and no other later."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import Trainer, TrainingArguments

from diagnostics.monitor import AttentionMonitor
from diagnostics.monitoring.moments import moment_by_hand
from diagnostics.probing.prompts import ProbeEncoder, padded, scored_span
from diagnostics.records.archive import COMPLETE, load_step
from diagnostics.records.measurement_plan import WATCH
from diagnostics.records.probes import Probe
from tests.finetune.families.tiny_families import GRIDS
from tests.finetune.families.tiny_llava import LLAVAS
from tests.undrawn import RENDERER, Undrawn

TINY = {"qwen2.5-vl": GRIDS["qwen2.5-vl"], "llava-1.5": LLAVAS["llava-1.5"]}
HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(RENDERER, Undrawn)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def probes(folder):
    found = []
    for index, size in enumerate([(50, 31), (29, 44)]):
        path = folder / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        found.append(
            Probe(
                id=f"probe-{index}", group="tower", images=(path,), question="what?", answer="canton", foil="pearly",
                regions={"disc": ((4.0, 4.0, 20.0, 24.0),)},
            )
        )  # fmt: skip
    return found


def monitor(tiny, folder, **options):
    return AttentionMonitor(
        tiny.processor(folder), probes(folder), folder / "out", key_layers=[0, 1], depth=WATCH, diagnose=False,
        **options,
    )  # fmt: skip


@torch.no_grad()
def own_margins(model, tiny, folder):
    """log p of answer − foil, as the model that the caller holds computes them."""
    reader, found = ProbeEncoder(tiny.family, tiny.processor(folder)), []
    model.eval()
    for probe in probes(folder):
        asked, nats = reader.read(probe), []
        for one in (asked.answer, asked.foil):
            logits = model(**padded([one], torch.device("cpu"), left=False)).logits[0]
            start, end = scored_span(one)
            log_p = logits[start - 1 : end - 1].float().log_softmax(-1)
            nats.append(float(log_p.gather(1, torch.as_tensor(one.input_ids[start:end])[:, None]).sum()))
        found.append(nats[0] - nats[1])
    return found


def adapted(model):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"]))


def prepared(model, precision="bf16", **options):
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision otherwise
    return Accelerator(cpu=True, mixed_precision=precision, **options).prepare(model)


@pytest.mark.parametrize("has_adapter", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_a_prepared_model_is_measured_as_it_computes(tmp_path, name, has_adapter):
    tiny = TINY[name]
    model = adapted(tiny.model()) if has_adapter else tiny.model()
    exact = own_margins(model, tiny, tmp_path)
    model = prepared(model)
    found = monitor(tiny, tmp_path).probe(0, model)
    margins = [record.scores.margin_nats for record in found.values()]
    assert margins == pytest.approx(own_margins(model, tiny, tmp_path), abs=1e-2)
    assert max(abs(one - other) for one, other in zip(margins, exact, strict=True)) > 1e-2


@pytest.mark.parametrize("name", TINY)
def test_a_model_that_trains_in_full_under_bf16_is_monitored(tmp_path, name):
    tiny, watcher = TINY[name], monitor(TINY[name], tmp_path)
    encoded = ProbeEncoder(tiny.family, watcher.processor).encode(watcher.probes[0], "canton")
    batch = padded([encoded], torch.device("cpu"), left=False)
    batch["labels"] = torch.as_tensor(encoded.labels)[None]
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=1, use_cpu=True, bf16=True, report_to="none", disable_tqdm=True,
        save_strategy="no", per_device_train_batch_size=1, remove_unused_columns=False,
    )  # fmt: skip
    Trainer(tiny.model(), args, train_dataset=[0], data_collator=lambda _: batch, callbacks=[watcher]).train()
    assert watcher.missing == []
    marks = json.loads((watcher.attention_dir / "step-000000" / COMPLETE).read_text())
    assert marks["begun"]["autocast"] == "bfloat16"
    for record in load_step(watcher.attention_dir, 0).values():
        assert record.precision == "float32 (autocast: bfloat16)"


def test_the_innermost_precision_is_the_model_s(tmp_path):
    def found(model):
        at = moment_by_hand(0, model, tmp_path)
        return at.autocast, at.is_prepared

    plain = TINY["llava-1.5"].model()
    assert found(plain) == (None, False)
    with torch.autocast("cpu", HALF):
        assert found(plain) == (HALF, False)
    with torch.autocast("cpu", torch.float16):
        assert found(prepared(adapted(plain))) == (HALF, True)
    assert found(prepared(TINY["llava-1.5"].model(), "no")) == (None, False)
    off = prepared(TINY["llava-1.5"].model(), kwargs_handlers=[AutocastKwargs(enabled=False)])
    with torch.autocast("cpu", HALF):
        assert found(off) == (None, True)


def test_a_prepared_model_whose_precision_nothing_says_is_refused(tmp_path):
    model = TINY["llava-1.5"].model()
    model._original_forward = model.forward
    with pytest.raises(
        ValueError, match=r"its precision is unknown; call .* inside accelerator.autocast\(\)"
    ):
        monitor(TINY["llava-1.5"], tmp_path).probe(0, model)


def test_one_run_does_not_mix_precisions(tmp_path, caplog):
    tiny = TINY["llava-1.5"]
    model, watcher = tiny.model(), monitor(tiny, tmp_path)
    watcher.probe(0, model)
    with torch.autocast("cpu", HALF):
        assert watcher.probe(5, model) == {}
        [lacking] = watcher.missing
        assert lacking.startswith(
            "records of step 5 (step 0 was measured in the weights' own precision, now it"
        )
        assert lacking.partition(" (")[2][:-1] in caplog.text
        with pytest.raises(
            ValueError, match="found no complete .* own precision, now it would be under autoc"
        ):
            monitor(tiny, tmp_path).probe(6, model)
        other = monitor(tiny, tmp_path, baseline=tmp_path / "out")
        other.output_dir = tmp_path / "other"
        other.probe(0, model)
        marks = json.loads((other.attention_dir / "step-000000" / COMPLETE).read_text())
        assert marks["begun"]["autocast"] == "bfloat16"
    assert monitor(tiny, tmp_path).probe(7, model)


def test_a_run_that_kept_no_note_goes_on_unless_its_model_is_prepared(tmp_path):
    """Where the caller's context or the Trainer's arguments say the same, that is what it was measured in."""
    tiny = TINY["llava-1.5"]
    model, watcher = adapted(tiny.model()), monitor(tiny, tmp_path)
    watcher.probe(0, model)
    place = watcher.attention_dir / "step-000000" / COMPLETE
    marks = json.loads(place.read_text())
    del marks["begun"]["autocast"]
    place.write_text(json.dumps(marks))
    with torch.autocast("cpu", HALF):
        assert monitor(tiny, tmp_path).probe(4, prepared(adapted(tiny.model())))
    assert monitor(tiny, tmp_path).probe(5, model)
    with pytest.raises(ValueError, match=r'kept no note of its precision, .* under autocast in "bfloat16"'):
        monitor(tiny, tmp_path).probe(6, prepared(model))
