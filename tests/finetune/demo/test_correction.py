"""The demo's correction apart from what is replayed beside it."""

import json
from pathlib import Path

from finetune.demo import corpus
from finetune.demo.correction import split_corrective

COUNT = 40


def test_each_sample_is_in_one_of_two_files(tmp_path: Path):
    records = [
        corpus.record(corpus.corrective_sample(i), f"corrective-{i:05d}", f"{i}.jpg") for i in range(COUNT)
    ]
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records), encoding="utf-8")
    found = split_corrective(data)
    correction, general = (json.loads(path.read_text(encoding="utf-8")) for path in found)
    assert sorted([*correction, *general], key=lambda one: one["id"]) == records
    assert 0.6 < len(correction) / COUNT < 0.95
    kinds = {one["id"]: corpus.corrective_sample(i).scene.kind for i, one in enumerate(records)}
    assert {kinds[one["id"]] for one in correction} == {"room", "tower"}
    # landscapes, and landmarks of no group
    assert {kinds[one["id"]] for one in general} == {"landscape", "tower"}
    before = found.correction.stat().st_mtime_ns
    split_corrective(data)
    assert found.correction.stat().st_mtime_ns == before
