"""One dictionary in training: its step, its optimiser, and when each latent last fired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.architecture import Architecture
from sae.config import UNTRAINED, OptimiserState, SAEConfig, TrainConfig
from sae.distributed import ALONE, Parallel
from sae.losses import PASSES, Moment, Pass
from sae.model import SparseAutoencoder
from sae.nulls import hold, keep_near, observed
from sae.optimiser import adam
from sae.sharding import SHARDED_PASSES, clip_gradient, whole_of


def learning_rate(config: TrainConfig, n_latents: int) -> float:
    """The peak learning rate: as asked, or 3e-3 / sqrt(n_latents / 4096), tuned for runs of some hundred steps."""
    return config.learning_rate or 3e-3 / math.sqrt(n_latents / 4096)


def schedule(step: int, n_steps: int, warmup: float, decay: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, a plateau, a linear fall to zero."""
    rise = (step + 1) / max(1.0, warmup * n_steps)
    fall = (n_steps - step) / max(1.0, decay * n_steps)
    return min(1.0, rise, fall)


@dataclass(frozen=True)
class Rates:
    """What changes from step to step: shares of the peak learning rate and of the sparsity penalty."""

    learning: float = 1.0
    penalty: float = 1.0


def rates_at(step: int, config: TrainConfig) -> Rates:
    """The rates of a step."""
    learning = schedule(step, config.n_steps, config.warmup, config.decay)
    return Rates(learning, min(1.0, (step + 1) / (0.3 * config.n_steps)))


@dataclass(frozen=True)
class OptimiserOptions:
    """What the optimiser does beside its steps."""

    state: OptimiserState = "float32"
    clip: float | None = None
    """Largest global norm of the gradient."""


class Trainer:
    """Weights, optimiser and counters of one dictionary.

    Args:
        model: initialised.
        sae: architecture and loss.
        peak: peak learning rate.
        window: tokens without firing after which a latent is dead.
        options: of the optimiser.
        parallel: where the rest of the batch, and of the latents, is.
    """

    def __init__(
        self,
        model: SparseAutoencoder,
        sae: SAEConfig,
        peak: float,
        window: float,
        options: OptimiserOptions = OptimiserOptions(),
        parallel: Parallel = ALONE,
    ) -> None:
        self.model = model
        self.sae = sae
        self.peak = peak
        self.window = window
        self.parallel = parallel
        self.clip = options.clip
        self.optimiser = adam(model.parameters(), peak, options.state)
        self.last_fired = torch.zeros(model.n_latents, dtype=torch.int64, device=model.w_enc.device)
        self.tokens = 0
        # Of the initialisation, which a training that goes on repeats: no part of what a step changes.
        self.anchors = hold(model, sae.null)

    def step(self, x: Tensor, target: Tensor, rates: Rates) -> Pass:
        """One optimiser step on x [token, d_in] towards target [token, d_out]; returns the pass before it."""
        untrained = self.sae.null in UNTRAINED
        result = observed(self.model, x, target, self.parallel) if untrained else self._learn(x, target, rates)
        self.tokens += self.parallel.count(len(x))
        self.last_fired.masked_fill_(result.fired, self.tokens)
        self.parallel.keep_latest(self.last_fired)
        return result

    def _learn(self, x: Tensor, target: Tensor, rates: Rates) -> Pass:
        moment = Moment(self._dead(), rates.penalty, self.parallel)
        passes = PASSES if self.parallel.shards == 1 else SHARDED_PASSES
        result = passes[self.sae.architecture](self.model, x, target, self.sae, moment)
        self.optimiser.zero_grad(set_to_none=True)
        result.loss.backward()  # type: ignore[no-untyped-call]
        self.parallel.sum_gradients(self.model.parameters())
        self.model.remove_radial_gradient()
        if self.clip is not None:
            clip_gradient(self.model, self.clip, self.parallel)
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak * rates.learning
        self.optimiser.step()
        self.model.normalise_decoder()
        self.model.keep_thresholds_positive()
        if self.anchors is not None:
            keep_near(self.model.w_dec, self.anchors)
        if result.cut is not None:
            self.model.learn_threshold(result.cut)
        return result

    def gather(self, whole: Architecture) -> None:
        """End a training whose latents are spread over processes: the main one then holds all of them."""
        if self.parallel.shards > 1:
            self.optimiser.state.clear()
            self.optimiser.zero_grad(set_to_none=True)
            self.last_fired = self.parallel.beside(self.last_fired).flatten()
            self.model = whole_of(self.model, whole, self.parallel) or self.model
            self.parallel = ALONE

    def _dead(self) -> Tensor | None:
        """Indices of the dead latents, or None."""
        if self.tokens <= self.window:
            return None
        dead = (self.last_fired <= self.tokens - self.window).nonzero().flatten()
        # Where there is none here, another shard may have some.
        return dead if len(dead) or self.parallel.shards > 1 else None

    @property
    def dead_share(self) -> float:
        """Share of the latents that have not fired in the last `window` tokens."""
        return float(self.parallel.beside((self.last_fired <= self.tokens - self.window).float().mean()).mean())

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name; tensors are shared with the trainer."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for place, held in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{place}.{name}": tensor for name, tensor in held.items()}
        return {**state, "last_fired": self.last_fired, "tokens": torch.tensor(self.tokens)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(_below(state, "model."))
        held: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(state, "optimiser.").items():
            place, _, part = name.partition(".")
            held.setdefault(int(place), {})[part] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": held})
        self.last_fired.copy_(state["last_fired"])
        self.tokens = int(state["tokens"])


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
