"""Asks an LLM what the strongest excerpts of a latent have in common."""

from __future__ import annotations

import re

from autointerp.prompting import MARK_ABOVE, Prompts, highlighted, marks_for
from autointerp.records import REFUSED, Completion, Example, LatentExamples, Request, Status

TASK = "explain/max_activating"
STEPS = 10
"""The strongest activation shown; others are whole numbers below it."""
LONGEST = 1000
"""Characters of an explanation; more is no sentence, and would be paid for in every question to the judge."""


class MaxActivatingExplainer:
    """Shows the strongest windows with their strongest tokens marked and reads the line `EXPLANATION: ...`."""

    name = "max_activating"

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts

    def request(self, examples: LatentExamples) -> Request:
        """The question: every window's text with marks, and the marked tokens with strengths from 0 to 10."""
        peak = max(example.peak for example in examples.top)
        marks = marks_for(example.text for example in examples.top)
        shown = [self._shown(example, peak, marks) for example in examples.top]
        return self.prompts.request(TASK, {"opening": marks[0], "closing": marks[1], "examples": shown})

    def parse(self, completion: Completion) -> tuple[str | None, Status]:
        """The sentence after the last `EXPLANATION:`, without quotes and emphasis."""
        if completion.error is not None:
            return None, "error"
        if completion.finish_reason in REFUSED:
            return None, "refused"
        # A sentence that was cut off would be scored for what it does not say.
        if completion.finish_reason == "length":
            return None, "truncated"
        found = re.findall(r"^[\s*#_>-]*explanation[\s*_]*:(.*)", completion.text, re.IGNORECASE | re.MULTILINE)
        text = " ".join(found[-1].split()).strip("*_` ") if found else ""
        if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
            text = text[1:-1].strip()
        # An answer that repeats the template's placeholder says nothing.
        if not re.search(r"\w", text) or text.startswith("<one sentence") or len(text) > LONGEST:
            return None, "unparseable"
        return text, "ok"

    def _shown(self, example: Example, peak: float, marks: tuple[str, str]) -> dict[str, object]:
        marked = [a > MARK_ABOVE * example.peak for a in example.activations]
        strengths = [
            (token, round(STEPS * activation / peak))
            for token, activation, mark in zip(example.tokens, example.activations, marked, strict=True)
            if mark
        ]
        return {"text": highlighted(example.tokens, marked, marks), "activations": strengths}
