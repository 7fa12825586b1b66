"""How many tokens a server says that it took."""

from __future__ import annotations

import math
from typing import Any

from autointerp.records import Usage

MOST = 10**12
"""Of one answer. What is beyond is no count, and a store could not hold it."""


def usage_of_answer(sent: Any) -> Usage:
    """Tokens of prompt and answer; a count that is none (a word, below zero, not finite) is as good as unsaid.

    The answer beside it is paid for and must not be lost.
    """
    counts = sent if isinstance(sent, dict) else {}
    return Usage(_count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens")))


def _count(said: Any) -> int:
    known = isinstance(said, (int, float)) and math.isfinite(said) and 0 <= said <= MOST
    return int(said) if known else 0
