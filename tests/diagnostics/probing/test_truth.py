"""The demo's base model errs for a reason that is known by construction: do the causal checks name it?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from diagnostics.comparison.pairs import decisive_region
from diagnostics.probing.prober import Prober
from diagnostics.records.measurement_plan import OCCLUSION, QUICK, TOWER_KNOCKOUT
from diagnostics.records.probes import read_probes
from finetune.demo import probe_sets as demo
from finetune.demo.settings import BASE_MODEL
from finetune.demo.shapes import render
from finetune.model import checkpoint

PER_GROUP = 10
CAUSES = {"sphere-building": "podium", "spatial-relation": "rug"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("truth")
    entries = []
    for group in CAUSES:
        for index in range(PER_GROUP):
            probe = demo.demo_probe("development", group, index)
            render(probe.scene, *demo.PROBE_PIXELS).save(folder / f"{probe.identity}.png")
            entries.append(demo.record(probe, f"{probe.identity}.png"))
    (folder / "probes.json").write_text(json.dumps({"version": 1, "probes": entries}))
    probes = read_probes(folder / "probes.json")
    model, processor = checkpoint.load(BASE_MODEL)
    depth = replace(QUICK, generate=False, relations=False, controls=0)
    prober = Prober(model, processor, key_layers=[1], probes=probes, depth=depth)
    return probes, prober.run_all(0, "base")


# Not by knock-out: the queries of a resampler that read a region most carry much else (13 of 20 named).
@pytest.mark.parametrize("kind", [OCCLUSION, TOWER_KNOCKOUT])
def test_what_the_base_model_errs_by_is_named(asked, kind):
    probes, records = asked
    named = [
        decisive_region(probe, record, kind) == CAUSES[probe.group]
        for probe, record in zip(probes, records, strict=True)
    ]
    assert sum(named) >= 0.95 * len(named)
    assert all((record.scores.margin_nats or 0) < 0 for record in records)  # and it does err
