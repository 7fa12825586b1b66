"""`python -m sae.train`: dictionaries on the residual stream of a subject, several hookpoints in one pass."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sae.activations import SUBJECT_BATCH_TOKENS, ActivationBatch, shuffled, stream, without_token_means
from sae.architecture import Architecture
from sae.artifacts import ArtifactWriter, completed, dictionary_folder, plain, read_json, write_json, writing
from sae.checkpoint import save_dictionary
from sae.cli import parse, run_stage
from sae.config import CorpusConfig, SAEConfig, SubjectConfig, TrainConfig
from sae.contexts import ContextStore, prepare_contexts
from sae.corpus import Corpus, corpus_place, corpus_settings, kept_overlap, open_corpus
from sae.errors import InputError
from sae.evaluate import Placed, evaluate
from sae.hookpoints import Hookpoint
from sae.memory import keep_freed_memory
from sae.metrics import BaselineFitter, TokenMean
from sae.model import SparseAutoencoder
from sae.runs import claim_run
from sae.subject import Subject, load_subject
from sae.weights import subject_digest, subject_identity

log = logging.getLogger(__name__)
LOG_EVERY = 20


@dataclass(frozen=True)
class Arguments:
    """Train TopK dictionaries on the residual stream after some blocks of a subject."""

    subject: SubjectConfig
    train: TrainConfig
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)


def dictionary_slug(layer: int, sae: SAEConfig, seed: int) -> str:
    """The dictionary's name: its hookpoint, then whatever differs from the defaults."""
    defaults = SAEConfig()
    parts = [f"layers.{layer}"]
    parts += [f"k{sae.k}"] if sae.k != defaults.k else []
    parts += [f"x{sae.expansion}"] if sae.expansion != defaults.expansion else []
    parts += ["skip-embed"] if sae.skip_embed else []
    return ".".join(parts + ([f"s{seed}"] if seed else []))


def learning_rate(config: TrainConfig, n_latents: int) -> float:
    """The peak learning rate: as asked, or 3e-3 / sqrt(n_latents / 4096), tuned for runs of some hundred steps."""
    return config.learning_rate or 3e-3 / math.sqrt(n_latents / 4096)


def schedule(step: int, n_steps: int, warmup: float, decay: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, a plateau, a linear fall to zero."""
    rise = (step + 1) / max(1.0, warmup * n_steps)
    fall = (n_steps - step) / max(1.0, decay * n_steps)
    return min(1.0, rise, fall)


class Trainer:
    """One dictionary in training: weights, optimiser, and when each latent last fired."""

    def __init__(self, model: SparseAutoencoder, peak: float) -> None:
        self.model = model
        self.peak = peak
        self.optimiser = torch.optim.Adam(model.parameters(), lr=peak, fused=True)
        self.last_fired = torch.zeros(model.n_latents, dtype=torch.int64, device=model.w_enc.device)
        self.tokens = 0

    def step(self, x: Tensor, share: float) -> Tensor:
        """One optimiser step on x [token, d_in] at a share of the peak rate; returns the batch's FVU, the loss."""
        output = self.model(x)
        loss = (x - output.reconstruction).square().sum() / (x - x.mean(0)).square().sum().clamp_min(1e-12)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.model.remove_radial_gradient()
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak * share
        self.optimiser.step()
        self.model.normalise_decoder()
        self.tokens += len(x)
        self.last_fired[output.indices[output.values > 0]] = self.tokens
        detached: Tensor = loss.detach()
        return detached

    def dead_share(self, window: float) -> float:
        """Share of the latents that have not fired in the last `window` tokens."""
        return float((self.last_fired <= self.tokens - window).float().mean())


def train(
    trainers: Sequence[Trainer], batches: Iterable[tuple[Tensor, ...]], config: TrainConfig, logs: Sequence[TextIO]
) -> None:
    """The training loop, over batches with one [token, d_in] tensor per dictionary; logs get one JSON line at times."""
    n_steps = math.ceil(config.tokens / config.batch_tokens)
    bar = tqdm(total=config.tokens, unit="tok", unit_scale=True, desc="training", mininterval=1.0)
    for step, batch in zip(range(n_steps), batches, strict=False):
        share = schedule(step, n_steps, config.warmup, config.decay)
        losses = [trainer.step(x, share) for trainer, x in zip(trainers, batch, strict=True)]
        bar.update(len(batch[0]))
        if step % LOG_EVERY == 0 or step == n_steps - 1:
            fvus = [float(loss) for loss in losses]
            window = config.dead_after * config.tokens
            dead = [trainer.dead_share(window) for trainer in trainers]
            for stream, trainer, fvu, share_dead in zip(logs, trainers, fvus, dead, strict=True):
                row = {"step": step, "tokens": trainer.tokens, "lr": trainer.peak * share}
                stream.write(json.dumps({**row, "fvu": fvu, "dead_share": share_dead}) + "\n")
            bar.set_postfix_str(f"fvu {sum(fvus) / len(fvus):.3f}, dead {sum(dead) / len(dead):.0%}")
    bar.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Train every dictionary that the flags ask for and that is not there yet."""
    args = parse(Arguments, argv, "python -m sae.train")
    keep_freed_memory()
    corpus = open_corpus(args.corpus)
    identity = subject_identity(args.subject)
    parents = {"subject": subject_digest(identity), "corpus": corpus.fingerprint}
    claim_run(args.train.run, {**identity, **corpus_place(args.corpus, corpus)})
    configs = {layer: _artifact_config(args, identity, layer) for layer in args.train.layers}
    folders = {layer: dictionary_folder(args.train.run, c["dictionary"]) for layer, c in configs.items()}
    todo = [
        layer
        for layer in args.train.layers
        if completed(folders[layer], "sae", configs[layer], parents, args.train.overwrite) is None
    ]
    if todo:
        subject = load_subject(args.subject)
        _check_subject(subject, args)
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(writing(folders[n], "sae", configs[n], parents)) for n in todo]
            _train_layers(args, subject, corpus, dict(zip(todo, writers, strict=True)))
    for layer, folder in folders.items():
        mend = f"remove {folder} and run the same command again"
        try:
            summary = _summary(read_json(folder / "metrics.json", mend))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{folder / 'metrics.json'} lacks the metrics of a dictionary; {mend}") from None
        print(f"{folder}: {summary}{'' if layer in todo else ' (complete already)'}")


def _summary(metrics: dict[str, Any]) -> str:
    names = ("fvu", "fvu_token_mean", "fvu_pca")
    fvu, token, pca = ("undefined" if metrics[name] is None else f"{metrics[name]:.3f}" for name in names)
    return f"fvu {fvu} (token mean {token}, PCA of {metrics['k']} {pca}), dead {metrics['dead_share']:.1%}"


def _train_layers(args: Arguments, subject: Subject, corpus: Corpus, writers: dict[int, ArtifactWriter]) -> None:
    config, context = args.train, args.corpus.context_length
    started = time.time()
    store = prepare_contexts(corpus, subject.tokenizer, "sae", config.tokens, context, config.repeat)
    held_out = prepare_contexts(corpus, subject.tokenizer, "score", config.eval_tokens, context, repeat=True)
    layers = list(writers)
    means = _token_means(subject, store, layers, args) if args.sae.skip_embed else [None] * len(layers)
    fitters = _fitters(subject, len(layers))
    generator = torch.Generator().manual_seed(config.seed)
    vectors = _fitted(without_token_means(_vectors(subject, store, layers, config), means), fitters)
    batches = shuffled(vectors, config.batch_tokens, config.buffer_tokens, generator)
    first = next(batches)
    trainers = [_trainer(args, subject, layer, x) for layer, x in zip(layers, first, strict=True)]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context((w.partial / "train_log.jsonl").open("w")) for w in writers.values()]
        train(trainers, _chain(first, batches), config, logs)
    for layer, trainer in zip(layers, trainers, strict=True):
        if not all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters()):
            raise InputError(f"training at layer {layer} diverged; pass a lower --learning-rate or --dtype float32")
    seconds = time.time() - started
    places = zip(trainers, [Hookpoint(n) for n in layers], fitters, means, strict=True)
    results = evaluate(subject, held_out, [Placed(t.model, h, h, f, m) for t, h, f, m in places])
    shared = kept_overlap(corpus)
    for (layer, writer), trainer, result, mean in zip(writers.items(), trainers, results, means, strict=True):
        facts = {"hookpoint": f"layers.{layer}", "layer": layer, "seed": config.seed}
        save_dictionary(writer.partial, trainer.model, facts, mean)
        _save_metrics(writer, trainer, result, args)
        counts = {"tokens": trainer.tokens, "n_latents": trainer.model.n_latents, "variant": subject.report}
        writer.finish({**counts, "overlap": shared}, {"training_seconds": round(seconds, 3)})


def _chain(first: tuple[Tensor, ...], rest: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    yield first
    yield from rest


def _fitters(subject: Subject, n: int) -> list[BaselineFitter]:
    vocabulary = int(subject.model.get_input_embeddings().weight.shape[0])
    return [BaselineFitter(vocabulary, subject.d_model, subject.device) for _ in range(n)]


def _vectors(
    subject: Subject, store: ContextStore, layers: Sequence[int], config: TrainConfig
) -> Iterator[ActivationBatch]:
    """The training split's vectors; every call gives the same."""
    order = np.random.default_rng(config.seed)
    hookpoints = [Hookpoint(layer) for layer in layers]
    return stream(subject, store, hookpoints, store.batches(SUBJECT_BATCH_TOKENS, order, config.tokens))


def _fitted(batches: Iterable[ActivationBatch], fitters: Sequence[BaselineFitter]) -> Iterator[ActivationBatch]:
    """The activation stream, which the baselines see on its way to the dictionaries."""
    for batch in batches:
        for fitter, x in zip(fitters, batch.vectors, strict=True):
            fitter.update(x, batch.token_ids)
        yield batch


def _token_means(
    subject: Subject, store: ContextStore, layers: Sequence[int], args: Arguments
) -> list[TokenMean | None]:
    """Each token's mean vector over the training split, from a pass of its own."""
    fitters = _fitters(subject, len(layers))
    batches = _fitted(_vectors(subject, store, layers, args.train), fitters)
    with tqdm(total=args.train.tokens, unit="tok", unit_scale=True, desc="token means", mininterval=1.0) as bar:
        for batch in batches:
            bar.update(len(batch.token_ids))
    return [fitter.token_mean() for fitter in fitters]


def _trainer(args: Arguments, subject: Subject, layer: int, sample: Tensor) -> Trainer:
    n_latents = args.sae.expansion * subject.d_model
    model = SparseAutoencoder(Architecture("topk", subject.d_model, n_latents, args.sae.k)).to(subject.device)
    # One generator per dictionary: which other layers are trained beside it must not change it.
    model.initialise(sample, torch.Generator().manual_seed(args.train.seed * 1000 + layer))
    return Trainer(model, learning_rate(args.train, n_latents))


def _save_metrics(writer: ArtifactWriter, trainer: Trainer, result: dict[str, Any], args: Arguments) -> None:
    window = args.train.dead_after * args.train.tokens
    dead = {"dead_share": trainer.dead_share(window), "dead_after_tokens": int(window)}
    metrics = {**result, **dead, "k": trainer.model.k, "n_tokens_train": trainer.tokens}
    write_json(writer.partial / "metrics.json", metrics)


def _artifact_config(args: Arguments, identity: dict[str, Any], layer: int) -> dict[str, Any]:
    skip = ("run", "layers", "overwrite", "seed")
    training = {k: v for k, v in dataclasses.asdict(args.train).items() if k not in skip}
    own = {
        "dictionary": dictionary_slug(layer, args.sae, args.train.seed),
        "hookpoint": f"layers.{layer}",
        "layer": layer,
    }
    settings = {"seed": args.train.seed, **dataclasses.asdict(args.sae)}
    known = {
        name: value for name, value in identity.items() if name != "subject" or not identity["subject_fingerprint"]
    }
    whole = {**own, **settings, "training": training, "subject": known, "corpus": corpus_settings(args.corpus)}
    result: dict[str, Any] = plain(whole)
    return result


def _check_subject(subject: Subject, args: Arguments) -> None:
    for layer in args.train.layers:
        subject.check_layer(layer)
    n_latents = args.sae.expansion * subject.d_model
    if args.sae.k > n_latents:
        found = f"the dictionary has {n_latents} latents ({args.sae.expansion} x {subject.d_model})"
        raise InputError(f"--k {args.sae.k} is out of range: {found}; ask for fewer")
    subject.check_context(args.corpus.context_length)


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
