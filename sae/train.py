"""`python -m sae.train`: dictionaries on the activations of a subject, many in one pass."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sae.activations import SUBJECT_BATCH_TOKENS, ActivationBatch, shuffled, stream, without_token_means
from sae.artifacts import ArtifactWriter, completed, dictionary_folder, read_json, write_json, writing
from sae.checkpoint import save_dictionary
from sae.cli import parse, run_stage
from sae.config import CorpusConfig, SAEConfig, SubjectConfig, TrainConfig
from sae.contexts import ContextStore, prepare_contexts
from sae.corpus import Corpus, corpus_place, corpus_settings, kept_overlap, open_corpus
from sae.distributed import Parallel, check_same, enough_for_all, own_batch, own_batches, own_seed
from sae.errors import InputError
from sae.evaluate import Placed, evaluate
from sae.hookpoints import Hookpoint
from sae.losses import finite
from sae.memory import keep_freed_memory
from sae.metrics import BaselineFitter, TokenMean
from sae.model import SparseAutoencoder
from sae.processes import joined, on_own_device
from sae.runs import claim_run
from sae.sharding import check_shardable, part_of
from sae.specs import DictionarySpec, asked
from sae.subject import Subject, load_subject
from sae.trainer import Rates, Trainer, learning_rate, schedule
from sae.weights import subject_digest, subject_identity

log = logging.getLogger(__name__)
LOG_EVERY = 20


@dataclass(frozen=True)
class Arguments:
    """Train dictionaries on the activations of a subject: layers x sites x ks x seeds in one pass."""

    subject: SubjectConfig
    train: TrainConfig
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)


@dataclass(frozen=True)
class Plan:
    """Which dictionary learns from which of the stream's vectors."""

    specs: tuple[DictionarySpec, ...]
    places: tuple[Hookpoint, ...]

    @classmethod
    def of(cls, specs: Sequence[DictionarySpec]) -> Plan:
        """Every hookpoint that a dictionary reads or reconstructs, once."""
        places = dict.fromkeys(place for spec in specs for place in (spec.hookpoint, spec.target))
        return cls(tuple(specs), tuple(places))

    def pairs(self, vectors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets of each dictionary, of vectors in the order of the places."""
        of = dict(zip(self.places, vectors, strict=True))
        return [(of[spec.hookpoint], of[spec.target]) for spec in self.specs]


def train(
    trainers: Sequence[Trainer],
    batches: Iterable[Sequence[tuple[Tensor, Tensor]]],
    config: TrainConfig,
    logs: Sequence[TextIO],
) -> None:
    """The training loop, over batches with inputs and targets of each dictionary; logs get one JSON line at times."""
    n_steps = math.ceil(config.tokens / config.batch_tokens)
    bar = tqdm(total=config.tokens, unit="tok", unit_scale=True, desc="training", mininterval=1.0)
    for step, pairs in zip(range(n_steps), batches, strict=False):
        rates = Rates(schedule(step, n_steps, config.warmup, config.decay), min(1.0, (step + 1) / (0.3 * n_steps)))
        fvus = [trainer.step(x, target, rates) for trainer, (x, target) in zip(trainers, pairs, strict=True)]
        bar.update(trainers[0].tokens - bar.n)
        if step % LOG_EVERY == 0 or step == n_steps - 1:
            rows = [
                {
                    "step": step,
                    "tokens": t.tokens,
                    "lr": t.peak * rates.learning,
                    "fvu": float(fvu),
                    "dead_share": t.dead_share,
                }
                for t, fvu in zip(trainers, fvus, strict=True)
            ]
            for stream, row in zip(logs, rows, strict=False):
                stream.write(json.dumps(row) + "\n")
            mean, dead = (sum(row[name] for row in rows) / len(rows) for name in ("fvu", "dead_share"))
            bar.set_postfix_str(f"fvu {mean:.3f}, dead {dead:.0%}")
    bar.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Train every dictionary that the flags ask for and that is not there yet."""
    with joined() as processes:
        args = parse(Arguments, argv, "python -m sae.train")
        parallel = processes.arranged(args.train.shard_latents)
        own_batch(args.train.batch_tokens, parallel)
        _train_asked(replace(args, subject=on_own_device(args.subject, parallel)), parallel)


def _train_asked(args: Arguments, parallel: Parallel) -> None:
    keep_freed_memory()
    corpus = open_corpus(args.corpus)
    identity = subject_identity(args.subject)
    parents = {"subject": subject_digest(identity), "corpus": corpus.fingerprint}
    check_same(parents, parallel)
    if parallel.is_main:
        claim_run(args.train.run, {**identity, **corpus_place(args.corpus, corpus)})
    specs = asked(args.train, args.sae)
    settings = corpus_settings(args.corpus)
    configs = {spec: spec.settings(args.train, identity, settings) for spec in specs}
    folders = {spec: dictionary_folder(args.train.run, spec.name) for spec in specs}
    overwrite = args.train.overwrite or not parallel.is_main
    todo = [spec for spec in specs if completed(folders[spec], "sae", configs[spec], parents, overwrite) is None]
    todo = parallel.told(todo)
    if todo:
        subject = load_subject(args.subject)
        _check_subject(subject, args, parallel)
        with contextlib.ExitStack() as stack:
            writers = {
                spec: stack.enter_context(writing(folders[spec], "sae", configs[spec], parents))
                for spec in todo
                if parallel.is_main
            }
            _train_all(args, subject, corpus, Plan.of(todo), writers, parallel)
    for spec, folder in folders.items() if parallel.is_main else ():
        mend = f"remove {folder} and run the same command again"
        try:
            summary = _summary(read_json(folder / "metrics.json", mend), spec.sae.k)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{folder / 'metrics.json'} lacks the metrics of a dictionary; {mend}") from None
        print(f"{folder}: {summary}{'' if spec in todo else ' (complete already)'}")


def _summary(metrics: dict[str, Any], k: int) -> str:
    names = ("fvu", "fvu_token_mean", "fvu_pca")
    fvu, token, pca = ("undefined" if metrics[name] is None else f"{metrics[name]:.3f}" for name in names)
    return f"fvu {fvu} (token mean {token}, PCA of {k} {pca}), dead {metrics['dead_share']:.1%}"


def _train_all(
    args: Arguments,
    subject: Subject,
    corpus: Corpus,
    plan: Plan,
    writers: dict[DictionarySpec, ArtifactWriter],
    parallel: Parallel,
) -> None:
    config, context = args.train, args.corpus.context_length
    started = time.time()
    store = prepare_contexts(corpus, subject.tokenizer, "sae", config.tokens, context, config.repeat)
    held_out = prepare_contexts(corpus, subject.tokenizer, "score", config.eval_tokens, context, repeat=True)
    places = plan.places
    means = _token_means(subject, store, places, args, parallel) if args.sae.skip_embed else [None] * len(places)
    fitters = _fitters(subject, places)
    generator = torch.Generator().manual_seed(own_seed(config.seed, parallel))
    vectors = _fitted(without_token_means(_vectors(subject, store, places, config, parallel), means), fitters)
    own = shuffled(vectors, own_batch(config.batch_tokens, parallel), config.buffer_tokens // parallel.world, generator)
    batches = (tuple(parallel.batch(x) for x in vectors) for vectors in own)
    first = next(batches)
    trainers = [
        _trainer(args, spec, subject.device, parallel, *pair)
        for spec, pair in zip(plan.specs, plan.pairs(first), strict=True)
    ]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context((w.partial / "train_log.jsonl").open("w")) for w in writers.values()]
        train(trainers, map(plan.pairs, itertools.chain([first], batches)), config, logs)
    for spec, trainer in zip(plan.specs, trainers, strict=True):
        if not finite(*trainer.model.parameters()):
            raise InputError(f"training of {spec.name} diverged; pass a lower --learning-rate or --dtype float32")
    for fitter in fitters:
        fitter.unite(parallel)
    for spec, trainer in zip(plan.specs, trainers, strict=True):
        trainer.gather(spec.architecture(trainer.model.d_in, trainer.model.architecture.width_out))
    if not parallel.is_main:
        return
    seconds = time.time() - started
    results = evaluate(subject, held_out, _placed(plan, trainers, fitters, means))
    shared = kept_overlap(corpus)
    for (spec, writer), trainer, result in zip(writers.items(), trainers, results, strict=True):
        save_dictionary(writer.partial, trainer.model, spec.facts(), means[places.index(spec.hookpoint)])
        _save_metrics(writer, trainer, result)
        counts = {"tokens": trainer.tokens, "n_latents": trainer.model.n_latents, "variant": subject.report}
        writer.finish({**counts, "overlap": shared}, {"training_seconds": round(seconds, 3)})


def _placed(
    plan: Plan, trainers: Sequence[Trainer], fitters: Sequence[BaselineFitter], means: Sequence[TokenMean | None]
) -> list[Placed]:
    found = []
    for spec, trainer in zip(plan.specs, trainers, strict=True):
        place = plan.places.index(spec.target)
        found.append(Placed(trainer.model, spec.hookpoint, spec.target, fitters[place], means[place]))
    return found


def _fitters(subject: Subject, places: Sequence[Hookpoint]) -> list[BaselineFitter]:
    vocabulary = int(subject.model.get_input_embeddings().weight.shape[0])
    return [BaselineFitter(vocabulary, subject.width(place), subject.device) for place in places]


def _vectors(
    subject: Subject, store: ContextStore, places: Sequence[Hookpoint], config: TrainConfig, parallel: Parallel
) -> Iterator[ActivationBatch]:
    """The training split's vectors; every call gives the same."""
    order = np.random.default_rng(config.seed)
    largest = max(SUBJECT_BATCH_TOKENS, int(np.diff(store.offsets).max()))
    batches = store.batches(SUBJECT_BATCH_TOKENS, order, enough_for_all(config, largest, parallel))
    return stream(subject, store, places, own_batches(batches, parallel))


def _fitted(batches: Iterable[ActivationBatch], fitters: Sequence[BaselineFitter]) -> Iterator[ActivationBatch]:
    """The activation stream, which the baselines see on its way to the dictionaries."""
    for batch in batches:
        for fitter, x in zip(fitters, batch.vectors, strict=True):
            fitter.update(x, batch.token_ids)
        yield batch


def _token_means(
    subject: Subject, store: ContextStore, places: Sequence[Hookpoint], args: Arguments, parallel: Parallel
) -> list[TokenMean | None]:
    """Each token's mean vector over the training split, from a pass of its own."""
    fitters = _fitters(subject, places)
    batches = _fitted(_vectors(subject, store, places, args.train, parallel), fitters)
    with tqdm(total=args.train.tokens, unit="tok", unit_scale=True, desc="token means", mininterval=1.0) as bar:
        for batch in batches:
            bar.update(len(batch.token_ids) * parallel.world)
    for fitter in fitters:
        fitter.unite(parallel)
    return [fitter.token_mean() for fitter in fitters]


def _trainer(
    args: Arguments, spec: DictionarySpec, device: torch.device, parallel: Parallel, x: Tensor, target: Tensor
) -> Trainer:
    model = SparseAutoencoder(spec.architecture(x.shape[1], target.shape[1]))
    model.to(device if parallel.shards == 1 else "cpu")
    # One generator per dictionary: which others are trained beside it must not change it.
    model.initialise(parallel.sample(x), torch.Generator().manual_seed(spec.seed * 1000 + spec.layer))
    config, rate = args.train, learning_rate(args.train, model.n_latents)
    part = part_of(model, parallel).to(device)
    return Trainer(part, spec.sae, rate, config.dead_after * config.tokens, parallel)


def _save_metrics(writer: ArtifactWriter, trainer: Trainer, result: dict[str, Any]) -> None:
    dead = {"dead_share": trainer.dead_share, "dead_after_tokens": int(trainer.window)}
    metrics = {**result, **dead, "k": trainer.model.k, "n_tokens_train": trainer.tokens}
    write_json(writer.partial / "metrics.json", metrics)


def _check_subject(subject: Subject, args: Arguments, parallel: Parallel) -> None:
    for spec in asked(args.train, args.sae):
        check_shardable(spec.architecture(subject.width(spec.hookpoint), subject.width(spec.target)), parallel.shards)
    subject.check_context(args.corpus.context_length)


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
