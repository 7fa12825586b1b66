"""From explanations to the questions about them, and from the answers to judgements and lines of a table."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from autointerp.artifacts import Row
from autointerp.examples import ExampleSampler
from autointerp.grading import LISTS, graded, list_schema
from autointerp.journal import Journal
from autointerp.judging import Question
from autointerp.nulls import RULES, SHUFFLED, other_of_like_density
from autointerp.records import Completion, Explanation, Judgement, Sampling, Scorer, Trial

LOG = logging.getLogger(__name__)


class Judging:
    """One scorer's trials about one folder of explanations.

    The trials of a null are those of the real score: the same windows in the same order.
    """

    def __init__(self, scorer: Scorer, sampler: ExampleSampler, explanations: Sequence[Explanation], null: str) -> None:
        """Take the explanations as they are, or as a null wants them.

        Args:
            scorer: what to ask.
            sampler: which windows are shown.
            explanations: one a latent, with or without text.
            null: name of a null, empty for the real score.
        """
        self.scorer = scorer
        self.null = null
        self.seed = sampler.config.seed
        self.sampler = sampler
        self.failed: Counter[str] = Counter()
        self.n_skipped: Counter[int] = Counter()
        self._explained = [explanation for explanation in explanations if explanation.status == "ok"]
        self._ineligible: dict[int, tuple[str, str]] = {}
        self._sentences = self._dealt() if null == SHUFFLED else {e.latent: e.text or "" for e in self._explained}
        self._n_trials: dict[int, int] = {}

    def total(self, journal: Journal) -> int:
        """About how many requests are to be sent: as many for every latent as for the first."""
        first = next((n for n in (len(self._drawn(e.latent)) for e in self._explained) if n), 0)
        return max(first * len(self._explained) - len(journal), 0)

    def questions(self, model: str, sampling: Sampling) -> Iterator[Question]:
        """The scorer's questions about each explained latent; a null that asks no judge has none."""
        for explanation in self._explained if self.null not in RULES else ():
            latent = explanation.latent
            trials = self._drawn(latent)
            self._n_trials[latent] = len(trials)
            for number, trial in enumerate(trials):
                listed = trial.request.task in LISTS
                schema = list_schema(len(trial.y_true)) if listed else trial.request.schema
                request = dataclasses.replace(trial.request, sampling=sampling, schema=schema)
                yield Question((latent, number), request, self._reader(latent, trial, request.key(model)))

    def rows(self, latent: int, journal: Journal) -> list[Row]:
        """All judgements about a latent, in the order of the questions."""
        if self.null in RULES:
            return self._ruled(latent)
        return [row for number in range(self._n_trials.get(latent, 0)) for row in journal.rows(latent, number)]

    def used(self, latent: int, journal: Journal) -> Row:
        """Requests about a latent, and the tokens of their answers and prompts."""
        asked = range(0 if self.null in RULES else self._n_trials.get(latent, 0))
        used = [journal.used(latent, number) for number in asked]
        return {
            "requests": len(used),
            "prompt_tokens": sum(one.prompt_tokens for one in used),
            "completion_tokens": sum(one.completion_tokens for one in used),
        }

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
            "n_skipped": self.n_skipped[explanation.latent],
            "density": self.sampler.density(explanation.latent),
            **latent_metrics([row["y_true"] for row in judged], [row["y_score"] for row in judged]),
            "status": status,
            "reason": reason,
        }

    def _dealt(self) -> dict[int, str]:
        """Each explained latent with the sentence of another one of like density."""
        latents = [explanation.latent for explanation in self._explained]
        if len(latents) < 2:
            LOG.warning("no sentences can be shuffled: %d latents are explained, two are needed", len(latents))
            self._ineligible = dict.fromkeys(latents, ("error", "no other latent has a sentence"))
            return {}
        rng = np.random.default_rng([self.seed, zlib.crc32(SHUFFLED.encode())])
        others = other_of_like_density([self.sampler.density(latent) for latent in latents], rng)
        return {latent: self._explained[i].text or "" for latent, i in zip(latents, others, strict=True)}

    def _drawn(self, latent: int) -> list[Trial]:
        """The trials of one latent; none where a sentence was typed in for a latent that cannot be judged."""
        status, reason = self.sampler.eligible(latent)
        if status != "ok":
            self._ineligible[latent] = (status, reason)
        if status != "ok" or latent not in self._sentences:
            return []
        examples = self.sampler.examples(latent)
        rng = np.random.default_rng([self.seed, latent, zlib.crc32(self.scorer.name.encode())])
        trials = self.scorer.trials(examples, self._sentences[latent], rng)
        asked = {example for trial in trials for example in trial.example_ids}
        self.n_skipped[latent] = sum(example.id not in asked for example in examples.test)
        return trials

    def _ruled(self, latent: int) -> list[Row]:
        """The judgements of a null that asks no judge."""
        trials = self._drawn(latent) if latent in self._sentences else []
        # A latent without trials may be one that never fires, and have no heaviest token.
        rule, token = RULES[self.null], self.sampler.heaviest_token(latent) if trials else ""
        return [
            vars(Judgement(latent, self.scorer.name, example, y, score, "ok", ""))
            for trial in trials
            for example, y, score in zip(trial.example_ids, trial.y_true, rule(trial, token), strict=True)
        ]

    def _reader(self, latent: int, trial: Trial, key: str) -> Callable[[Completion], list[Judgement]]:
        def rows(completion: Completion) -> list[Judgement]:
            if trial.request.task in LISTS:
                completion = graded(completion, len(trial.y_true))
            verdicts = self.scorer.parse(trial, completion)
            return [
                Judgement(latent, self.scorer.name, example, truth, y_score, status, key)
                for example, truth, (y_score, status) in zip(trial.example_ids, trial.y_true, verdicts, strict=True)
            ]

        return rows
