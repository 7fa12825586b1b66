"""Answers as they come: the journal of an artifact that is being made.

While an artifact is made, its `.partial` folder holds a journal with one line per answered request. A process that is
killed loses at most the answers that were on their way; the next one with the same settings reads the journal and asks
only for the rest. The rows are then written in their own order, so that nothing shows how often it was interrupted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from autointerp.artifacts import Row, line, plain_row
from autointerp.reasking import answers_of
from autointerp.records import Explanation, Judgement, Usage

JOURNAL = ".answers.jsonl"
NOWHERE = (-1, -1)
"""Slot of what was spent on answers that are no longer there."""


class Journal:
    """Answers as they come, one line per request; a line cut off by a kill counts as not written.

    A slot is (latent, number of the request within the latent). Memory holds a slot's place in the file, not its rows.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._places: dict[tuple[int, int], tuple[str, bool, int]] = {}
        self._used: dict[tuple[int, int], Usage] = {}
        self.usage = Usage()
        self.n_answers = 0
        self._stream = self.path.open("a+b")
        self._read_back()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._stream.close()

    @property
    def keys(self) -> set[str]:
        """Keys of the answered requests."""
        return {key for key, failed, _ in self._places.values() if not failed}

    def __len__(self) -> int:
        return sum(not failed for _, failed, _ in self._places.values())

    def answered(self, latent: int, number: int, key: str) -> bool:
        """Whether this request has an answer; one that failed has none and may be sent again."""
        found = self._places.get((latent, number))
        return found is not None and found[0] == key and not found[1]

    def add(self, slot: tuple[int, int], key: str, rows: Sequence[Any], usage: Usage) -> None:
        """Append the rows that one answer gave (named tuples), and make sure that a kill cannot take them away."""
        place = self._stream.seek(0, 2)
        entry = _entry(slot, key, rows, usage)
        self._stream.write(entry)
        self._stream.flush()
        self._note(slot, key, any(row.status == "error" for row in rows), usage, place)

    def __contains__(self, slot: tuple[int, int]) -> bool:
        """Whether a request has rows, be it those of a failure."""
        return slot in self._places

    def rows(self, latent: int, number: int) -> list[Row]:
        """The rows of a request's last answer."""
        self._stream.seek(self._places[latent, number][2])
        return cast(list[Row], json.loads(self._stream.readline())["rows"])

    def used(self, latent: int, number: int) -> Usage:
        """What a request's last answer has cost."""
        return self._used[latent, number]

    def adopt(
        self,
        rows: Iterable[Explanation | Judgement],
        per_request: int,
        usage: Usage,
        by_latent: Mapping[int, Usage] | None = None,
    ) -> None:
        """Take over the rows of a complete artifact, of which some are to be asked again, and what they have cost.

        Only the last request about a latent has fewer rows than the others, so that equal requests which follow each
        other, as duplicate texts make them, can be told apart. A kill leaves the journal as it was, or with all rows.

        Args:
            rows: the rows, in the order of the requests.
            per_request: rows of a request.
            usage: what all of them have cost.
            by_latent: what the answers about each latent have cost, where it is known.
        """
        latents = dict(by_latent or {})
        whole = self.path.with_suffix(".adopted")
        with whole.open("wb") as stream:
            for latent, group in groupby(rows, key=lambda row: row.latent):
                answers = (list(same) for _, same in groupby(group, key=lambda row: row.request_key))
                cut = [same[i : i + per_request] for same in answers for i in range(0, len(same), per_request)]
                for number, part in enumerate(cut):
                    # Not on an answer that is to be asked again, whose cost will be that of the new one.
                    used = Usage() if part[0].status == "error" else latents.pop(latent, Usage())
                    usage = Usage(
                        usage.prompt_tokens - used.prompt_tokens, usage.completion_tokens - used.completion_tokens
                    )
                    for slot, key, answer in answers_of(latent, number, part):
                        stream.write(_entry(slot, key, answer, used))
                        used = Usage()
            stream.write(_entry(NOWHERE, "", (), usage))
        self._stream.close()
        whole.replace(self.path)
        self._stream = self.path.open("a+b")
        self._read_back()

    def costs(self) -> dict[str, int]:
        """What all answers so far have cost, for the manifest; a request that was sent again counts again."""
        tokens = {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens}
        return {"requests": self.n_answers, **tokens}

    def _read_back(self) -> None:
        self._stream.seek(0)
        end = 0
        for raw in self._stream:
            try:
                entry = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None:
                break
            latent, number = entry["slot"]
            failed = any(row["status"] == "error" for row in entry["rows"])
            self._note((latent, number), entry["key"], failed, Usage(*entry["usage"]), end)
            end += len(raw)
        self._stream.truncate(end)

    def _note(self, slot: tuple[int, int], key: str, failed: bool, usage: Usage, place: int) -> None:
        self.usage = Usage(
            self.usage.prompt_tokens + usage.prompt_tokens, self.usage.completion_tokens + usage.completion_tokens
        )
        if slot == NOWHERE:
            return
        self._places[slot] = (key, failed, place)
        self._used[slot] = usage
        self.n_answers += 1


def _entry(slot: tuple[int, int], key: str, rows: Sequence[Any], usage: Usage) -> bytes:
    used = [usage.prompt_tokens, usage.completion_tokens]
    return line({"slot": list(slot), "key": key, "usage": used, "rows": [plain_row(row) for row in rows]}).encode()


def asked_keys(folder: Path) -> set[str]:
    """Keys of the requests that an interrupted process has got answers to."""
    if not (folder / JOURNAL).exists():
        return set()
    with contextlib.closing(Journal(folder)) as journal:
        return journal.keys
