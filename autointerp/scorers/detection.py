"""Detection: does the latent fire somewhere in this text?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.prompting import Prompts
from autointerp.records import Completion, LatentExamples, Status, Trial
from autointerp.scorers.answers import verdicts


class DetectionScorer:
    """Shows activating windows and their non-activating counterparts, mixed, without any mark."""

    name = "detection"

    def __init__(self, examples_per_prompt: int, prompts: Prompts) -> None:
        self.examples_per_prompt = examples_per_prompt
        self.prompts = prompts

    def trials(self, examples: LatentExamples, explanation: str, rng: np.random.Generator) -> list[Trial]:
        """All windows of both kinds in random order, a few in a question."""
        windows = [*examples.test, *examples.non_activating]
        truths = [1] * len(examples.test) + [0] * len(examples.non_activating)
        order = rng.permutation(len(windows)).tolist()
        trials = []
        for start in range(0, len(order), self.examples_per_prompt):
            part = order[start : start + self.examples_per_prompt]
            context = {"explanation": explanation, "texts": [windows[i].text for i in part]}
            request = self.prompts.request("score/detection", context)
            ids, tokens = tuple(windows[i].id for i in part), tuple(windows[i].tokens for i in part)
            trials.append(Trial(request, ids, tuple(truths[i] for i in part), tokens))
        return trials

    def parse(self, trial: Trial, completion: Completion) -> Sequence[tuple[float | None, Status]]:
        """One (y_score, status) per text."""
        return verdicts(completion, len(trial.y_true))
