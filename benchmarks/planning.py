"""How many latents the next comparison takes, judging by the scores there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autointerp.power import draw_spread, latents_needed, latents_needed_per_draw
from benchmarks.comparison import Line
from benchmarks.contrasts import TRAINED
from benchmarks.reading import Scores
from benchmarks.score_tables import sections_of
from benchmarks.tables import UNDEFINED, table

NEVER = "no number: more draws"


def latents_table(scores: Sequence[Scores], half_width: float) -> str:
    """Latents of each dictionary and draw for a 95 % interval of plus or minus `half_width`, as Markdown."""
    rows = []
    for line in (line for lines in sections_of(scores) for line in lines):
        q = line.question
        values = [part.table["auroc"].dropna().to_numpy(float) for part in line.parts]
        trained = [part.table["auroc"].dropna().to_numpy(float) for part in line.trained]
        known = np.concatenate(values) if values else np.zeros(0)
        if len(known) < 2:
            continue
        sd = _within(values)
        other = np.concatenate(trained) if trained and line.variant != TRAINED else np.zeros(0)
        alone = str(latents_needed(sd, half_width, estimated=True))
        both = UNDEFINED
        if len(other) > 1:
            both = str(latents_needed(sd, half_width, _within(trained), estimated=True))
        rows.append([q.hookpoint, q.scorer, line.variant, f"{sd:.3f}", alone, both, _over_draws(line, half_width)])
    header = ["dictionary", "scorer", "variant", "SD of latents", "latents: mean", "latents a side: trained − this"]
    return "\n".join(
        [
            f"## Latents for an interval of ± {half_width:g}",
            "",
            *table([*header, "latents a draw: mean over draws"], rows),
            "",
            "- The first two treat the networks as given; the last one wants the interval to hold for other draws too.",
            "",
        ]
    )


def _within(draws: Sequence[np.ndarray[Any, Any]]) -> float:
    """Standard deviation of latents within a draw."""
    return float(np.sqrt(np.mean([values.var(ddof=1) for values in draws if len(values) > 1])))


def _over_draws(line: Line, half_width: float) -> str:
    spread = draw_spread({part.draw: part.table["auroc"].dropna().tolist() for part in line.parts})
    if spread is None:
        return UNDEFINED
    needed = latents_needed_per_draw(*spread, len(line.parts), half_width)
    return NEVER if needed is None else f"{needed} ({len(line.parts)} draws)"
