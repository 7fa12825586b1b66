"""`python -m autointerp.score`: explanations of a run -> judgements and scores."""

from __future__ import annotations

import dataclasses
import logging
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autointerp.artifacts import (
    JUDGEMENTS,
    SCORES,
    Journal,
    Row,
    explanation_folders,
    line,
    read_explanations,
    read_rows,
    rows_digest,
    scores_folder,
    usage_of,
    write_scores,
)
from autointerp.clients import make_client, sampling_of
from autointerp.config import ExamplesConfig, ScoreConfig
from autointerp.examples import ExampleSampler
from autointerp.judging import Question, ask_missing
from autointerp.prompting import Prompts
from autointerp.records import Completion, Explanation, Judgement, LLMClient, Sampling, Scorer, Trial
from autointerp.scorers import SCORERS
from sae.artifacts import Manifest, completed, latents_folder, plain, read_manifest, writing
from sae.cli import parse, run_stage
from sae.errors import InputError
from sae.latents import LatentCache
from sae.runs import read_run

LOG = logging.getLogger(__name__)
KIND = "scores"
OFFLINE = "offline"
"""Model of the client that asks no LLM; its scores are lexical predictability, never interpretability."""
EXPLAIN = "make them with python -m autointerp.explain --run {run}"


@dataclass(frozen=True)
class Source:
    """One folder of explanations with the cache that they are about."""

    folder: Path
    manifest: Manifest
    cache: LatentCache
    explanations: tuple[Explanation, ...]

    @property
    def examples(self) -> ExamplesConfig:
        """Which windows the explainer saw; the judge sees their counterparts of the score split."""
        return ExamplesConfig(**self.manifest.config["examples"])


@dataclass(frozen=True)
class Job:
    """One scorer's scores of one folder of explanations: the artifact to make and what determines it."""

    folder: Path
    source: Source
    scorer: Scorer
    settings: dict[str, Any]
    identity: Row
    """The columns of scores.csv that are the same for all latents."""

    @property
    def parents(self) -> dict[str, str]:
        """What the scores are made from: the sentences as they are on disk now, edited or not."""
        return {
            "latents": self.source.cache.manifest.fingerprint,
            "explanations": rows_digest(self.source.explanations),
        }


def main(argv: Sequence[str] | None = None) -> None:
    """The stage: plan, check that nothing stands in the way, then make one artifact after the other."""
    config = parse(ScoreConfig, argv, "python -m autointerp.score")
    _check(config)
    variant = read_run(config.run).get("variant")
    prompts = Prompts(config.prompts)
    client = make_client(config.client)
    sources = _sources(config)
    jobs = [_job(config, source, name, client, prompts, variant) for source in sources for name in config.scorers]
    done = [completed(job.folder, KIND, job.settings, job.parents, config.overwrite) for job in jobs]
    for job, manifest in zip(jobs, done, strict=True):
        if manifest is not None and not (config.retry_errors and manifest.counts["failed"].get("error")):
            LOG.info("%s is complete", job.folder)
            print(result_line(job.folder, manifest), flush=True)
            continue
        made = score_explanations(job, client, config, manifest)
        print(result_line(job.folder, made), flush=True)


def score_explanations(job: Job, client: LLMClient, config: ScoreConfig, earlier: Manifest | None = None) -> Manifest:
    """Make the scores of one folder of explanations, or go on where an interrupted process stopped.

    Args:
        job: the artifact.
        client: who judges.
        config: how many requests at a time.
        earlier: manifest of a complete artifact whose failed requests are to be asked again.
    """
    judging = _Judging(job, client, sampling_of(config.client))
    with writing(job.folder, KIND, job.settings, job.parents, keep=True) as writer, Journal(writer.partial) as journal:
        if earlier is not None and not journal.n_answers:
            journal.adopt(read_rows(job.folder / JUDGEMENTS), usage_of(earlier))
        label = f"{job.settings['dictionary']} {job.scorer.name}"
        label += " (lexical predictability)" if client.model == OFFLINE else ""
        ask_missing(judging.questions(), journal, client, config.client.concurrency, label, judging.total(journal))
        table = []
        with (writer.partial / JUDGEMENTS).open("w", encoding="utf-8") as stream:
            for explanation in job.source.explanations:
                rows = judging.rows(explanation.latent, journal)
                stream.writelines(line(row) for row in rows)
                table.append({**job.identity, **judging.summary(explanation, rows)})
        write_scores(writer.partial / SCORES, table)
        counts = {**_counts(table, judging.failed), **journal.costs()}
        return writer.finish(counts)


class _Judging:
    """The questions about one folder of explanations, and the rows made of the answers."""

    def __init__(self, job: Job, client: LLMClient, sampling: Sampling) -> None:
        self.scorer = job.scorer
        self.explanations = job.source.explanations
        self.seed = job.source.examples.seed
        self.sampler = ExampleSampler(job.source.cache, job.source.examples)
        self.model = client.model
        self.sampling = sampling
        self.failed: Counter[str] = Counter()
        self._trials: dict[int, int] = {}
        self._ineligible: dict[int, tuple[str, str]] = {}

    def total(self, journal: Journal) -> int | None:
        """About how many requests are to be sent: as many for every latent as for the first."""
        first = next((n for n in map(len, map(self._drawn, self._explained())) if n), 0)
        return max(first * len(self._explained()) - len(journal), 0)

    def questions(self) -> Iterator[Question]:
        """The scorer's questions about each explained latent."""
        for explanation in self._explained():
            trials = self._drawn(explanation)
            self._trials[explanation.latent] = len(trials)
            for number, trial in enumerate(trials):
                yield Question((explanation.latent, number), trial.request, self._reader(explanation.latent, trial))

    def rows(self, latent: int, journal: Journal) -> list[Row]:
        """All judgements about a latent, in the order of the questions."""
        return [row for number in range(self._trials.get(latent, 0)) for row in journal.rows(latent, number)]

    def summary(self, explanation: Explanation, rows: Sequence[Row]) -> Row:
        """A latent's line of scores.csv; failures are counted and take no part in the metrics."""
        from autointerp.metrics import latent_metrics

        judged = [row for row in rows if row["status"] == "ok"]
        failures = Counter(row["status"] for row in rows if row["status"] != "ok")
        self.failed += failures
        status, reason = self._ineligible.get(explanation.latent, (explanation.status, explanation.reason))
        if status == "ok" and not rows:
            status, reason = "too_dense", f"no window has room for a {self.scorer.name} question"
        elif status == "ok" and not judged:
            status, reason = failures.most_common(1)[0][0], "no judgement succeeded"
        return {
            "latent": explanation.latent,
            "n": len(rows),
            "n_positive": sum(row["y_true"] for row in rows),
            "n_failed": len(rows) - len(judged),
            "density": self.sampler.density(explanation.latent),
            **latent_metrics([row["y_true"] for row in judged], [row["y_score"] for row in judged]),
            "status": status,
            "reason": reason,
        }

    def _explained(self) -> list[Explanation]:
        return [explanation for explanation in self.explanations if explanation.status == "ok"]

    def _drawn(self, explanation: Explanation) -> list[Trial]:
        """The trials of one latent; none where a sentence was typed in for a latent that cannot be judged."""
        latent, text = explanation.latent, explanation.text or ""
        status, reason = self.sampler.eligible(latent)
        if status != "ok":
            self._ineligible[latent] = (status, reason)
            return []
        rng = np.random.default_rng([self.seed, latent, zlib.crc32(self.scorer.name.encode())])
        trials = self.scorer.trials(self.sampler.examples(latent), text, rng)
        return [
            dataclasses.replace(trial, request=dataclasses.replace(trial.request, sampling=self.sampling))
            for trial in trials
        ]

    def _reader(self, latent: int, trial: Trial) -> Callable[[Completion], list[Judgement]]:
        key = trial.request.key(self.model)

        def rows(completion: Completion) -> list[Judgement]:
            verdicts = self.scorer.parse(trial, completion)
            return [
                Judgement(latent, self.scorer.name, example, truth, y_score, status, key)
                for example, truth, (y_score, status) in zip(trial.example_ids, trial.y_true, verdicts, strict=True)
            ]

        return rows


def result_line(folder: Path, manifest: Manifest) -> str:
    """The mean over latents, in a line; what rules without an LLM score is called lexical predictability."""
    counts, graded = manifest.counts, manifest.config["graded"]
    what = "lexical predictability, " if manifest.config["judge"] == OFFLINE else ""
    mean = "undefined" if counts["mean_auroc"] is None else f"{counts['mean_auroc']:.3f}"
    note = "" if graded else " (hard answers: equal to balanced accuracy)"
    failed = f"{sum(counts['failed'].values())} of {counts['judgements']} judgements failed"
    return f"{folder}: {what}mean AUROC {mean}{note} over {counts['scored']} of {counts['latents']} latents, {failed}"


def _counts(table: Sequence[Row], failed: Counter[str]) -> dict[str, Any]:
    defined = [row["auroc"] for row in table if row["auroc"] is not None]
    return {
        "latents": len(table),
        "scored": len(defined),
        "mean_auroc": float(np.mean(defined)) if defined else None,
        "judgements": sum(row["n"] for row in table),
        "failed": dict(sorted(failed.items())),
    }


def _job(config: ScoreConfig, source: Source, scorer: str, client: LLMClient, prompts: Prompts, variant: Any) -> Job:
    made, cached = source.manifest.config, source.cache.manifest.config
    settings = {
        "dictionary": made["dictionary"],
        "explainer": made["explainer"],
        "explainer_model": made["explainer_model"],
        "scorer": scorer,
        "judge": client.model,
        "graded": client.graded,
        "examples": made["examples"],
        "examples_per_prompt": config.examples_per_prompt,
        "sampling": plain(sampling_of(config.client)),
        "prompts": prompts.digest(f"score/{scorer}"),
    }
    identity = {
        name: settings[name] for name in ("dictionary", "explainer", "explainer_model", "scorer", "judge", "graded")
    }
    identity |= {"variant": variant, "layer": cached.get("layer"), "seed": cached.get("seed")}
    plugin = SCORERS[scorer](examples_per_prompt=config.examples_per_prompt, prompts=prompts)
    return Job(scores_folder(config.run, source.folder, scorer, client.model), source, plugin, settings, identity)


def _sources(config: ScoreConfig) -> list[Source]:
    make = EXPLAIN.format(run=config.run)
    found = {folder: read_manifest(folder, "explanations", make) for folder in explanation_folders(config.run)}
    if not found:
        raise InputError(f"{config.run} has no explanations; {make}")
    for flag, names in (
        ("explainer", [config.explainer] if config.explainer else []),
        ("dictionary", config.dictionary),
    ):
        known = sorted({manifest.config[flag] for manifest in found.values()})
        for name in names:
            if name not in known:
                raise InputError(f"no explanations of --{flag} {name} in {config.run}; there are {', '.join(known)}")
        found = {folder: manifest for folder, manifest in found.items() if not names or manifest.config[flag] in names}
    return [_source(config.run, folder, manifest) for folder, manifest in found.items()]


def _source(run: Path, folder: Path, manifest: Manifest) -> Source:
    cache = LatentCache.open(latents_folder(run, manifest.config["dictionary"]))
    if manifest.parents["latents"] != cache.manifest.fingerprint:
        raise InputError(f"{folder} explains another cache than {cache.folder}; {EXPLAIN.format(run=run)} --overwrite")
    explanations = read_explanations(folder, cache.n_latents)
    if rows_digest(explanations) != manifest.counts["rows_digest"]:
        LOG.info("%s was edited since it was made; its present sentences are scored", folder)
    return Source(folder, manifest, cache, tuple(explanations))


def _check(config: ScoreConfig) -> None:
    for name in config.scorers:
        if name not in SCORERS:
            raise InputError(f"no scorer {name!r}; there are {', '.join(SCORERS)}")
    if not config.scorers or len(set(config.scorers)) < len(config.scorers):
        raise InputError(f"--scorers takes one or more of {', '.join(SCORERS)}, each once")
    if config.examples_per_prompt < 1:
        raise InputError(f"--examples-per-prompt must be at least 1, found {config.examples_per_prompt}")


if __name__ == "__main__":
    sys.exit(run_stage(main))
