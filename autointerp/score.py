"""`python -m autointerp.score`: explanations of a run -> judgements and scores."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autointerp.artifacts import (
    JUDGEMENTS,
    SCORES,
    Row,
    line,
    read_judgements,
    scores_folder,
    usage_by_latent,
    usage_of,
    write_scores,
)
from autointerp.clients import judge_samplings, make_client
from autointerp.config import OFFLINE, ScoreConfig
from autointerp.estimate import estimate_jobs
from autointerp.jobs import make_missing
from autointerp.journal import Journal
from autointerp.judging import Question, ask_missing
from autointerp.nulls import NULLS, RULES
from autointerp.prompting import Prompts
from autointerp.records import LLMClient, Sampling, Scorer
from autointerp.scorers import SCORERS
from autointerp.sources import Source, find_sources
from autointerp.trials import Judging
from sae.artifacts import Manifest, read_manifest, writing
from sae.cli import parse, run_stage
from sae.errors import InputError
from sae.runs import read_run

KIND = "scores"
REAL = ""
"""Where the name of a null would stand: these are the real scores."""


@dataclass(frozen=True)
class Job:
    """One scorer's scores of one folder of explanations, or a null of them: what to make and what determines it."""

    folder: Path
    source: Source
    scorer: Scorer
    settings: dict[str, Any]
    identity: Row
    """The columns of scores.csv that are the same for all latents."""

    @property
    def parents(self) -> dict[str, str]:
        """What the scores are made from."""
        return self.source.parents


def main(argv: Sequence[str] | None = None) -> None:
    """The stage: plan, check that nothing stands in the way, then make one artifact after the other."""
    config = parse(ScoreConfig, argv, "python -m autointerp.score")
    _check(config)
    variant = read_run(config.run).get("variant")
    prompts = Prompts(config.prompts)
    client = make_client(config.client)
    sources = find_sources(config)
    samplings = dict(
        zip(config.scorers, judge_samplings(config.client, client, config.scorers, config.run), strict=True)
    )
    jobs = [job for source in sources for job in _jobs(config, source, client, prompts, samplings, variant)]

    if config.client.estimate:
        for text in estimate_jobs(jobs, KIND, config.overwrite, client, config.client, _asked):
            print(text)
        return

    def make(job: Job, earlier: Manifest | None) -> Manifest:
        return score_explanations(job, client, config, earlier)

    make_missing(jobs, KIND, config, make, result_line)


def score_explanations(job: Job, client: LLMClient, config: ScoreConfig, earlier: Manifest | None = None) -> Manifest:
    """Make the scores of one folder of explanations, or go on where an interrupted process stopped.

    Args:
        job: the artifact.
        client: who judges.
        config: how many requests at a time.
        earlier: manifest of a complete artifact whose failed requests are to be asked again.
    """
    source, null = job.source, job.settings["null"]
    judging = Judging(job.scorer, source.sampler, source.explanations, null)
    with writing(job.folder, KIND, job.settings, job.parents, keep=True) as writer, Journal(writer.partial) as journal:
        if earlier is not None and not journal.n_answers:
            by_latent = usage_by_latent(job.folder)
            journal.adopt(read_judgements(job.folder), config.examples_per_prompt, usage_of(earlier), by_latent)
        if null not in RULES:
            if earlier is None and not journal.n_answers:
                _adopt_replaced(job, journal)
            label = f"{job.settings['dictionary']} {job.scorer.name} {null}".strip()
            label += " (lexical predictability)" if client.model == OFFLINE else ""
            questions = judging.questions(client.model, Sampling(**job.settings["sampling"]))
            ask_missing(questions, journal, client, config.client.concurrency, label, judging.total(journal))
        table = []
        with (writer.partial / JUDGEMENTS).open("w", encoding="utf-8") as stream:
            for explanation in source.explanations:
                rows = judging.rows(explanation.latent, journal)
                stream.writelines(line(row) for row in rows)
                used = judging.used(explanation.latent, journal)
                table.append({**job.identity, **judging.summary(explanation, rows), **used})
        write_scores(writer.partial / SCORES, table)
        counts = {**_counts(table, judging.failed), **journal.costs()}
        return writer.finish(counts)


def _asked(job: Job) -> Iterator[Question]:
    """The questions of one job."""
    judging = Judging(job.scorer, job.source.sampler, job.source.explanations, job.settings["null"])
    return judging.questions(job.settings["judge"], Sampling(**job.settings["sampling"]))


def _adopt_replaced(job: Job, journal: Journal) -> None:
    """Take over the answers of the scores that are to be replaced, if they judged the same windows of the same cache.

    They count where the question is still the same; where a sentence has been edited it is another one.
    """
    with contextlib.suppress(InputError):
        old = read_manifest(job.folder, KIND, "")
        same = ("examples", "examples_per_prompt", "sampling")
        if old.parents.get("latents") != job.parents["latents"] or any(
            old.config.get(name) != job.settings[name] for name in same
        ):
            return
        used = usage_by_latent(job.folder)
        journal.adopt(read_judgements(job.folder), job.settings["examples_per_prompt"], usage_of(old), used)


def result_line(folder: Path, manifest: Manifest) -> str:
    """The mean over latents, in a line; what rules without an LLM score is called lexical predictability."""
    counts, config = manifest.counts, manifest.config
    what = "lexical predictability, " if config["judge"] == OFFLINE else ""
    what += f"null {config['null']}, " if config["null"] else ""
    mean = "undefined" if counts["mean_auroc"] is None else f"{counts['mean_auroc']:.3f}"
    # A rule's score need not be hard: an echo of highlights is a share.
    note = "" if config["graded"] or config["null"] in RULES else " (hard answers: equal to balanced accuracy)"
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
        "windows_skipped": sum(row["n_skipped"] for row in table),
    }


def _jobs(
    config: ScoreConfig,
    source: Source,
    client: LLMClient,
    prompts: Prompts,
    samplings: Mapping[str, Sampling],
    variant: Any,
) -> Iterator[Job]:
    made, cached = source.manifest.config, source.cache.manifest.config
    own = {"variant": variant, "layer": cached.get("layer"), "seed": cached.get("seed")}
    for scorer, null in itertools.product(config.scorers, (REAL, *config.nulls)):
        settings = {
            "dictionary": made["dictionary"],
            "explainer": made["explainer"],
            "explainer_model": made["explainer_model"],
            "scorer": scorer,
            "judge": client.model,
            "null": null,
            "graded": (client.graded or samplings[scorer].top_logprobs > 0) and null not in RULES,
            "examples": made["examples"],
            "examples_per_prompt": config.examples_per_prompt,
            "sampling": samplings[scorer].settings,
            "prompts": prompts.digest(f"score/{scorer}"),
        }
        named = ("dictionary", "explainer", "explainer_model", "scorer", "judge", "null", "graded")
        identity = {name: settings[name] for name in named} | own
        plugin = SCORERS[scorer](examples_per_prompt=config.examples_per_prompt, prompts=prompts)
        folder = scores_folder(config.run, source.folder, scorer, client.model, null)
        yield Job(folder, source, plugin, settings, identity)


def _check(config: ScoreConfig) -> None:
    for flag, names, known in (("scorer", config.scorers, SCORERS), ("null", config.nulls, NULLS)):
        for name in names:
            if name not in known:
                raise InputError(f"no {flag} {name!r}; there are {', '.join(known)}")
        if len(set(names)) < len(names):
            raise InputError(f"--{flag}s takes any of {', '.join(known)}, each once")
    if not config.scorers:
        raise InputError(f"--scorers takes one or more of {', '.join(SCORERS)}, each once")
    if config.examples_per_prompt < 1:
        raise InputError(f"--examples-per-prompt must be at least 1, found {config.examples_per_prompt}")


if __name__ == "__main__":
    sys.exit(run_stage(main))
