"""Reading an LLM's answer strictly: a wrong guess about what it meant would become data."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autointerp.records import REFUSED, Completion, Status

VALUES = {"0": 0, "1": 1, "false": 0, "true": 1}


def parse_answers(text: str, n: int) -> list[int] | None:
    """The n zeros and ones (or false and true) of the one list in an answer; None if it is anything else.

    Prose or a code fence may surround the list. A client has taken a model's thoughts away before.
    """
    lists = re.findall(r"\[[^\[\]]*\]", text)
    # As many brackets as lists: a nested, second or half-cut list makes the answer ambiguous.
    if len(lists) != 1 or text.count("[") != 1 or text.count("]") != 1:
        return None
    items = [item.strip().lower() for item in lists[0][1:-1].split(",")]
    if len(items) != n or any(item not in VALUES for item in items):
        return None
    return [VALUES[item] for item in items]


def verdicts(completion: Completion, n: int) -> Sequence[tuple[float | None, Status]]:
    """One (y_score, status) per judged text: graded scores where the client gives them, otherwise hard answers."""
    if completion.error is not None:
        return [(None, "error")] * n
    if completion.finish_reason in REFUSED:
        return [(None, "refused")] * n
    if completion.scores is not None:
        # A score that is no probability must not reach a metric; the comparison is false for nan.
        usable = len(completion.scores) == n and all(0 <= score <= 1 for score in completion.scores)
        return [(score, "ok") for score in completion.scores] if usable else [(None, "unparseable")] * n
    answers = parse_answers(completion.text, n)
    if answers is not None:
        return [(float(answer), "ok") for answer in answers]
    return [(None, "truncated" if completion.finish_reason == "length" else "unparseable")] * n
