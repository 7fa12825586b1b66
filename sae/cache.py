"""`python -m sae.cache`: which latents fire where, for every dictionary of a run, in one pass of the subject."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sae.activations import SUBJECT_BATCH_TOKENS, stream
from sae.artifacts import (
    ArtifactWriter,
    completed,
    latents_folder,
    plain,
    read_manifest,
    writing,
)
from sae.cli import parse, run_stage
from sae.config import VARIANTS, CacheConfig, CorpusConfig, SubjectConfig
from sae.contexts import ContextStore, prepare_contexts
from sae.corpus import Corpus, corpus_place, corpus_settings, open_corpus
from sae.dictionaries import Dictionary, check_fit, foreign_dictionary, run_dictionaries
from sae.errors import InputError
from sae.hookpoints import Hookpoint
from sae.latents import SPLITS, Array, EntryWriter, TextWriter, save_tensors
from sae.layered import LayeredWriter
from sae.memory import keep_freed_memory
from sae.model import SparseAutoencoder
from sae.runs import claim_run, read_run
from sae.specs import kind_of
from sae.subject import Subject, block_count, load_subject
from sae.weights import subject_digest, subject_identity

log = logging.getLogger(__name__)
N_NEIGHBOURS = 10
NEIGHBOUR_ROWS = 4096
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Arguments:
    """Cache the latent activations of a run's dictionaries, or of one dictionary trained elsewhere."""

    cache: CacheConfig
    # Empty values stand for what the run holds.
    corpus: CorpusConfig = field(default_factory=lambda: CorpusConfig(corpus="", text_column="", context_length=0))
    subject: SubjectConfig = field(default_factory=lambda: SubjectConfig(subject=""))


def main(argv: Sequence[str] | None = None) -> None:
    """Cache every dictionary that has no cache yet."""
    args = parse(Arguments, argv, "python -m sae.cache")
    subject_config, corpus_config = resolved(args)
    keep_freed_memory()
    corpus = open_corpus(corpus_config)
    identity = subject_identity(subject_config)
    claim_run(args.cache.run, {**identity, **corpus_place(corpus_config, corpus)})
    dictionaries = _dictionaries(args.cache, subject_config)
    parents = {"subject": subject_digest(identity), "corpus": corpus.fingerprint}
    own = {d.name: {**parents, "dictionary": d.fingerprint} for d in dictionaries}
    configs = {d.name: _artifact_config(args.cache, corpus_config, d) for d in dictionaries}
    folders = {d.name: latents_folder(args.cache.run, d.name) for d in dictionaries}
    todo = [
        d
        for d in dictionaries
        if completed(folders[d.name], "latents", configs[d.name], own[d.name], args.cache.overwrite) is None
    ]
    if todo:
        subject = load_subject(subject_config)
        for d in todo:
            check_fit(d, subject)
        subject.check_context(corpus_config.context_length)
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(writing(folders[d.name], "latents", configs[d.name], own[d.name])) for d in todo
            ]
            _cache(args.cache, subject, _stores(args.cache, subject, corpus, corpus_config), todo, writers)
    for d in dictionaries:
        counts = read_manifest(folders[d.name], "latents", "pass --overwrite").counts
        note = "" if d in todo else " (complete already)"
        tokens = " + ".join(f"{counts['tokens'][split]:,} ({split})" for split in SPLITS)
        print(
            f"{folders[d.name]}: {tokens} tokens, {counts['living']:,} of {counts['n_latents']:,} latents alive{note}"
        )


def resolved(args: Arguments) -> tuple[SubjectConfig, CorpusConfig]:
    """Subject and corpus from the flags, or where they are not given from what the run holds."""
    subject, run = args.subject, args.cache.run
    known = (run / "run.json").exists()
    if not (known or (subject.subject and args.corpus.corpus and args.cache.dictionary)):
        read_run(run)
    held = read_run(run) if known else plain(CorpusConfig())
    if known:
        _check_held(run, held)
    if not subject.subject:
        for field_ in fields(SubjectConfig):
            if field_.name not in ("subject", "device") and getattr(subject, field_.name) != field_.default:
                found = f"--{field_.name.replace('_', '-')} goes with --subject"
                raise InputError(f"{found}; without it the run's own subject and variant are taken")
        held_names = ("subject", "revision", "variant", "variant_seed", "variant_block", "dtype")
        kept = {name: held[name] for name in held_names} | {"device": subject.device}
        subject = SubjectConfig(**kept, control_scale=held["control_scale"] or "unit")
    corpus = CorpusConfig(**{name: value or held[name] for name, value in plain(args.corpus).items()})
    if args.cache.dictionary is None and (args.cache.hookpoint or args.cache.name):
        flag = "--hookpoint" if args.cache.hookpoint else "--name"
        raise InputError(f"{flag} goes with --dictionary; the run's own dictionaries know theirs")
    return subject, corpus


def _check_held(run: Path, held: dict[str, Any]) -> None:
    """Raise `InputError` unless `run.json` holds a value of the right kind wherever flags may leave one out."""
    number, text = (int,), (str,)
    kinds = {"subject": text, "corpus": text, "text_column": text, "context_length": number, "variant_seed": number}
    kinds |= {name: (*kind, type(None)) for name, kind in (("revision", text), ("variant_block", number))}
    choices = {"variant": VARIANTS, "dtype": DTYPES, "control_scale": ("unit", "matched", None)}
    wrong = [name for name, kind in kinds.items() if name not in held or not isinstance(held[name], kind)]
    wrong += [name for name, allowed in choices.items() if name not in held or held[name] not in allowed]
    if wrong:
        found = f"{wrong[0]} is {held[wrong[0]]!r}" if wrong[0] in held else f"{wrong[0]} is missing"
        raise InputError(f"{run / 'run.json'} is damaged ({found}); mend it, or use another --run")


def _dictionaries(config: CacheConfig, subject: SubjectConfig) -> list[Dictionary]:
    """What is to be cached: each dictionary, and with --per-layer those of several layers at each by itself."""
    if config.dictionary is None:
        found = run_dictionaries(config.run)
    else:
        n_blocks = block_count(subject) if config.hookpoint == "all" else 0
        found = [foreign_dictionary(config, config.dictionary, n_blocks)]
    if not config.per_layer:
        return found
    at_layers = [layer for d in found for layer in d.at_layers()]
    if not at_layers:
        raise InputError("--per-layer is for dictionaries of several layers, found none; leave it out")
    return [*found, *at_layers]


def _artifact_config(config: CacheConfig, corpus: CorpusConfig, dictionary: Dictionary) -> dict[str, Any]:
    names = ("hookpoint", "layer", "seed", "k", "n_latents", "skip_embed")
    facts = {name: dictionary.facts.get(name) for name in names}
    kind = kind_of(dictionary.facts)
    facts |= {"kind": kind} if kind else {}
    facts |= {"layers": [place.layer for place in dictionary.hookpoints]} if dictionary.is_multi_layer else {}
    facts |= {"parent": dictionary.facts["parent"]} if "parent" in dictionary.facts else {}
    settings = {"tokens": config.tokens, "repeat": config.repeat, "corpus": corpus_settings(corpus)}
    result: dict[str, Any] = plain({"dictionary": dictionary.name, **facts, **settings})
    return result


def _stores(config: CacheConfig, subject: Subject, corpus: Corpus, corpus_config: CorpusConfig) -> list[ContextStore]:
    """The contexts of the explain and of the score split, half of the tokens each."""
    each, context = config.tokens // len(SPLITS), corpus_config.context_length
    return [prepare_contexts(corpus, subject.tokenizer, split, each, context, config.repeat) for split in SPLITS]


def _cache(
    config: CacheConfig,
    subject: Subject,
    stores: Sequence[ContextStore],
    dictionaries: Sequence[Dictionary],
    writers: Sequence[ArtifactWriter],
) -> None:
    """One pass over both splits; tokens are numbered in the order in which the subject reads them."""
    dictionaries = [d.to(subject.device) for d in dictionaries]
    hookpoints = sorted({place for d in dictionaries for place in d.hookpoints})
    entries = [_writer(w.partial, d) for w, d in zip(writers, dictionaries, strict=True)]
    texts = TextWriter(writers[0].partial / ".token_ids")
    bar = tqdm(total=sum(s.n_tokens for s in stores), unit="tok", unit_scale=True, desc="caching", mininterval=1.0)
    for split, store in enumerate(stores):
        first_document = texts.begin_split(split, store.document_ids)
        batches = store.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0))
        for batch in stream(subject, store, hookpoints, batches):
            contexts = batch.batch.contexts
            numbers = texts.add(
                batch.batch.ids,
                batch.batch.lengths,
                store.document_index[contexts] + first_document,
                store.starts[contexts],
            )
            vectors = dict(zip(hookpoints, batch.vectors, strict=True))
            _add(vectors, batch.token_ids.to(subject.device), numbers[batch.usable.numpy()], dictionaries, entries)
            bar.update(len(batch.token_ids))
    bar.close()
    arrays, names = texts.arrays(), texts.documents
    neighbours: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
    for d, writer, entry in zip(dictionaries, writers, entries, strict=True):
        total = entry.finish()
        if id(d.model) not in neighbours:
            neighbours[id(d.model)] = _neighbours(d.model)
        save_tensors(writer.partial / "tokens.safetensors", arrays)
        save_tensors(writer.partial / "neighbours.safetensors", neighbours[id(d.model)])
        (writer.partial / "documents.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
        subject.tokenizer.backend_tokenizer.save(str(writer.partial / "tokenizer.json"))
        tokens = {split: store.n_tokens for split, store in zip(SPLITS, stores, strict=True)}
        living = int((entry.counts > 0).sum())
        writer.finish({"tokens": tokens, "entries": total, "n_latents": d.model.n_latents, "living": living})


def _writer(folder: Path, dictionary: Dictionary) -> EntryWriter | LayeredWriter:
    n_latents, n_layers = dictionary.model.n_latents, len(dictionary.hookpoints)
    return LayeredWriter(folder, n_latents, n_layers) if dictionary.is_multi_layer else EntryWriter(folder, n_latents)


@torch.no_grad()
def _add(
    vectors: Mapping[Hookpoint, torch.Tensor],
    token_ids: torch.Tensor,
    index: Array,
    dictionaries: Sequence[Dictionary],
    entries: Sequence[EntryWriter | LayeredWriter],
) -> None:
    """Add what fires on some tokens [token], of these ids and of these numbers in the cache."""
    # A dictionary is here once more for each layer that has a cache of its own.
    known: dict[tuple[int, Hookpoint], tuple[Array, Array, Array]] = {}
    for d, entry in zip(dictionaries, entries, strict=True):
        for place in d.hookpoints:
            if (id(d.model), place) not in known:
                known[id(d.model), place] = _firings(d.model, d.seen(vectors[place], token_ids, place), index)
        found = [known[id(d.model), place] for place in d.hookpoints]
        if isinstance(entry, EntryWriter):
            entry.add(*found[0])
        else:
            token, latent, activation = (np.concatenate(column) for column in zip(*found, strict=True))
            layer = np.repeat(np.arange(len(found)), [len(part[0]) for part in found])
            entry.add(token, latent, activation, layer)


def _firings(model: SparseAutoencoder, x: torch.Tensor, index: Array) -> tuple[Array, Array, Array]:
    """Token, latent and activation of everything that fires on x [token, d_in], by token."""
    values, indices = model.encode(x)
    values, indices = values.cpu(), indices.cpu()
    active = (values > 0).numpy()
    tokens = np.broadcast_to(index[:, None], active.shape)
    return tokens[active], indices.numpy()[active], values.numpy()[active]


@torch.no_grad()
def _neighbours(model: SparseAutoencoder) -> dict[str, np.ndarray[Any, Any]]:
    """The latents with the most similar decoder directions, in pieces of rows so that memory stays flat."""
    directions = torch.nn.functional.normalize(model.w_dec, dim=1)
    n = min(N_NEIGHBOURS, model.n_latents - 1)
    cosines, latents = [], []
    for first in range(0, model.n_latents, NEIGHBOUR_ROWS):
        similarity = directions[first : first + NEIGHBOUR_ROWS] @ directions.T
        rows = torch.arange(len(similarity), device=similarity.device)
        similarity[rows, rows + first] = -2
        best = similarity.topk(n, dim=1)
        cosines.append(best.values.float().cpu().numpy())
        latents.append(best.indices.cpu().numpy().astype(np.uint32))
    return {"latent": np.concatenate(latents), "cosine": np.concatenate(cosines)}


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
