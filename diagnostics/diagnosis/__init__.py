"""Where on the way from pixels to words is the right answer lost? One model, no checkpoint to compare with."""

from diagnostics.diagnosis.diagnosing import Diagnosis, diagnose_model
from diagnostics.diagnosis.remedies import faulty_part
from diagnostics.diagnosis.stages import Stage
from diagnostics.diagnosis.thresholds import Thresholds

__all__ = ["Diagnosis", "Stage", "Thresholds", "diagnose_model", "faulty_part"]
