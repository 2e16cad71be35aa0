"""From a stage to what may mend it: which part must train, which samples are missing, and the command."""

from __future__ import annotations

from collections.abc import Mapping

from diagnostics.diagnosis.stages import (
    NOT_LOOKED_AT,
    NOT_PASSED_ON,
    NOT_SEEN,
    NOT_USED,
    PRIOR,
    SAID_OTHERWISE,
)

LANGUAGE, CONNECTOR, VISION = "language", "connector", "vision"
"""The components of ``finetune.model.adaptation``."""

_FAULTY: Mapping[str, tuple[str, ...]] = {
    PRIOR: (LANGUAGE,),
    SAID_OTHERWISE: (LANGUAGE,),
    NOT_USED: (LANGUAGE,),
    NOT_LOOKED_AT: (LANGUAGE,),
    NOT_PASSED_ON: (CONNECTOR,),
    NOT_SEEN: (VISION,),
}


def faulty_part(stage: str | None) -> tuple[str, ...]:
    """The components that must train for the fault to be mended: "language", "connector", "vision". Empty for "right",
    "too few probes" and where no stage was found."""
    return _FAULTY.get(stage or "", ())
