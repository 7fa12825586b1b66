"""Detection: does the latent fire somewhere in this text?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autointerp.plugins import Ability, Atom
from autointerp.prompting import Prompts
from autointerp.records import Completion, LatentExamples, Trial, Verdict
from autointerp.scorers.answers import verdicts


class DetectionScorer:
    """Shows activating windows and their non-activating counterparts, mixed, without any mark."""

    atom: Atom = "text"
    needs: Ability | None = None

    def __init__(self, examples_per_prompt: int, prompts: Prompts, name: str = "detection") -> None:
        """Ask by the templates of this name, of which there is one for each protocol."""
        self.name = name
        self.task = f"score/{name}"
        self.per_request = examples_per_prompt
        self.prompts = prompts

    def trials(self, examples: LatentExamples, explanation: str, rng: np.random.Generator) -> list[Trial]:
        """All windows of both kinds in random order, a few in a question."""
        windows = [*examples.test, *examples.non_activating]
        truths = [1] * len(examples.test) + [0] * len(examples.non_activating)
        order = rng.permutation(len(windows)).tolist()
        trials = []
        for start in range(0, len(order), self.per_request):
            part = order[start : start + self.per_request]
            context = {"explanation": explanation, "texts": [windows[i].text for i in part]}
            request = self.prompts.request(self.task, context)
            ids, tokens = tuple(windows[i].id for i in part), tuple(windows[i].tokens for i in part)
            trials.append(Trial(request, ids, tuple(truths[i] for i in part), tokens))
        return trials

    def parse(self, trial: Trial, completion: Completion) -> Sequence[Verdict]:
        """One verdict per text."""
        return verdicts(completion, len(trial.y_true))
