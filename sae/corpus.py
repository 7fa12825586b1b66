"""Named documents from a file, a `datasets` name or the embedded corpus; near-duplicates together; splits by group."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import combinations, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sae import pydocs, texts
from sae.artifacts import write_json
from sae.config import CorpusConfig
from sae.errors import InputError
from sae.pydocs import Document

UInt64Array = npt.NDArray[np.uint64]

PYDOCS_SPLITS = {"subject": 0.5, "sae": 0.25, "explain": 0.125, "score": 0.125}
SPLITS = {"sae": 0.5, "explain": 0.25, "score": 0.25}
WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Corpus:
    """A stream of documents in a fixed order, and the rule that gives each group of them to one split."""

    name: str
    fingerprint: str
    splits: Mapping[str, float]
    stream: Callable[[], Iterator[Document]]

    def documents(self, split: str) -> Iterator[Document]:
        """Documents of a split, near-duplicates of other groups' documents counted to those groups."""
        if split not in self.splits:
            found = ", ".join(self.splits)
            raise InputError(f"the corpus {self.name} has the splits {found}, not {split}: name one of these")
        return (document for document in self.stream() if split_of(document.group, self.splits) == split)


def split_of(group: str, splits: Mapping[str, float]) -> str:
    """Split of a group, through a hash that no version of Python or of this package changes."""
    # The prefix keeps the draw independent of the hash that orders pydocs.
    uniform = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big") / 2**64
    for split, fraction in splits.items():
        uniform -= fraction
        if uniform < 0:
            return split
    return list(splits)[-1]  # the fractions' rounding error


@lru_cache(maxsize=2**17)
def word_hash(word: str) -> int:
    """Hash of a word; remembered, because most words come again and again."""
    return zlib.crc32(word.encode())


def word_shingles(text: str, length: int) -> UInt64Array:
    """Distinct hashes of the runs of `length` words; of the whole text if it has fewer words than that."""
    words = np.array(list(map(word_hash, WORDS.findall(text.lower()))), dtype=np.uint64)
    length = min(length, len(words))
    if length == 0:
        return np.empty(0, dtype=np.uint64)
    n = len(words) - length + 1
    hashed = np.zeros(n, dtype=np.uint64)
    for offset in range(length):  # a polynomial modulo 2^64
        hashed = hashed * np.uint64(0x100000001B3) + words[offset : offset + n]
    hashed ^= hashed >> np.uint64(29)  # mixed, because the sample below looks at the low bits
    hashed *= np.uint64(0xBF58476D1CE4E5B9)
    hashed ^= hashed >> np.uint64(32)
    return np.unique(hashed)


class NearDuplicates:
    """Drops exact duplicates, and moves a document into the group that at least half of its 8-word shingles come from.

    Each shingle belongs to the group of the document that had it first, so one pass over the stream decides, and a
    prefix never changes when more is read. Documents move; groups are never merged, or a few template texts would end
    up holding the corpus together. When the table of shingles is full, half of them, chosen by their hash, are
    forgotten; the hashes of the texts themselves, one number a document, are all kept.
    """

    def __init__(self, capacity: int = 4_000_000, recent: int = 100_000) -> None:
        self.capacity = capacity
        self.recent_size = recent
        self.mask = np.uint64(0)
        self.texts: set[int] = set()
        self.groups: list[str] = []
        self.group_numbers: dict[str, int] = {}
        self.shingles: UInt64Array = np.empty(0, dtype=np.uint64)
        self.owners: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self.recent: dict[int, int] = {}

    def __call__(self, document: Document) -> Document | None:
        """The document in its final group, or None for an exact duplicate (white space aside)."""
        normalised = " ".join(document.text.split())
        text = int.from_bytes(hashlib.sha256(normalised.encode()).digest()[:8], "big")
        if not normalised or text in self.texts:
            return None
        self.texts.add(text)
        shingles = word_shingles(normalised, 8)
        shingles = shingles[(shingles & self.mask) == 0]
        owners = self._owners(shingles)
        known = owners[owners >= 0]
        if len(known) * 2 >= len(shingles) > 0:
            groups, counts = np.unique(known, return_counts=True)
            best = int(np.argmax(counts))
            if counts[best] * 2 >= len(shingles):
                document = replace(document, group=self.groups[groups[best]])
        number = self.group_numbers.setdefault(document.group, len(self.groups))
        if number == len(self.groups):
            self.groups.append(document.group)
        self.recent.update(dict.fromkeys(shingles[owners < 0].tolist(), number))
        if len(self.recent) >= self.recent_size:
            self._merge()
        return document

    def _owners(self, shingles: UInt64Array) -> npt.NDArray[np.int32]:
        """Group number that each shingle belongs to, -1 for one not seen before."""
        owners = np.fromiter(map(self.recent.get, shingles.tolist(), repeat(-1)), np.int32, len(shingles))
        if len(self.shingles):
            places = np.minimum(np.searchsorted(self.shingles, shingles), len(self.shingles) - 1)
            return np.where(self.shingles[places] == shingles, self.owners[places], owners)
        return owners

    def _merge(self) -> None:
        shingles = np.fromiter(self.recent.keys(), np.uint64, len(self.recent))
        owners = np.fromiter(self.recent.values(), np.int32, len(self.recent))
        order = np.argsort(shingles)
        places = np.searchsorted(self.shingles, shingles[order])
        self.shingles = np.insert(self.shingles, places, shingles[order])
        self.owners = np.insert(self.owners, places, owners[order])
        self.recent = {}
        while len(self.shingles) > self.capacity:
            self.mask = self.mask * np.uint64(2) + np.uint64(1)
            kept = (self.shingles & self.mask) == 0
            self.shingles, self.owners = self.shingles[kept], self.owners[kept]


def overlap(corpus: Corpus, n_documents: int = 10_000, length: int = 13) -> dict[str, Any]:
    """How much of one split can be read in another: what near-duplicate grouping left over.

    Args:
        corpus: The corpus.
        n_documents: Only so many documents from its beginning are looked at.
        length: Words in a gram.

    Returns:
        For each pair "A in B" the share of B's distinct grams that A has too, and the share of B's documents (of those
        with `length` words) more than half of whose grams A has.
    """
    grams: dict[str, list[UInt64Array]] = {split: [] for split in corpus.splits}
    for document in islice(corpus.stream(), n_documents):
        if len(WORDS.findall(document.text)) >= length:
            grams[split_of(document.group, corpus.splits)].append(word_shingles(document.text, length))
    distinct = {split: np.unique(np.concatenate(found)) for split, found in grams.items() if found}
    shares = {}
    for a, b in combinations(distinct, 2):
        # One look-up for all documents: searching again for each would sort the other split again each time.
        seen = np.isin(np.concatenate(grams[b]), distinct[a])
        begins = np.cumsum([0, *(len(document) for document in grams[b][:-1])])
        by_document = np.add.reduceat(seen, begins, dtype=np.int64) / [len(document) for document in grams[b]]
        shares[f"{a} in {b}"] = {
            "grams": round(float(np.isin(distinct[b], distinct[a]).mean()), 4),
            "documents": round(float((by_document > 0.5).mean()), 4),
        }
    return {"words": length, "documents_read": n_documents, "shares": shares}


def kept_overlap(corpus: Corpus) -> dict[str, Any]:
    """`overlap` of a corpus, kept in the user's cache folder: every dictionary of a corpus reports the same."""
    path = pydocs.cache_folder() / "overlaps" / f"{corpus.fingerprint}.json"
    with suppress(OSError, ValueError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(kept, dict):
            return kept
    found = overlap(corpus)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def open_corpus(config: CorpusConfig) -> Corpus:
    """Open a corpus without reading more of it than its identity needs.

    A .txt file holds one document per paragraph (blank lines separate them), a .jsonl, .jsonl.gz or .parquet file one
    per row; of a `datasets` name, or NAME:CONFIG, or a folder that `datasets` can load, the train split is streamed.

    Raises:
        InputError: The corpus does not exist, is empty, or is not text; also raised later, while streaming.
    """
    name, column = config.corpus, config.text_column
    if name == pydocs.CORPUS:
        sources = pydocs.installed_sources()
        identity = pydocs.fingerprint(sources)
        return Corpus(name, identity, PYDOCS_SPLITS, lambda: pydocs.documents(sources, NearDuplicates()))
    if texts.is_file_name(name):
        identity, rows = texts.open_file(Path(name), column)
    else:
        identity, rows = texts.open_dataset(name, column)

    def stream() -> Iterator[Document]:
        near_duplicates = NearDuplicates()
        for row, text in rows():
            # The number alone: the file's name is no part of the corpus's identity, so it must not steer the splits.
            document = near_duplicates(Document(row, row, text))
            if document is not None:
                yield document

    corpus = Corpus(name, hashlib.sha256(f"{pydocs.SCHEMA}:{identity}".encode()).hexdigest(), SPLITS, stream)
    if next(corpus.stream(), None) is None:
        raise InputError(f"{name} holds no text: expected at least one document, found none; name another corpus")
    return corpus


def corpus_settings(config: CorpusConfig) -> dict[str, Any]:
    """A corpus as an artifact's settings name it: a file by its name alone, wherever it lies."""
    return {**asdict(config), "corpus": Path(config.corpus).name if _is_file(config) else config.corpus}


def corpus_place(config: CorpusConfig, corpus: Corpus) -> dict[str, Any]:
    """A corpus as `run.json` names it: where it was found, and what it is known by wherever it goes."""
    place = str(Path(config.corpus).resolve()) if _is_file(config) else config.corpus
    return {**asdict(config), "corpus": place, "corpus_fingerprint": corpus.fingerprint}


def _is_file(config: CorpusConfig) -> bool:
    return config.corpus != pydocs.CORPUS and texts.is_file_name(config.corpus)
