"""The shuffle buffer: mixes a stream of vectors, and can be stopped at any batch and set up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

Rows = tuple[Tensor, ...]
"""One tensor [token, width] per hookpoint, rows aligned between them."""


class ShuffleBuffer:
    """A buffer of fixed size: it is filled, a random half is given away in batches, and it is filled again.

    At the end everything is given away, so every vector comes exactly once; only a last batch may be smaller.

    Args:
        batch_tokens: vectors in a batch.
        buffer_tokens: vectors that are mixed; at least two batches.
        generator: draws the order.
    """

    def __init__(self, batch_tokens: int, buffer_tokens: int, generator: torch.Generator) -> None:
        self.taken = 0
        """Parts of the stream that were put in."""
        self._batch = batch_tokens
        self._size = max(buffer_tokens, 2 * batch_tokens)
        self._generator = generator
        self._rows: Rows = ()
        self._ready = 0

    def batches(self, source: Iterator[Rows]) -> Iterator[Rows]:
        """The mixed stream, in batches [batch_tokens, width] per hookpoint.

        Args:
            source: what the stream gives after the first `taken` parts.
        """
        while True:
            while self._ready:
                n = min(self._batch, self._ready)
                batch = tuple(x[:n] for x in self._rows)
                # Before the batch goes out: whoever holds it may ask for the state.
                self._rows, self._ready = tuple(x[n:] for x in self._rows), self._ready - n
                yield batch
            if not self._fill(source):
                return

    def _fill(self, source: Iterator[Rows]) -> bool:
        """Fill up and mix; whether there is anything to give away."""
        parts = [self._rows] if self._rows else []
        held = len(self._rows[0]) if self._rows else 0
        while held < self._size and (part := next(source, None)) is not None:
            self.taken += 1
            parts.append(part)
            held += len(part[0])
        if not held:
            return False
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        order = torch.randperm(held, generator=self._generator).to(columns[0].device)
        self._rows = tuple(x[order] for x in columns)
        self._ready = held // 2 // self._batch * self._batch if held >= self._size else held
        return True

    def state_dict(self, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """What is held, by hookpoint, and under "order" what comes next; tensors are shared with the buffer."""
        counts = torch.tensor([self.taken, self._ready])
        held = {name: {"rows": x} for name, x in zip(names, self._rows, strict=True)}
        return {**held, "order": {"counts": counts, "generator": self._generator.get_state()}}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], names: Sequence[str]) -> None:
        """Set up again what `state_dict` gave, for some of its hookpoints."""
        self._rows = tuple(state[name]["rows"] for name in names)
        self.taken, self._ready = state["order"]["counts"].tolist()
        self._generator.set_state(state["order"]["generator"])
