"""The leg "mediation" shows the interval that it is tested by."""

from dataclasses import replace

import numpy as np
import pytest

from diagnostics.comparison.legs.mediation import mediation_of
from diagnostics.comparison.pairs import pair_records
from diagnostics.comparison.thresholds import Thresholds
from diagnostics.records.record import PatternPatch
from diagnostics.report.languages import translated
from tests.diagnostics.comparison.made_pairs import Made, pairs_of

SEED = 24
"""Of a share that is above 0 at 95 %, and not at 97.5 %."""


def test_the_interval_is_of_the_level_that_the_claim_is_tested_at(tmp_path):
    gone = np.random.default_rng(SEED).normal(1.15, 2.6, 24)
    pairs = [
        pair_records(
            pair.probe,
            pair.before,
            replace(pair.after, patches=(PatternPatch("key layers", 6.0 - float(nats), (1, 3)),)),
        )
        for pair, nats in zip(pairs_of(tmp_path, tower=Made())["tower"], gone, strict=True)
    ]
    found = mediation_of(pairs, Thresholds(), 0.95)
    leg, (part,) = found.leg, found.parts
    assert leg.value == pytest.approx(part.share.mean) and leg.value >= Thresholds().mediated
    assert part.share.low > 0 > leg.ci95[0] and leg.holds is False
    assert "(97.5 % interval -" in leg.reason and "95 % interval +" not in leg.reason
    assert "97.5% 置信区间" in str(translated(leg.reason))
