"""The monitor puts the attention of step 0 back at the end of a run, and says why where it cannot."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from diagnostics.compare import compare_sources
from diagnostics.monitor import AttentionMonitor
from diagnostics.records.archive import NOT_PATCHED, load_records
from diagnostics.records.probes import read_probes
from tests.diagnostics.test_monitor import Samples, no_drawing, probe_file  # noqa: F401  (fixtures)
from tests.diagnostics.tiny_qwen_vl import tiny_model


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
        loads.append((name, options["dtype"], str(options["device"])))
        return tiny_model(attn_dropout_prob=0.1), None

    monkeypatch.setattr("diagnostics.probing.before.load", load)
    plain = trained(processor, probe_file, adapter=False)
    assert trained(processor, probe_file, tmp_path / "given", adapter=False, reference="base") == plain
    assert loads == [("base", torch.float32, "cpu")] * 2  # at each probing of the whole depth after step 0
    before = records(tmp_path / "given", 0)
    for name, record in records(tmp_path / "given", 4).items():
        assert record.patched_from is not None and record.patched_from.model == "base"
        assert record.patched_from.margin_nats == pytest.approx(before[name].scores.margin_nats, abs=1e-4)
    monkeypatch.setattr("diagnostics.probing.before.available_bytes", lambda place: 1000)
    trained(processor, probe_file, tmp_path / "full", adapter=False, reference="base")
    assert "second model beside this one needs" in (tmp_path / "full" / "attention" / NOT_PATCHED).read_text()
    assert records(tmp_path / "full", 4).keys() == before.keys() and len(loads) == 2
