"""Scores of several runs side by side: what is read, what is matched with what, and the numbers of the table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from autointerp.artifacts import SCORES, explanation_folders
from autointerp.metrics import METRICS, token_concentration
from autointerp.stats import Difference, Estimate, cluster_means, mean_difference, mean_interval
from sae.artifacts import complete_folders, dictionary_folder, latents_folder, read_json, read_manifest
from sae.errors import InputError
from sae.latents import LatentCache
from sae.runs import read_run

ONE_TOKEN = 0.9
"""Share of a latent's activation mass on one token id above which it counts as a one-token latent."""
TRAINED = "trained"
SAE_METRICS = ("fvu", "fvu_token_mean", "fvu_pca", "cosine", "l0", "dead_share")
UNSCORED = ("too_rare", "too_dense")

Draw = tuple[int, int]


@dataclass(frozen=True)
class Subject:
    """What runs must share to be compared."""

    name: str
    revision: str
    corpus: str
    corpus_fingerprint: str


@dataclass(frozen=True)
class Question:
    """What scores must share to be compared: the dictionary's place and size, who explained, who judged, how."""

    hookpoint: str
    k: int | None
    n_latents: int | None
    explainer: str
    explainer_model: str
    judge: str
    scorer: str


@dataclass(frozen=True)
class Dictionary:
    """One dictionary of one run: how well it reconstructs, and how many of its latents are one-token latents."""

    config: dict[str, Any]
    metrics: dict[str, float]
    one_token: float


@dataclass(frozen=True)
class Scores:
    """One scorer's scores of one dictionary in one run."""

    run: Path
    subject: Subject
    variant: str
    draw: Draw
    """Seeds of the variant and of the dictionary."""
    question: Question
    graded: bool
    settings: dict[str, Any]
    table: pd.DataFrame
    dictionary: Dictionary


@dataclass(frozen=True)
class Line:
    """One variant's answer to a question, over all its draws, beside the trained one's."""

    question: Question
    variant: str
    parts: tuple[Scores, ...]
    trained: tuple[Scores, ...]

    @property
    def n_draws(self) -> int:
        """Draws of the network and the dictionary."""
        return len(self.parts)

    def mean(self, metric: str) -> Estimate | None:
        """Mean over latents; with several draws the mean of their means, and the interval is over these."""
        return mean_interval(_sample(self.parts, metric, over_draws=self.n_draws > 1))

    @cached_property
    def difference(self) -> Difference | None:
        """AUROC of the trained variant minus this one's; the effect size is always over latents."""
        if not self.trained or self.variant == TRAINED:
            return None
        over_draws = self.n_draws > 1 or len(self.trained) > 1
        means = mean_difference(*(_sample(parts, "auroc", over_draws) for parts in (self.trained, self.parts)))
        latents = mean_difference(*(_sample(parts, "auroc", False) for parts in (self.trained, self.parts)))
        return None if means is None or latents is None else Difference(means.difference, latents.effect)

    def reconstruction(self, name: str) -> float:
        """A metric of the dictionary, mean over draws; nan where it is not known."""
        return _mean(part.dictionary.metrics.get(name, float("nan")) for part in self.parts)

    @property
    def one_token(self) -> float:
        """Share of the living latents with nearly all their activation on one token id, mean over draws."""
        return _mean(part.dictionary.one_token for part in self.parts)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many latents were scored, were too rare or too dense, or failed, and how many judgements failed."""
        table = pd.concat([part.table for part in self.parts])
        status = Counter(table["status"])
        scored = int(table["auroc"].notna().sum())
        return {
            "latents_scored": scored,
            **{f"latents_{name}": status[name] for name in UNSCORED},
            "latents_failed": len(table) - scored - sum(status[name] for name in UNSCORED),
            "judgements": int(table["n"].sum()),
            "judgements_failed": int(table["n_failed"].sum()),
        }


def _sample(parts: Sequence[Scores], metric: str, over_draws: bool) -> list[float]:
    values = [part.table[metric].dropna().tolist() for part in parts]
    return cluster_means(dict(enumerate(values))) if over_draws else [x for one in values for x in one]


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def read_scores(runs: Sequence[Path]) -> list[Scores]:
    """All complete scores of the runs.

    Raises:
        InputError: a folder is no run or has no scores, or two runs are the same draw of the same variant.
    """
    found = [scores for run in runs for scores in _read_run(run)]
    owner: dict[Any, Path] = {}
    for scores in found:
        key = (scores.subject, scores.variant, scores.draw, scores.question)
        if key in owner:
            pair = f"{owner[key]} and {scores.run}"
            raise InputError(f"{pair} hold the same draw of variant {scores.variant}; name only one of them")
        owner[key] = scores.run
    return found


def _read_run(run: Path) -> list[Scores]:
    held = read_run(run)
    make = f"make them with python -m autointerp.score --run {run}"
    scored = [
        scores
        for explained in explanation_folders(run)
        for scores in complete_folders(run / "scores" / explained.parent.name / explained.name)
    ]
    if not scored:
        raise InputError(f"{run} has no scores; {make}")
    dictionaries: dict[str, Dictionary] = {}
    return [_read_one(run, held, folder, dictionaries) for folder in scored]


def _read_one(run: Path, held: dict[str, Any], folder: Path, dictionaries: dict[str, Dictionary]) -> Scores:
    make = f"remove {folder} and make them again with python -m autointerp.score --run {run}"
    config = read_manifest(folder, "scores", make).config
    try:
        table = pd.read_csv(folder / SCORES)
        table = table[["latent", "status"]].join(table[["n", "n_failed", *METRICS]].apply(pd.to_numeric))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / SCORES} is damaged ({error}); {make}") from None
    name = config["dictionary"]
    if name not in dictionaries:
        dictionaries[name] = _read_dictionary(run, name)
    made = dictionaries[name].config
    scale = held.get("control_scale")
    variant = held["variant"] + (f" ({scale})" if held["variant"] == "control" and scale not in (None, "unit") else "")
    subject = (str(held.get(key) or "") for key in ("subject", "revision", "corpus", "corpus_fingerprint"))
    question = (made.get("hookpoint") or name, made.get("k"), made.get("n_latents"))
    asked = (config[key] for key in ("explainer", "explainer_model", "judge", "scorer"))
    settings = {key: config.get(key) for key in ("examples", "examples_per_prompt", "sampling", "prompts")}
    settings |= {"latents sampled": len(table), "tokens cached": made.get("tokens"), "corpus": made.get("corpus")}
    settings["tokens trained on"] = dictionaries[name].metrics.get("n_tokens_train")
    return Scores(
        run=run,
        subject=Subject(*subject),
        variant=variant,
        draw=(int(held.get("variant_seed") or 0), int(made.get("seed") or 0)),
        question=Question(*question, *asked),
        graded=bool(config["graded"]),
        settings=settings,
        table=table,
        dictionary=dictionaries[name],
    )


def _read_dictionary(run: Path, name: str) -> Dictionary:
    cache = LatentCache.open(latents_folder(run, name))
    path = dictionary_folder(run, name) / "metrics.json"
    # A dictionary that was trained elsewhere has no metrics in the run.
    raw = (
        read_json(path, f"remove {path.parent} and make it again with python -m sae.train --run {run}")
        if path.exists()
        else {}
    )
    metrics = {key: float(value) for key, value in raw.items() if isinstance(value, (int, float))}
    shares = token_concentration(cache)
    alive = shares[~np.isnan(shares)]
    one_token = float((alive > ONE_TOKEN).mean()) if len(alive) else float("nan")
    return Dictionary(cache.manifest.config, metrics, one_token)


def lines_of(scores: Sequence[Scores], order: Sequence[str]) -> list[Line]:
    """The lines of one subject's table: dictionaries, scorers, and in each the variants, the trained one first."""
    rank = {name: place for place, name in enumerate(order)}

    def place(part: Scores) -> tuple[Any, ...]:
        q, config = part.question, part.dictionary.config
        layer = config.get("layer")
        at = (layer is None, layer or 0, q.hookpoint, q.k or 0, q.n_latents or 0)
        return (*at, q.explainer, q.explainer_model, q.judge, q.scorer, rank.get(part.variant, len(rank)), part.variant)

    lines = []
    for question, of_question in itertools.groupby(sorted(scores, key=place), key=lambda part: part.question):
        parts = list(of_question)
        trained = tuple(part for part in parts if part.variant == TRAINED)
        for variant, of_variant in itertools.groupby(parts, key=lambda part: part.variant):
            lines.append(Line(question, variant, tuple(of_variant), trained))
    return lines
