"""Which steps of a run count as recorded, and how deep."""

from dataclasses import replace

import pytest

from diagnostics.records import archive as archive_module
from diagnostics.records.archive import RecordArchive
from diagnostics.records.measurement_plan import FULL, QUICK, WATCH
from tests.diagnostics.show_samples import probes, records


@pytest.fixture
def kept(tmp_path):
    of = probes(tmp_path)
    archive = RecordArchive(tmp_path / "attention", [probe.id for probe in of], (1, 3))
    archive.save(0, records(of, 0), QUICK)
    archive.save(10, records(of, 10), WATCH)
    return archive


def test_a_step_counts_for_its_depth_and_below(kept):
    assert kept.is_complete(0, WATCH) and kept.is_complete(0, QUICK) and not kept.is_complete(0, FULL)
    assert kept.is_complete(10, WATCH) and not kept.is_complete(10, QUICK)
    assert not kept.is_complete(0, QUICK.with_maps("gradient")) and not kept.is_complete(5, WATCH)
    assert kept.steps(WATCH) == [0, 10] and kept.steps(QUICK) == [0]


def test_other_probes_or_layers_or_a_lost_record_do_not_count(kept):
    assert not RecordArchive(kept.attention_dir, kept.probe_ids, (1, 2)).is_complete(0, QUICK)
    assert not RecordArchive(kept.attention_dir, kept.probe_ids[1:], (1, 3)).is_complete(0, QUICK)
    (kept.folder(0) / f"{kept.probe_ids[0]}.safetensors").unlink()
    assert not kept.is_complete(0, QUICK)


def test_records_of_another_run_do_not_count(tmp_path):
    of = probes(tmp_path)
    mine, other = (
        RecordArchive(tmp_path / "attention", [probe.id for probe in of], (1, 3), run=run) for run in "ab"
    )
    mine.save(10, records(of, 10), WATCH)
    assert mine.is_complete(10, WATCH)
    assert other.shortfall(10, WATCH) == "it differs in run" and other.steps(WATCH) == []


@pytest.mark.parametrize("most", [0, 2**30])
def test_records_are_read_when_asked_for(kept, monkeypatch, most):
    monkeypatch.setattr(archive_module, "KEPT_BYTES", most)
    some = kept.stored(10, kept.probe_ids[:2])
    assert list(some) == list(kept.probe_ids[:2]) and len(some) == 2
    one = some[kept.probe_ids[1]]
    assert one.step == 10 and (some[kept.probe_ids[1]] is one) is (most > 0)
    with pytest.raises(KeyError):
        some[kept.probe_ids[2]]
    assert replace(one, step=0).probe_id in kept.load(0)
