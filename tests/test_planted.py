"""Planted latents get the scores they must through the real explain and score stages."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from planted import BIGRAM, DEAD, DENSE, DICTIONARY, NOISE, RARE, TOKEN, planted_cache, write_planted_run

from autointerp.artifacts import explanations_folder, read_judgements, scores_folder
from autointerp.config import ExamplesConfig
from autointerp.examples import ExampleSampler
from autointerp.explain import main as explain
from autointerp.metrics import latent_metrics
from autointerp.score import main as score

SCORERS = ("detection", "fuzzing")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_planted_run(tmp_path_factory.mktemp("planted") / "run")
    explain(["--run", str(run)])
    score(["--run", str(run)])
    return run


def sentences(run: Path) -> Path:
    return explanations_folder(run, DICTIONARY, "lexical", "offline") / "explanations.jsonl"


def table(run: Path, scorer: str) -> dict[int, dict[str, str]]:
    folder = scores_folder(run, sentences(run).parent, scorer, "offline")
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as stream:
        return {int(row["latent"]): row for row in csv.DictReader(stream)}


def auroc(run: Path, scorer: str, latent: int) -> float:
    return float(table(run, scorer)[latent]["auroc"])


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("latent", [TOKEN, BIGRAM])
def test_a_lexical_latent_is_predicted(run: Path, scorer: str, latent: int) -> None:
    assert auroc(run, scorer, latent) >= 0.99
    assert float(table(run, scorer)[latent]["balanced_accuracy"]) >= 0.95


@pytest.mark.parametrize("scorer", SCORERS)
def test_noise_is_scored_at_chance(run: Path, scorer: str) -> None:
    # Hanley and McNeil: 50 against 50 at 0.5 have a standard error of 0.058.
    assert abs(auroc(run, scorer, NOISE) - 0.5) < 1.96 * 0.058


@pytest.mark.parametrize("scorer", SCORERS)
def test_another_latents_sentence_scores_at_chance(run: Path, tmp_path: Path, scorer: str) -> None:
    """The right sentences dealt to the wrong latents; a judge that knew the truth in any other way would notice."""
    wrong = write_planted_run(tmp_path / "run")
    explain(["--run", str(wrong)])
    rows = [json.loads(text) for text in sentences(wrong).read_text(encoding="utf-8").splitlines()]
    texts = {row["latent"]: row["text"] for row in rows}
    dealt = {TOKEN: BIGRAM, BIGRAM: TOKEN, NOISE: TOKEN}
    for row in rows:
        row["text"] = texts.get(dealt.get(row["latent"], -1), row["text"])
    sentences(wrong).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    score(["--run", str(wrong), "--scorers", scorer])
    found = [auroc(wrong, scorer, latent) for latent in dealt]
    assert abs(np.mean(found) - 0.5) < 1.96 * 0.058
    assert max(found) < 0.7


@pytest.mark.parametrize("scorer", SCORERS)
def test_rare_and_dense_latents_are_rows_with_a_reason_and_no_score(run: Path, scorer: str) -> None:
    rows = table(run, scorer)
    assert rows[RARE]["status"] == "too_rare" and rows[DENSE]["status"] == "too_dense"
    for latent in (RARE, DENSE):
        assert rows[latent]["auroc"] == "" and rows[latent]["n"] == "0" and rows[latent]["reason"]
    assert DEAD not in rows


def test_a_sentence_deleted_and_typed_in_again_gives_identical_scores(run: Path, tmp_path: Path) -> None:
    again = write_planted_run(tmp_path / "run")
    explain(["--run", str(again)])
    typed = [json.loads(text) for text in sentences(again).read_text(encoding="utf-8").splitlines()]
    sentences(again).unlink()
    lines = [json.dumps({"latent": r["latent"], "text": r["text"]}) for r in typed if r["text"] is not None]
    sentences(again).write_text("\n".join(lines), encoding="utf-8")
    score(["--run", str(again)])
    for scorer in SCORERS:
        before, after = table(run, scorer), table(again, scorer)
        assert len(after) == 3
        for latent, row in after.items():
            assert row["auroc"] and {k: v for k, v in row.items() if k != "density"} == {
                k: v for k, v in before[latent].items() if k != "density"
            }


@pytest.mark.parametrize("scorer", SCORERS)
def test_metrics_follow_from_the_judgements_and_judgements_from_score_windows(run: Path, scorer: str) -> None:
    judged = list(read_judgements(scores_folder(run, sentences(run).parent, scorer, "offline")))
    sampler = ExampleSampler(planted_cache(run), ExamplesConfig())
    for latent in (TOKEN, NOISE, BIGRAM):
        rows = [row for row in judged if row.latent == latent]
        found = latent_metrics([r.y_true for r in rows], [r.y_score for r in rows if r.y_score is not None])
        assert found["auroc"] == auroc(run, scorer, latent)
        examples = sampler.examples(latent)
        shown = {e.id for e in (*examples.test, *examples.non_activating)}
        told = {e.id for e in (*examples.top, *examples.train, *examples.contrast)}
        assert {row.example_id for row in rows} <= shown and not shown & told
