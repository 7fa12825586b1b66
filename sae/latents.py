"""The latent cache: which latent fires on which token, sparse by latent, with the texts. Needs no torch.

Layout of a cache folder (`docs/artifacts.md` has an example of each):

    tokens.safetensors      context_offsets i64 [n_contexts + 1], token_ids u32 [n_tokens],
                            context_document u32 [n_contexts], context_start u32 [n_contexts] (place in the document),
                            context_split u8 [n_contexts] (0 explain, 1 score)
    entries.safetensors     offsets i64 [n_latents + 1], token_index u32 [nnz], activation f16 [nnz]
    neighbours.safetensors  latent u32 [n_latents, n_neighbours], cosine f32 [n_latents, n_neighbours]
    documents.json          the documents' names
    tokenizer.json          the subject's tokenizer
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from sae.artifacts import Manifest, read_manifest
from sae.errors import InputError
from sae.mapped import DTYPES, Array, create_tensors, map_tensors, release

Split = Literal["explain", "score"]
SPLITS: tuple[Split, ...] = ("explain", "score")
TOKEN_ARRAYS = ("token_ids", "context_offsets", "context_document", "context_start", "context_split")
ENTRIES = "entries.safetensors"
COLUMNS = {"token_index": "U32", "activation": "F16"}
"""What is known of an entry, beside its latent; wide types first."""
MERGE_ENTRIES = 4_000_000
MAX_ACTIVATION = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class LatentCache:
    """Who fires where. Arrays are memory-mapped; token indices count over all cached tokens.

    The first token of each context never carries an activation: it is an attention sink, left out everywhere.
    """

    folder: Path
    manifest: Manifest
    token_ids: Array
    context_offsets: Array
    context_document: Array
    context_start: Array
    context_split: Array
    offsets: Array
    token_index: Array
    activation: Array

    @classmethod
    def open(cls, folder: Path) -> LatentCache:
        """Open a complete cache.

        Raises:
            InputError: it is missing, half-written or damaged.
        """
        mend = f"make it with python -m sae.cache --run {folder.parent.parent} ..."
        manifest = read_manifest(folder, "latents", mend)
        try:
            tokens, entries = map_tensors(folder / "tokens.safetensors"), map_tensors(folder / ENTRIES)
            cache = cls(folder, manifest, **{name: tokens[name] for name in TOKEN_ARRAYS}, **entries)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder} is damaged ({error}); remove it and {mend}") from None
        if cache.context_offsets[-1] != len(cache.token_ids) or cache.offsets[-1] != len(cache.token_index):
            raise InputError(f"{folder} is damaged (its parts do not fit each other); remove it and {mend}")
        return cache

    @property
    def n_latents(self) -> int:
        """Latents of the dictionary, dead ones included."""
        return len(self.offsets) - 1

    @property
    def n_tokens(self) -> int:
        """Cached tokens, first positions included."""
        return len(self.token_ids)

    @property
    def n_contexts(self) -> int:
        """Cached contexts of both splits."""
        return len(self.context_split)

    @property
    def tokenizer_file(self) -> Path:
        """The subject's tokenizer, for the `tokenizers` library."""
        return self.folder / "tokenizer.json"

    def documents(self) -> list[str]:
        """Names of the documents, by `context_document`."""
        return cast(list[str], json.loads((self.folder / "documents.json").read_text(encoding="utf-8")))

    def neighbours(self) -> Array:
        """Latents with the most similar decoder directions, nearest first, u32 [n_latents, n_neighbours]."""
        return map_tensors(self.folder / "neighbours.safetensors")["latent"]

    def entries(self, latent: int) -> tuple[Array, Array]:
        """Where a latent fires: ascending token indices i64 [n], activations f32 [n]."""
        start, stop = int(self.offsets[latent]), int(self.offsets[latent + 1])
        return self.token_index[start:stop].astype(np.int64), self.activation[start:stop].astype(np.float32)

    def contexts_of(self, token_index: Array) -> Array:
        """The context that each token belongs to, i64."""
        return np.searchsorted(self.context_offsets, token_index, side="right") - 1

    def split_contexts(self, split: Split) -> Array:
        """Indices of the contexts of a split, i64."""
        return np.flatnonzero(self.context_split == SPLITS.index(split))

    def usable_tokens(self, split: Split) -> int:
        """Tokens of a split on which a latent could fire: all but the first of each context."""
        contexts = self.split_contexts(split)
        lengths = self.context_offsets[contexts + 1] - self.context_offsets[contexts]
        return int((lengths - 1).sum())


def in_half(activation: Array) -> Array:
    """Activations as a cache holds them, float16."""
    half: Array = np.minimum(activation, MAX_ACTIVATION).astype(np.float16)
    return half


def by_latent(latent: Array) -> Array:
    """The stable order of latents, uint32 [n]. numpy sorts 16 bits at a time in a fifth of the time of 32."""
    order: Array = np.argsort(latent.astype(np.uint16), kind="stable")
    upper = (latent >> 16).astype(np.uint16)
    if upper.any():
        order = order[np.argsort(upper[order], kind="stable")]
    return order


CONTEXT_COLUMNS: dict[str, Any] = {
    "length": np.int64,
    "context_document": np.uint32,
    "context_start": np.uint32,
    "context_split": np.uint8,
}
"""What is kept of each context."""


class TextWriter:
    """The cached contexts, numbered as they come. Tokens go to a scratch file; memory grows with the contexts alone."""

    def __init__(self, scratch: Path) -> None:
        self.documents: list[str] = []
        # Not a small array for each batch: they would lie between large ones and keep what those leave in pieces.
        self._columns = {name: bytearray() for name in CONTEXT_COLUMNS}
        self._scratch = scratch
        self._stream = scratch.open("wb")
        self._n_tokens = 0
        self._split = 0

    def begin_split(self, split: int, documents: Sequence[str]) -> int:
        """Go on with the contexts of another split; returns the number of its first document."""
        self._split, first = split, len(self.documents)
        self.documents += documents
        return first

    def add(self, ids: Array, lengths: Array, documents: Array, starts: Array) -> Array:
        """Add contexts, padded on the right.

        Args:
            ids: [context, position].
            lengths: [context].
            documents: number of each context's document, [context].
            starts: place of its first token in the document, [context].

        Returns:
            The number of each token, int64 [context, position], 0 on padding; ascending within the splits.
        """
        inside = np.arange(ids.shape[1]) < lengths[:, None]
        self._stream.write(ids[inside].astype(np.uint32).tobytes())
        columns = (lengths, documents, starts, np.full(len(lengths), self._split))
        for (name, dtype), values in zip(CONTEXT_COLUMNS.items(), columns, strict=True):
            self._columns[name] += values.astype(dtype).tobytes()
        numbers: Array = np.zeros(ids.shape, np.int64)
        numbers[inside] = np.arange(self._n_tokens, self._n_tokens + int(lengths.sum()))
        self._n_tokens += int(lengths.sum())
        return numbers

    def arrays(self) -> dict[str, Array]:
        """The arrays of tokens.safetensors; the tokens stay on disk."""
        self._stream.close()
        whole: dict[str, Array] = {
            name: np.frombuffer(column, CONTEXT_COLUMNS[name]) for name, column in self._columns.items()
        }
        offsets = np.concatenate([[0], np.cumsum(whole.pop("length"))]).astype(np.int64)
        return {"context_offsets": offsets, "token_ids": np.memmap(self._scratch, np.uint32, "r"), **whole}


class EntryWriter:
    """Collects (token, latent, activation) triples in token order and merges them into CSR by latent on disk.

    Triples are spilled to raw files as they come; the merge walks them in pieces of fixed size, so memory does not grow
    with the number of tokens.

    Args:
        folder: of the cache.
        n_latents: of the dictionary.
        name: the file that is written.
        columns: what is known of an entry, with its dtype (a key of `DTYPES`); wide types first.
    """

    def __init__(self, folder: Path, n_latents: int, name: str = ENTRIES, columns: Mapping[str, str] = COLUMNS) -> None:
        self.path = folder / name
        self.counts = np.zeros(n_latents, np.int64)
        self._columns = {"latent": "U32", **columns}
        self._paths = {column: folder / f".spill.{name}.{column}" for column in self._columns}
        self._streams = {column: path.open("wb") for column, path in self._paths.items()}

    def add(self, token_index: Array, latent: Array, activation: Array, **others: Array) -> None:
        """Add entries, all [n]; token indices must not fall from one call to the next.

        An activation that half precision rounds to zero is no firing and is left out. `others` are further columns.
        """
        half = in_half(activation)
        whole = {"token_index": token_index, "latent": latent, "activation": half, **others}
        # Nearly always all of them.
        if not (fires := half > 0).all():
            whole = {column: values[fires] for column, values in whole.items()}
        self.counts += np.bincount(whole["latent"], minlength=len(self.counts))
        for column, stream in self._streams.items():
            stream.write(np.ascontiguousarray(whole[column], DTYPES[self._columns[column]]).tobytes())

    def finish(self) -> int:
        """Write the file, remove the spill files, and return the number of entries."""
        for stream in self._streams.values():
            stream.close()
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        total = int(offsets[-1])
        dtypes = {column: dtype for column, dtype in self._columns.items() if column != "latent"}
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"offsets": ("I64", offsets.shape)}
        out = create_tensors(self.path, {**shapes, **{column: (dtype, (total,)) for column, dtype in dtypes.items()}})
        out["offsets"][...] = offsets
        cursor = offsets[:-1].copy()
        with contextlib.ExitStack() as stack:
            spilled = {column: stack.enter_context(path.open("rb")) for column, path in self._paths.items()}

            def piece(column: str) -> Array:
                kind = np.dtype(DTYPES[self._columns[column]])
                return np.frombuffer(spilled[column].read(kind.itemsize * MERGE_ENTRIES), kind)

            for _ in range(0, total, MERGE_ENTRIES):
                latent = piece("latent")
                order = by_latent(latent)
                counts = np.bincount(latent, minlength=len(cursor))
                first = np.repeat(cursor - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
                place = first + np.arange(len(latent))
                for column in dtypes:
                    out[column][place] = piece(column)[order]
                cursor += counts
                release(out.values())
        for path in self._paths.values():
            path.unlink()
        return total
