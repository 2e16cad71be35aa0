"""The monitor puts the attention of step 0 back at the end of a run, and says why where it cannot."""

import hashlib
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from diagnostics.compare import compare_sources
from diagnostics.monitor import AttentionMonitor
from diagnostics.records.archive import NOT_PATCHED, load_records
from diagnostics.records.probes import read_probes
from finetune.model import look_file, seen_file
from finetune.model.checkpoint import load
from tests.diagnostics.test_monitor import Samples, no_drawing, probe_file  # noqa: F401  (fixtures)
from tests.diagnostics.tiny_qwen_vl import tiny_model
from tests.finetune.model.a_run import a_run


def trained(processor, probe_file, output_dir=None, *, adapter, **options):  # noqa: F811
    """A loop of one's own, four steps; probed at 0, 2 and 4 where there is a folder. Its losses."""
    model = tiny_model(attn_dropout_prob=0.1)
    samples = Samples(model, processor, read_probes(probe_file))
    if adapter:
        settings = LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["attn_pool"])
        torch.manual_seed(3)
        model = get_peft_model(model, settings)
    monitor = None
    if output_dir is not None:
        monitor = AttentionMonitor(processor, probe_file, output_dir, key_layers=[0, 2], **options)
        monitor.probe(0, model)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    torch.manual_seed(1)
    losses = []
    for step in range(1, 5):
        model.train()
        one = {name: value[None] for name, value in samples[step].items()}
        loss = model(**one).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if monitor is not None and step in (2, 4):
            monitor.probe(step, model)
    return losses


def records(output_dir, step):
    return load_records(output_dir / "attention" / f"step-{step:06d}")


def test_an_adapter_is_switched_off_at_the_end_and_training_does_not_notice(
    processor,
    probe_file,  # noqa: F811
    tmp_path,
    capsys,
):
    assert trained(processor, probe_file, tmp_path, adapter=True) == trained(
        processor, probe_file, adapter=True
    )
    before = records(tmp_path, 0)
    for step in (2, 4):
        for name, record in records(tmp_path, step).items():
            own = before[name].scores.margin_nats
            assert record.patched_from is not None and record.patched_from.model == before[name].model
            assert record.patched_from.margin_nats == pytest.approx(own, abs=1e-4)
            assert len(record.patches) == 5
    assert all(record.patches == () for record in before.values())
    assert not (tmp_path / "attention" / NOT_PATCHED).exists()
    assert "at the end, with the attention of step 0 put back: quick probing" in capsys.readouterr().out


def test_all_weights_trained_need_the_base_a_second_time(processor, probe_file, tmp_path, monkeypatch):  # noqa: F811
    trained(processor, probe_file, tmp_path / "none", adapter=False)
    reason = (tmp_path / "none" / "attention" / NOT_PATCHED).read_text()
    assert "give the monitor reference=" in reason
    assert all(record.patches == () for record in records(tmp_path / "none", 4).values())
    compared = json.loads((tmp_path / "none" / "comparison" / "comparison.json").read_text())
    for group in compared["groups"].values():
        assert group["legs"]["mediation"]["holds"] is None
        assert "give the monitor reference=" in group["legs"]["mediation"]["reason"]
    again = compare_sources(
        *(str(tmp_path / "none" / "attention" / f"step-00000{at}") for at in (0, 4)), tmp_path
    )
    assert again["groups"] == compared["groups"]
    loads = []

    def load(name, **options):
        loads.append((name, options["dtype"], str(options["device"]), options["cache_dir"]))
        return tiny_model(attn_dropout_prob=0.1), None

    monkeypatch.setattr("diagnostics.probing.before.load", load)
    plain = trained(processor, probe_file, adapter=False)
    given = {"reference": "base", "cache_dir": tmp_path / "models"}
    assert trained(processor, probe_file, tmp_path / "given", adapter=False, **given) == plain
    assert (
        loads == [("base", torch.float32, "cpu", str(tmp_path / "models"))] * 2
    )  # at each probing of the whole depth after step 0
    before = records(tmp_path / "given", 0)
    for name, record in records(tmp_path / "given", 4).items():
        assert record.patched_from is not None and record.patched_from.model == "base"
        assert record.patched_from.margin_nats == pytest.approx(before[name].scores.margin_nats, abs=1e-4)
    monkeypatch.setattr("diagnostics.probing.before.available_bytes", lambda place: 1000)
    trained(processor, probe_file, tmp_path / "full", adapter=False, reference="base")
    assert "second model beside this one needs" in (tmp_path / "full" / "attention" / NOT_PATCHED).read_text()
    assert records(tmp_path / "full", 4).keys() == before.keys() and len(loads) == 2


@pytest.fixture(scope="module")
def saved(processor, tmp_path_factory):
    """Folders of a base and of an adapter of it that has been trained."""
    folder = tmp_path_factory.mktemp("saved")
    base, adapter = folder / "base", folder / "adapter-1"
    tiny_model().save_pretrained(base)
    processor.save_pretrained(base)
    model = get_peft_model(
        load(base, for_training=True)[0],
        LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False),
    )
    model.save_pretrained(adapter)
    return base, adapter


def probed_by_hand(processor, probe_file, model, output_dir, **options):  # noqa: F811
    """The records of steps 0 and 5, between which all that trains has moved."""
    options = {"key_layers": [0, 2], "diagnose": False, **options}
    monitor = AttentionMonitor(processor, probe_file, output_dir, **options)
    first = monitor.probe(0, model.eval())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in model.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=generator) * 0.1)
    last = monitor.probe(5, model)
    monitor.finish()
    return first, last


@pytest.mark.parametrize("is_given", [True, False])
def test_an_adapter_that_is_trained_further_is_not_called_its_base(
    processor,
    probe_file,  # noqa: F811
    tmp_path,
    saved,
    is_given,
    capsys,
):
    """Step 0 is the base with that adapter, and it is this model whose attention is put back."""
    base, adapter = saved
    reference = adapter if is_given else base
    model = load(adapter, for_training=True)[0]
    first, last = probed_by_hand(processor, probe_file, model, tmp_path, reference=reference)
    said = capsys.readouterr().out
    assert ("warning: the adapter was trained before, and nothing says where" in said) is not is_given
    words = f"{base} with the adapter {adapter if is_given else 'it came with'}"
    compared = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert compared["before"] == {"model": words, "step": 0}
    assert {one.model for one in first.values()} == {words}
    for name, record in last.items():
        if is_given:
            margin = first[name].scores.margin_nats
            assert record.patched_from.margin_nats == pytest.approx(margin, abs=1e-4)
        else:
            assert record.patches == ()
    if not is_given:
        reason = (tmp_path / "attention" / NOT_PATCHED).read_text()
        assert "the adapter was trained before" in reason and "reference=, the folder of that" in reason


def test_biases_that_train_need_the_base_a_second_time(processor, probe_file, tmp_path, saved):  # noqa: F811
    base, _ = saved
    for reference in (base, None):
        model = get_peft_model(
            load(base, for_training=True)[0], LoraConfig(r=2, target_modules=["c_attn"], bias="all")
        )
        out = tmp_path / str(reference is None)
        first, last = probed_by_hand(processor, probe_file, model, out, reference=reference)
        for name, record in last.items():
            assert record.model != str(base) and first[name].model == str(base)
            if reference is not None:
                margin = first[name].scores.margin_nats
                assert record.patched_from.margin_nats == pytest.approx(margin, abs=1e-4)
    assert "trains biases of the base itself" in (tmp_path / "True" / "attention" / NOT_PATCHED).read_text()


@pytest.mark.parametrize("how", ["reference", "run", "opened", "adapter"])
def test_what_the_model_was_trained_on_before_is_said_of_every_step(
    processor,
    probe_file,  # noqa: F811
    tmp_path,
    how,
):
    """Notes of the model that training begins with count in anyone's trainer, which writes none, and so does the data
    of the run that it comes from."""
    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    processor.save_pretrained(base)
    model, reference = tiny_model(), base
    if how in ("opened", "adapter"):
        model, reference = load(base, for_training=True)[0], None
    if how == "adapter":
        reference = tmp_path / "adapter"
        get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"])).save_pretrained(reference)
        model = load(reference, for_training=True)[0]
    [first, second, *_] = read_probes(probe_file)
    digest, other = (hashlib.sha256(one.images[0].read_bytes()).hexdigest() for one in (first, second))
    if how == "run":
        (a_run(tmp_path, first.images) / "run.json").rename(base / "run.json")
    else:
        seen_file.write(base, [digest])
    look_file.write(base, [0, 2], [digest], weight=0.2, loss="mass")
    seen_file.write(reference if how == "adapter" else tmp_path / "out", [other])
    for records, is_end in zip(
        probed_by_hand(processor, probe_file, model, tmp_path / "out", reference=reference),
        (False, True),
        strict=True,
    ):
        assert records[first.id].trained_picture and records[first.id].supervised_picture
        assert records[second.id].trained_picture is (is_end or how == "adapter")
        assert records[second.id].supervised_layers == (0, 2)
