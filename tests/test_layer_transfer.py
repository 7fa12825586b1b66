"""The table of explanations judged at other layers: worked numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.layer_transfer import WHOLE, by_distance, markdown, read_latents, transfer_table
from sae.artifacts import writing
from sae.errors import InputError


def _frame() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []

    def add(by: Any, at: int, values: dict[int, float], null: str = "") -> None:
        rows.extend({"by": by, "at": at, "null": null, "latent": n, "value": v} for n, v in values.items())

    add(0, 0, {1: 0.9, 2: 0.7})
    add(0, 0, {1: 0.5, 2: 0.5}, "shuffled")
    add(2, 2, {1: 0.8, 3: 0.6})
    add(2, 2, {1: 0.4, 3: 0.4}, "shuffled")
    # Latent 3 is not explained at layer 0, latent 2 not at layer 2: only latent 1 counts.
    add(0, 2, {1: 0.7, 2: 0.1})
    add(2, 0, {1: 0.8, 3: 0.1})
    add(WHOLE, 0, {1: 0.9, 2: 0.7, 7: 0.0})
    return pd.DataFrame(rows)


def test_moved_explanations_are_paired_with_those_made_there() -> None:
    pairs = transfer_table(_frame())
    found = {(r["by"], r["at"]): r for r in pairs.to_dict("records")}
    assert set(found) == {(0, 2), (2, 0), (WHOLE, 0)}
    moved = found[(0, 2)]
    assert (moved["n"], moved["moved"], moved["own"], moved["floor"]) == (1, 0.7, 0.8, 0.4)
    assert moved["loss"].value == pytest.approx(0.1)
    whole = found[(WHOLE, 0)]
    assert whole["n"] == 2 and whole["loss"].value == 0 and whole["own"] == pytest.approx(0.8)


def test_what_is_kept_counts_from_the_floor() -> None:
    rows = {r["distance"]: r for r in by_distance(transfer_table(_frame())).to_dict("records")}
    # (0.75 - 0.45) / (0.85 - 0.45), from both directions.
    assert rows[2]["kept"] == pytest.approx(0.75) and rows[2]["pairs"] == 2
    assert rows[WHOLE]["kept"] == pytest.approx(1.0)


def test_without_a_floor_nothing_is_said_to_be_kept() -> None:
    frame = _frame()
    lines = markdown("a run", transfer_table(frame[frame["null"] == ""]))
    assert "| 2 | 2 | 0.750 | 0.850 | – | – |" in lines


def test_scores_that_were_cut_short_are_refused_and_not_averaged(tmp_path: Path) -> None:
    folder = tmp_path / "transfers" / "all.at0" / "lexical@offline" / "all.at1" / "detection@offline"
    with writing(folder, "scores", {"scorer": "detection", "judge": "offline", "null": ""}, {}) as writer:
        (writer.partial / "scores.csv").write_text("latent,average_precision\n3,0.5\n4,0.75\n")
        writer.finish({})
    found = read_latents(tmp_path, "detection")
    assert found[["latent", "at", "by", "value"]].to_numpy().tolist() == [[3, 1, 0, 0.5], [4, 1, 0, 0.75]]
    (folder / "scores.csv").write_text("latent,average_precision\n3,0.5\n")
    with pytest.raises(InputError, match=r"files are not those .*; remove .* and make it again"):
        read_latents(tmp_path, "detection")
