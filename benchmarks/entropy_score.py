"""Entropy beside score: the quadrants that a score alone cannot tell apart, as a table and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from autointerp.quadrants import ENTROPY_CUT, QUADRANTS, SCORE_CUT, quadrant_table

from benchmarks.measured import Measured
from benchmarks.reading import Scores
from benchmarks.tables import UNDEFINED, table

ENTROPY = "corrected_entropy"


@dataclass(frozen=True)
class EntropyScore:
    """The scored latents of one subject under one scorer: a row a latent with its entropy and its score."""

    scorer: str
    """Scorer, explainer and judge."""
    frame: pd.DataFrame
    shares: pd.DataFrame

    @property
    def markdown(self) -> str:
        """Shares of the quadrants by dictionary and variant."""
        rows = []
        for (dictionary, variant), part in self.shares.groupby(["dictionary", "variant"], sort=False):
            cells = {row["quadrant"]: row for row in part.to_dict("records")}
            shares = [
                f"{row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}]" if row["n_placed"] else UNDEFINED
                for row in (cells[name] for name in QUADRANTS)
            ]
            first = cells[QUADRANTS[0]]
            rows.append([str(dictionary), str(variant), str(first["n_placed"]), *shares])
        return "\n".join(
            [
                f"## Entropy and score: {self.scorer}",
                "",
                *table(["dictionary", "variant", "latents", *QUADRANTS], rows),
                "",
                f"- Corrected entropy at least {ENTROPY_CUT:.2f} nats (five tokens) and AUROC at least {SCORE_CUT:g}: "
                "abstract; both below: unpredicted. Token-like has the score alone, diffuse the entropy alone. Shares are "
                "with Wilson's interval over the scored latents of all draws.",
                "",
            ]
        )


def entropy_scores(measured: Measured, scores: Sequence[Scores]) -> list[EntropyScore]:
    """One part for each scorer, explainer and judge whose latents have been measured."""
    keys = ["run", "cached", "latent"]
    parts: dict[str, list[pd.DataFrame]] = {}
    for one in scores:
        if one.null:
            continue
        q = one.question
        name = f"{q.scorer}, {q.explainer} ({q.explainer_model}), judge {q.judge}"
        about = {"run": str(one.run), "cached": one.dictionary.config["dictionary"]}
        parts.setdefault(name, []).append(one.table[["latent", "auroc"]].assign(**about))
    columns = [*keys, "dictionary", "variant", ENTROPY]
    order = {(d, v): place for place, (d, v, _) in enumerate(measured.groups)}
    found = []
    for name, tables in parts.items():
        frame = measured.frame[columns].merge(pd.concat(tables), on=keys)
        if len(frame):
            rank = [order[pair] for pair in zip(frame["dictionary"], frame["variant"], strict=True)]
            frame = frame.assign(rank=rank).sort_values(["rank", "latent"], kind="stable").reset_index(drop=True)
            found.append(EntropyScore(name, frame, quadrant_table(frame, ENTROPY)))
    return found
