"""`python -m sae.cache`: which latents fire where, for every dictionary of a run, in one pass of the subject."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sae.activations import SUBJECT_BATCH_TOKENS, stream, without_token_means
from sae.artifacts import (
    ArtifactWriter,
    check_contents,
    complete_folders,
    completed,
    dictionary_folder,
    digest,
    latents_folder,
    plain,
    read_manifest,
    writing,
)
from sae.checkpoint import load_dictionary, load_token_means
from sae.cli import parse, run_stage
from sae.config import VARIANTS, CacheConfig, CorpusConfig, SubjectConfig
from sae.contexts import ContextStore, prepare_contexts
from sae.corpus import Corpus, corpus_place, corpus_settings, open_corpus
from sae.errors import InputError
from sae.formats import find_hookpoint, load_foreign
from sae.hookpoints import Hookpoint
from sae.latents import SPLITS, EntryWriter, TextWriter, save_tensors
from sae.memory import keep_freed_memory
from sae.metrics import TokenMean
from sae.model import SparseAutoencoder
from sae.runs import claim_run, read_run
from sae.specs import kind_of
from sae.subject import Subject, load_subject
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


@dataclass(frozen=True)
class Dictionary:
    """A dictionary to be cached."""

    name: str
    hookpoint: Hookpoint
    model: SparseAutoencoder
    means: TokenMean | None
    """What is taken off its inputs."""
    facts: dict[str, Any]
    fingerprint: str


def main(argv: Sequence[str] | None = None) -> None:
    """Cache every dictionary that has no cache yet."""
    args = parse(Arguments, argv, "python -m sae.cache")
    subject_config, corpus_config = resolved(args)
    keep_freed_memory()
    corpus = open_corpus(corpus_config)
    identity = subject_identity(subject_config)
    claim_run(args.cache.run, {**identity, **corpus_place(corpus_config, corpus)})
    dictionaries = _dictionaries(args.cache)
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
            _check_fit(d, subject)
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


def _dictionaries(config: CacheConfig) -> list[Dictionary]:
    if config.dictionary is not None:
        return [_foreign(config, config.dictionary)]
    folders = complete_folders(config.run / "sae")
    if not folders:
        raise InputError(f"{config.run} has no dictionary; train one with python -m sae.train --run {config.run} ...")
    found = []
    for folder in folders:
        mend = f"remove it and train it again with python -m sae.train --run {config.run} ..."
        manifest = read_manifest(folder, "sae", mend)
        # First: a damaged dictionary counts as complete, so training it again would do nothing while it is there.
        check_contents(folder, manifest, mend)
        model, facts = load_dictionary(folder)
        means = load_token_means(folder, facts)
        hookpoint = Hookpoint.parse(str(facts["hookpoint"]))
        found.append(Dictionary(folder.name, hookpoint, model, means, facts, manifest.fingerprint))
    return found


def _foreign(config: CacheConfig, source: str) -> Dictionary:
    """A dictionary trained elsewhere, under the name that the flags give it or that of its folder."""
    foreign = load_foreign(source)
    hookpoint = find_hookpoint(foreign, config.hookpoint)
    name = config.name or foreign.name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"{name!r} cannot be a dictionary's name; give one of letters, digits, dots and - by --name")
    own = dictionary_folder(config.run, name)
    if own.exists() and not own.samefile(foreign.folder):
        raise InputError(f"{config.run} has a dictionary {name} of its own; give the other one another name by --name")
    facts = {**foreign.facts, "hookpoint": str(hookpoint), "layer": hookpoint.layer}
    fingerprint = digest([str(hookpoint), foreign.fingerprint])
    return Dictionary(name, hookpoint, foreign.model, foreign.means, facts, fingerprint)


def _check_fit(dictionary: Dictionary, subject: Subject) -> None:
    width = subject.width(dictionary.hookpoint)
    if dictionary.model.d_in != width:
        raise InputError(
            f"dictionary {dictionary.name} reads vectors of width {dictionary.model.d_in}, "
            f"{subject.config.subject} has {width}; use the subject it was trained on"
        )
    rows = int(subject.model.get_input_embeddings().weight.shape[0])
    if dictionary.means is not None and dictionary.means.by_token.shape != (rows, subject.d_model):
        found = f"means of {len(dictionary.means.by_token)} tokens, {subject.config.subject} has {rows}"
        raise InputError(f"dictionary {dictionary.name} holds {found}; use the subject it was trained on")


def _artifact_config(config: CacheConfig, corpus: CorpusConfig, dictionary: Dictionary) -> dict[str, Any]:
    names = ("hookpoint", "layer", "seed", "k", "n_latents", "skip_embed")
    facts = {name: dictionary.facts.get(name) for name in names}
    kind = kind_of(dictionary.facts)
    facts |= {"kind": kind} if kind else {}
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
    hookpoints = [d.hookpoint for d in dictionaries]
    entries = [EntryWriter(w.partial, d.model.n_latents) for w, d in zip(writers, dictionaries, strict=True)]
    texts = TextWriter(writers[0].partial / ".token_ids")
    for d in dictionaries:
        d.model.to(subject.device)
    means = [d.means.to(subject.device) if d.means else None for d in dictionaries]
    bar = tqdm(total=sum(s.n_tokens for s in stores), unit="tok", unit_scale=True, desc="caching", mininterval=1.0)
    for place, store in enumerate(stores):
        first_document = texts.begin_split(place, store.document_ids)
        batches = store.batches(SUBJECT_BATCH_TOKENS, np.random.default_rng(0))
        for batch in without_token_means(stream(subject, store, hookpoints, batches), means):
            contexts = batch.batch.contexts
            numbers = texts.add(
                batch.batch.ids,
                batch.batch.lengths,
                store.document_index[contexts] + first_document,
                store.starts[contexts],
            )
            index = numbers[batch.usable.numpy()]
            for x, d, entry in zip(batch.vectors, dictionaries, entries, strict=True):
                _add(x, d.model, entry, index)
            bar.update(len(batch.token_ids))
    bar.close()
    arrays, names = texts.arrays(), texts.documents
    for d, writer, entry in zip(dictionaries, writers, entries, strict=True):
        total = entry.finish()
        save_tensors(writer.partial / "tokens.safetensors", arrays)
        save_tensors(writer.partial / "neighbours.safetensors", _neighbours(d.model))
        (writer.partial / "documents.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
        subject.tokenizer.backend_tokenizer.save(str(writer.partial / "tokenizer.json"))
        tokens = {split: store.n_tokens for split, store in zip(SPLITS, stores, strict=True)}
        living = int((entry.counts > 0).sum())
        writer.finish({"tokens": tokens, "entries": total, "n_latents": d.model.n_latents, "living": living})


@torch.no_grad()
def _add(x: torch.Tensor, model: SparseAutoencoder, entries: EntryWriter, index: np.ndarray[Any, Any]) -> None:
    values, indices = model.encode(x)
    values, indices = values.cpu(), indices.cpu()
    active = (values > 0).numpy()
    tokens = np.broadcast_to(index[:, None], active.shape)
    entries.add(tokens[active], indices.numpy()[active], values.numpy()[active])


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
