"""Scorers: what to ask about an explanation, and how to read the answer."""

from __future__ import annotations

from autointerp.scorers.detection import DetectionScorer
from autointerp.scorers.fuzzing import FuzzingScorer

SCORERS: dict[str, type[DetectionScorer] | type[FuzzingScorer]] = {
    "detection": DetectionScorer,
    "fuzzing": FuzzingScorer,
}
